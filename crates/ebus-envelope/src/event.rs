//! What a typed handler gets: the decoded payload, the envelope around it, and where it came from.

use std::ops::Deref;

use ebus_core::{Delivery, Epoch, Error, Timestamp, Topic};
use serde::de::DeserializeOwned;

use crate::{Envelope, EventId};

/// A decoded event with its metadata. Stands for its payload: `event.total` is a field of `T`.
#[derive(Debug, Clone)]
pub struct Event<T> {
    value: T,
    envelope: Envelope,
    delivery: Delivery,
}

impl<T: DeserializeOwned> Event<T> {
    /// Decodes the envelope and the payload of a delivery.
    ///
    /// # Errors
    /// `Decode`, naming the field that is missing or illegal, or what of the payload is no `T`.
    pub fn decode(delivery: Delivery) -> Result<Self, Error> {
        let envelope = Envelope::decode(delivery.message())?;
        let value = envelope.value()?;
        Ok(Self { value, envelope, delivery })
    }
}

impl<T> Event<T> {
    /// The aggregate that the event is about; it names the order in which events are handled.
    pub fn key(&self) -> &str {
        self.envelope.aggregate_id()
    }

    /// The event's own id: the same for every delivery of it.
    pub fn event_id(&self) -> EventId {
        self.envelope.event_id()
    }

    /// What happened, such as `order.placed`.
    pub fn event_type(&self) -> &str {
        self.envelope.event_type()
    }

    /// The version of the payload's form, from 1.
    pub fn event_version(&self) -> u32 {
        self.envelope.event_version()
    }

    /// When it happened.
    pub fn timestamp(&self) -> Timestamp {
        self.envelope.timestamp()
    }

    /// The topic that it came from.
    pub fn topic(&self) -> &Topic {
        self.delivery.topic()
    }

    /// The place in the partition.
    pub fn offset(&self) -> u64 {
        self.delivery.offset()
    }

    /// The ownership under which this runs: a fencing token for what the handler writes elsewhere.
    pub fn epoch(&self) -> Epoch {
        self.delivery.epoch()
    }

    /// 1 for the first run of this message under this ownership.
    pub fn attempt(&self) -> u32 {
        self.delivery.attempt()
    }

    /// All metadata.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// The delivery as it came.
    pub fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// The payload as a value.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The payload as a value, without a copy.
    pub fn into_value(self) -> T {
        self.value
    }
}

impl<T> Deref for Event<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}
