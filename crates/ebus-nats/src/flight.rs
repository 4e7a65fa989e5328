//! A message on its way: given to the publisher, not acknowledged yet.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use async_nats::HeaderMap;
use bytes::Bytes;
use ebus_core::{Error, Receipt, Topic};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// A topic that is published to, and its number among those of the connection.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) id: usize,
    pub(crate) topic: Topic,
    pub(crate) stream: String,
    /// The stream's own limit of a message's bytes as far as it is known; `usize::MAX` until then.
    pub(crate) max_message_bytes: AtomicUsize,
}

/// A message and who waits for it.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) route: Arc<Route>,
    /// The hash of the key; `None` without a key.
    pub(crate) hash: Option<u32>,
    /// Where it went; known when it is sent.
    pub(crate) partition: u32,
    /// What the gate counts of it.
    pub(crate) bytes: usize,
    pub(crate) deadline: Instant,
    pub(crate) reply: oneshot::Sender<Result<Receipt, Error>>,
}

/// A message that is not sent yet.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) sequence: u64,
    pub(crate) flight: Flight,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
}

/// What is sent, found by the number that its acknowledgement carries. O(1): acknowledgements come nearly in order.
#[derive(Debug, Default)]
pub(crate) struct Window {
    base: u64,
    flights: VecDeque<Option<Flight>>,
    len: usize,
}

impl Window {
    /// Numbers grow; some may be left out (messages that failed before they were sent).
    pub(crate) fn push(&mut self, sequence: u64, flight: Flight) {
        if self.flights.is_empty() {
            self.base = sequence;
        }
        while self.base + (self.flights.len() as u64) < sequence {
            self.flights.push_back(None);
        }
        self.flights.push_back(Some(flight));
        self.len += 1;
    }

    pub(crate) fn take(&mut self, sequence: u64) -> Option<Flight> {
        let index = usize::try_from(sequence.checked_sub(self.base)?).ok()?;
        let flight = self.flights.get_mut(index)?.take()?;
        self.len -= 1;
        self.trim();
        Some(flight)
    }

    fn trim(&mut self) {
        while let Some(None) = self.flights.front() {
            self.flights.pop_front();
            self.base += 1;
        }
    }

    /// The oldest one.
    pub(crate) fn front(&self) -> Option<&Flight> {
        self.flights.front().and_then(Option::as_ref)
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, Flight)> {
        let sequence = self.base;
        let flight = self.flights.front_mut()?.take()?;
        self.len -= 1;
        self.trim();
        Some((sequence, flight))
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight() -> Flight {
        let topic = Topic::new("orders").expect("legal");
        let route =
            Route { id: 0, topic, stream: "orders".into(), max_message_bytes: AtomicUsize::new(usize::MAX) };
        Flight {
            route: Arc::new(route),
            hash: None,
            partition: 0,
            bytes: 1,
            deadline: Instant::now(),
            reply: oneshot::channel().0,
        }
    }

    #[tokio::test]
    async fn each_is_found_once_whatever_the_order() {
        let mut window = Window::default();
        for sequence in [5, 6, 9, 10] {
            window.push(sequence, flight());
        }
        assert!(window.take(6).is_some() && window.take(6).is_none());
        assert!(window.take(7).is_none() && window.take(4).is_none() && window.take(11).is_none());
        assert_eq!(window.pop().map(|(sequence, _)| sequence), Some(5));
        assert_eq!(window.pop().map(|(sequence, _)| sequence), Some(9));
        assert_eq!(window.len(), 1);
        assert!(window.take(10).is_some() && window.pop().is_none());
        window.push(20, flight());
        assert_eq!(window.pop().map(|(sequence, _)| sequence), Some(20));
    }
}
