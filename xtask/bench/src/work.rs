//! What all benchmarks share: the messages, and waiting until all were handled.

use std::sync::atomic::{AtomicUsize, Ordering::AcqRel};

use bytes::Bytes;
use ebus_core::{Key, Message};
use tokio::sync::Notify;

/// Different keys.
pub(crate) const KEYS: usize = 10_000;
/// Bytes of payload: an envelope of a small event.
pub(crate) const PAYLOAD: usize = 230;

/// One message of each key; payload and key are shared, so that a clone copies nothing.
pub(crate) fn messages() -> Vec<Message> {
    let payload = Bytes::from(vec![7u8; PAYLOAD]);
    (0..KEYS)
        .map(|i| Message::new(payload.slice(..)).with_key(Key::new(Bytes::from(format!("order-{i}")))))
        .collect()
}

/// Counts messages down to none.
#[derive(Debug)]
pub(crate) struct Countdown {
    left: AtomicUsize,
    done: Notify,
}

impl Countdown {
    pub(crate) fn new(left: usize) -> Self {
        Self { left: AtomicUsize::new(left), done: Notify::new() }
    }

    pub(crate) fn one(&self) {
        if self.left.fetch_sub(1, AcqRel) == 1 {
            self.done.notify_one();
        }
    }

    pub(crate) async fn done(&self) {
        self.done.notified().await;
    }
}
