//! From librdkafka's memory into ours, once per message.
//!
//! Keys and payloads of a batch are copied into one slab and cut out of it, so that a message costs no allocation. A slab is
//! small, because one message that stays keeps all of it: what a stuck message holds is bounded (G5).

use std::collections::VecDeque;

use bytes::Bytes;
use ebus_core::{Headers, Key, Message, Timestamp};
use rdkafka::error::RDKafkaErrorCode;

use crate::sys::queue::{Batch, Fetched};

/// The most bytes of a slab.
const SLAB: usize = 64 << 10;

/// A message with more bytes than this has memory of its own.
const LARGE: usize = 8 << 10;

/// Copies messages into slabs.
#[derive(Debug, Default)]
pub(crate) struct Slabs {
    /// What is not cut yet, in order.
    filled: VecDeque<Bytes>,
}

impl Slabs {
    /// The messages of a batch with their offsets, or what librdkafka says in place of one.
    pub(crate) fn messages<'b>(
        &'b mut self,
        batch: &'b Batch,
    ) -> impl Iterator<Item = (u64, Result<Message, RDKafkaErrorCode>)> {
        self.fill(batch);
        batch
            .iter()
            .map(|fetched| (fetched.offset(), fetched.error().map_or_else(|| Ok(self.message(fetched)), Err)))
    }

    /// Copies the keys and payloads of all messages that have no memory of their own.
    fn fill(&mut self, batch: &Batch) {
        self.filled.clear();
        let small = || batch.iter().filter(|one| one.error().is_none()).map(|one| (len(one), one));
        let mut left: usize = small().map(|(len, _)| len).filter(|len| *len <= LARGE).sum();
        let mut open = Vec::new();
        for (need, fetched) in small().filter(|(len, _)| *len <= LARGE) {
            if open.capacity() - open.len() < need {
                self.close(std::mem::replace(&mut open, Vec::with_capacity(left.clamp(need, SLAB))));
            }
            left -= need;
            put(&mut open, fetched);
        }
        self.close(open);
    }

    fn close(&mut self, slab: Vec<u8>) {
        if !slab.is_empty() {
            self.filled.push_back(Bytes::from(slab));
        }
    }

    /// The next message.
    fn message(&mut self, fetched: Fetched<'_>) -> Message {
        let need = len(fetched);
        let mut bytes = if need > LARGE {
            let mut own = Vec::with_capacity(need);
            put(&mut own, fetched);
            Bytes::from(own)
        } else {
            self.cut(need)
        };
        let key = fetched.key().map(|key| Key::new(bytes.split_to(key.len())));
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

    /// The next bytes of the slabs, which hold all small messages in order, each in one piece.
    fn cut(&mut self, need: usize) -> Bytes {
        match self.filled.front_mut() {
            Some(slab) if need > 0 && slab.len() > need => slab.split_to(need),
            Some(_) if need > 0 => self.filled.pop_front().unwrap_or_default(),
            _ => Bytes::new(),
        }
    }
}

fn len(fetched: Fetched<'_>) -> usize {
    fetched.key().map_or(0, <[u8]>::len) + fetched.payload().len()
}

fn put(to: &mut Vec<u8>, fetched: Fetched<'_>) {
    to.extend_from_slice(fetched.key().unwrap_or_default());
    to.extend_from_slice(fetched.payload());
}
