//! One message handed to a handler.

use std::sync::Arc;

use crate::{Epoch, Headers, Key, Message, PartitionId, Topic};

/// One message handed to a handler, with its attempt and the epoch of its ownership.
///
/// The handler's [`Outcome`](crate::Outcome) decides what becomes of the message; the delivery itself settles nothing.
#[derive(Debug, Clone)]
pub struct Delivery {
    partition: Arc<PartitionId>,
    epoch: Epoch,
    offset: u64,
    attempt: u32,
    message: Message,
}

impl Delivery {
    /// For the pool, and for tests of handlers.
    pub fn new(
        partition: Arc<PartitionId>,
        epoch: Epoch,
        offset: u64,
        attempt: u32,
        message: Message,
    ) -> Self {
        Self { partition, epoch, offset, attempt, message }
    }

    /// The topic.
    pub fn topic(&self) -> &Topic {
        &self.partition.topic
    }

    /// The topic and partition.
    pub fn partition(&self) -> &PartitionId {
        &self.partition
    }

    /// The place in the partition.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The ownership under which this runs: a fencing token for what the handler writes elsewhere. A write that carries
    /// a lower epoch than one seen before, for the same group and partition, comes from a former owner.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// 1 for the first run of this message under this ownership. Attempts do not count across a crash or a hand-over.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The key, if the message has one.
    pub fn key(&self) -> Option<&Key> {
        self.message.key.as_ref()
    }

    /// The headers.
    pub fn headers(&self) -> &Headers {
        &self.message.headers
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        &self.message.payload
    }

    /// The message.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The message, without a copy.
    pub fn into_message(self) -> Message {
        self.message
    }
}
