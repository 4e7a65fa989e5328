//! From librdkafka's memory into ours, once per message.
//!
//! Keys and payloads of a batch are copied into one slab and cut out of it, so that a message costs no allocation. A slab is
//! small, because one message that stays keeps all of it: what a stuck message holds is bounded (G5).

use bytes::{Bytes, BytesMut};
use ebus_core::{Headers, Key, Message, Timestamp};

use crate::sys::queue::Fetched;

/// The most bytes of a slab.
const SLAB: usize = 64 << 10;

/// A message with more bytes than this has memory of its own.
const LARGE: usize = 8 << 10;

/// Copies messages into slabs.
#[derive(Debug, Default)]
pub(crate) struct Slabs {
    open: BytesMut,
}

impl Slabs {
    /// Copies one message. `ahead` is how many bytes the rest of the batch has, for a slab of the right size.
    pub(crate) fn message(&mut self, fetched: Fetched<'_>, ahead: usize) -> Message {
        let key = fetched.key();
        let payload = fetched.payload();
        let key_len = key.map_or(0, <[u8]>::len);
        let need = key_len + payload.len();
        let mut bytes = if need > LARGE {
            let mut own = BytesMut::with_capacity(need);
            put(&mut own, key, payload);
            own.freeze()
        } else if need == 0 {
            Bytes::new()
        } else {
            if self.open.capacity() < need {
                self.open = BytesMut::with_capacity(ahead.clamp(need, SLAB));
            }
            put(&mut self.open, key, payload);
            self.open.split().freeze()
        };
        let key = key.map(|_| Key::new(bytes.split_to(key_len)));
        let timestamp = Timestamp::from_millis(fetched.timestamp().unwrap_or(0));
        let mut message = Message::made_at(timestamp, bytes).with_optional_key(key);
        let headers = fetched.headers();
        if !headers.is_empty() {
            message.headers = headers
                .into_iter()
                .map(|(name, value)| (name, Bytes::copy_from_slice(value)))
                .collect::<Headers>();
        }
        message
    }
}

fn put(to: &mut BytesMut, key: Option<&[u8]>, payload: &[u8]) {
    if let Some(key) = key {
        to.extend_from_slice(key);
    }
    to.extend_from_slice(payload);
}

/// Bytes that a batch needs of slabs.
pub(crate) fn slab_len<'a>(batch: impl Iterator<Item = Fetched<'a>>) -> usize {
    batch
        .map(|fetched| fetched.key().map_or(0, <[u8]>::len) + fetched.payload().len())
        .filter(|n| *n <= LARGE)
        .sum()
}
