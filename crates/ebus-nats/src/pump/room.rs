//! How much is handed to the client (G7): no more than it drops with its connection.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Sink;
use futures_util::future::BoxFuture;

use super::Pump;

/// So much is handed to the client at most before it has written it: less than what it keeps in one piece (64 KiB in async-nats
/// 0.51), which it drops when the connection ends. What is in its queue then would go out on the next connection. When half of it is
/// handed on it is asked to say when that is written, and the other half goes on meanwhile.
const UNWRITTEN: usize = 48 << 10;

impl Pump {
    /// Whether the client takes one more, on the connection that is up.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.poll_written(cx) {
            return false;
        }
        let room = Pin::new(&mut self.sink).poll_ready(cx);
        self.has_ended |= matches!(room, Poll::Ready(Err(_)));
        let is_same = self.connection.is_up() && self.connection.generation() == self.generation;
        if !is_same || self.has_ended {
            // Everything begins again with what is uncertain now.
            cx.waker().wake_by_ref();
            return false;
        }
        room.is_ready()
    }

    /// Whether the client has written enough of what it was handed.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            if let Some(flushing) = &mut self.flushing {
                if self.asked + self.unwritten < UNWRITTEN {
                    return true;
                }
                if flushing.as_mut().poll(cx).is_pending() {
                    return false;
                }
                self.flushing = None;
                self.asked = 0;
            }
            if self.unwritten < UNWRITTEN / 2 {
                return true;
            }
            let client = self.connection.client.clone();
            let mut flushing: BoxFuture<'static, ()> =
                Box::pin(async move { client.flush().await.unwrap_or_default() });
            let handed = std::mem::take(&mut self.unwritten);
            // It asks when it is polled.
            if flushing.as_mut().poll(cx).is_pending() {
                (self.flushing, self.asked) = (Some(flushing), handed);
            }
        }
    }

    pub(super) fn wrote_all(&mut self) {
        self.flushing = None;
        self.asked = 0;
        self.unwritten = 0;
    }
}
