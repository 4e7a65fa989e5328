//! What all benchmarks share: the messages, and counting those that were handled.

use std::fmt::Write;
use std::sync::LazyLock;
use std::sync::atomic::{
    AtomicUsize,
    Ordering::{AcqRel, Acquire},
};

use bytes::Bytes;
use ebus_core::{Key, Message};
use tokio::sync::Notify;

/// Different keys.
pub(crate) const KEYS: usize = 10_000;
/// Bytes of payload: an envelope of a small event.
pub(crate) const PAYLOAD: usize = 230;
/// Partitions of a topic.
pub(crate) const PARTITIONS: u32 = 8;

/// One message of each key, made once. Key and payload are static: a clone copies nothing and counts no references, which
/// would be most of what the fastest benchmarks measure. Payloads differ, and compress as events do.
pub(crate) fn messages() -> &'static [Message] {
    static MESSAGES: LazyLock<Vec<Message>> = LazyLock::new(make_messages);
    &MESSAGES
}

fn make_messages() -> Vec<Message> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // xorshift64: the same payloads on every run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    (0..KEYS)
        .map(|i| {
            let mut text = String::with_capacity(PAYLOAD + 32);
            let (id, trace, total) = (next(), next(), next() % 100_000);
            let _ = write!(
                text,
                "{{\"event_id\":\"{id:016x}{trace:016x}\",\"aggregate_id\":\"order-{i}\",\"event_type\":\"order.placed\",\
                 \"event_version\":1,\"total\":{total},\"note\":\""
            );
            while text.len() < PAYLOAD - 2 {
                text.extend(char::from_digit((next() % 16) as u32, 16));
            }
            text.push_str("\"}");
            let key = format!("order-{i}").leak();
            Message::new(Bytes::from_static(text.leak().as_bytes()))
                .with_key(Key::new(Bytes::from_static(key.as_bytes())))
        })
        .collect()
}

/// Counts messages down to none.
#[derive(Debug)]
pub(crate) struct Countdown {
    left: AtomicUsize,
    done: Notify,
}

impl Countdown {
    pub(crate) fn new(all: usize) -> Self {
        Self { left: AtomicUsize::new(all), done: Notify::new() }
    }

    pub(crate) fn one(&self) {
        if self.left.fetch_sub(1, AcqRel) == 1 {
            self.done.notify_one();
        }
    }

    /// Waits for the last one.
    pub(crate) async fn done(&self) {
        while self.left.load(Acquire) > 0 {
            self.done.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_have_their_size_and_differ() {
        let messages = messages();
        assert!(messages.iter().all(|message| message.payload.len() == PAYLOAD));
        assert_ne!(messages[0].payload, messages[1].payload);
    }
}
