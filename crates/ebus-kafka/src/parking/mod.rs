//! Parked keys in a compacted topic (G2 across dead letters, G3).
//!
//! The topic has one partition, is shared by all groups, and is read from its beginning into a table (`table.rs`). The value of a
//! partition is a record whose key ends in the owner's epoch:
//!
//! ```text
//! v/<group>/<topic>/<partition>/<id of the topic>/<epoch>    0, or 1 and the value
//! r/<group>/<topic>/<partition>/<request>                    there until it is answered
//! g/<group>                                                  that somebody who may write has opened it
//! ```
//! A compacted topic has no compare-and-set. Because each epoch has a record of its own, a late write of a former owner replaces
//! nothing: whoever reads takes the highest epoch. An owner writes the value anew under its epoch when it claims it, and then
//! removes those of the epochs before. Epochs grow over all owners of a partition, also where a group's metadata is gone
//! (`positions.rs`).

mod names;
mod table;
mod topic;
mod writer;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use ebus_core::{Epoch, Error, ErrorKind, Group, LogMark, Parking, PartitionId, Topic};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::config::KafkaConfig;
use crate::producer;
use crate::takes::Takes;
use crate::topics::Control;
use names::Place;
use table::{Reading, Table};
use writer::Writer;

/// The longest value: half of what a topic takes by default, because keys of some length and a header come on top.
const MOST_BYTES: usize = 512 << 10;

/// What a batch needs beside its value: names in its key, and the frames around both.
const FRAME_BYTES: usize = 1 << 10;

/// What a connection has of the topic, for all groups.
pub(crate) struct Shared {
    control: Control,
    producer: Arc<producer::Shared>,
    config: Arc<KafkaConfig>,
    topic: Topic,
    /// Made for the first write: who only looks may have no right to write.
    writer: OnceCell<Writer>,
    reading: Reading,
    max_bytes: usize,
}

/// The longest value. The handle that writes leaves room for frames by itself; the topic may be one of somebody else's making,
/// that takes less.
fn max_bytes(config: &KafkaConfig, takes: Takes) -> usize {
    let topic = takes.most_bytes.map_or(usize::MAX, |most| most.saturating_sub(FRAME_BYTES));
    MOST_BYTES.min(config.max_message_bytes).min(topic)
}

impl Shared {
    /// Finds the topic, or creates it if `create`, and reads it.
    ///
    /// # Errors
    /// `NotFound` when it is not there and not created; `Denied` without the right to create or to read it; `ConfigInvalid` when there is
    /// one that is not compacted; what the broker says.
    pub(crate) async fn open(
        config: Arc<KafkaConfig>,
        control: Control,
        producer: Arc<producer::Shared>,
        create: bool,
    ) -> Result<Arc<Self>, Error> {
        let topic = config.parked_topic()?;
        let (asked, wanted) = (config.clone(), topic.clone());
        let find = move |control: &Control| topic::find(control, &asked, &wanted, create);
        let takes = control.run("parking", find).await?;
        let reading = Reading::start(config.clone(), control.clone(), topic.clone());
        reading.with(|_| ()).await?;
        let max_bytes = max_bytes(&config, takes);
        let writer = OnceCell::new();
        Ok(Arc::new(Self { control, producer, config, topic, writer, reading, max_bytes }))
    }

    async fn writer(&self) -> Result<&Writer, Error> {
        self.writer.get_or_try_init(async || Writer::new(&self.config, self.topic.clone())).await
    }
}

/// Parked keys of one group.
pub(crate) struct KafkaParking {
    shared: Arc<Shared>,
    group: Group,
    /// Which logs the partitions are of that were claimed here.
    claimed: Mutex<HashMap<PartitionId, LogMark>>,
}

impl KafkaParking {
    /// # Errors
    /// `Denied` without the right to write.
    pub(crate) async fn open(shared: Arc<Shared>, group: Group) -> Result<Self, Error> {
        shared.writer().await?.put(names::group(&group), Bytes::from_static(b"1")).await?;
        Ok(Self { shared, group, claimed: Mutex::default() })
    }

    /// # Errors
    /// `NotFound` when nobody has opened it.
    pub(crate) async fn existing(shared: Arc<Shared>, group: Group) -> Result<Self, Error> {
        let asked = group.clone();
        if !shared.reading.with(move |table| table.knows(&asked)).await? {
            return Err(ebus_core::no_parked_keys(&group));
        }
        Ok(Self { shared, group, claimed: Mutex::default() })
    }

    fn check_open(&self, operation: &'static str) -> Result<(), Error> {
        if self.shared.producer.is_closed() { Err(Error::closed(operation)) } else { Ok(()) }
    }

    /// What the topic says of a partition, at least up to now.
    async fn look<T: Send + 'static>(
        &self,
        operation: &'static str,
        partition: &PartitionId,
        look: impl FnOnce(&Table, &Place) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.check_open(operation)?;
        let place = Place::new(&self.group, partition);
        let looked = self.shared.reading.with(move |table| look(table, &place)).await;
        looked.map_err(|error| error.with_operation(operation).with_context("partition", partition))
    }

    async fn mark(&self, partition: &PartitionId) -> Result<LogMark, Error> {
        let topic = partition.topic.clone();
        let described = self.shared.control.run("parking", move |control| control.existing(&topic)).await?;
        Ok(LogMark(described.id))
    }
}

fn framed(value: Option<&Bytes>) -> Bytes {
    let mut frame = BytesMut::with_capacity(1 + value.map_or(0, Bytes::len));
    frame.put_u8(u8::from(value.is_some()));
    frame.extend_from_slice(value.map_or(&[], |value| value));
    frame.freeze()
}

fn unframed(frame: &Bytes) -> Option<Bytes> {
    (frame.first() == Some(&1)).then(|| frame.slice(1..))
}

#[async_trait]
impl Parking for KafkaParking {
    fn max_bytes(&self) -> usize {
        self.shared.max_bytes
    }

    async fn claim(&self, partition: &PartitionId, epoch: Epoch) -> Result<Option<Bytes>, Error> {
        let mark = self.mark(partition).await?;
        let found = self.look("claim", partition, move |table, place| table.values(place)).await?;
        let (of_this, of_others): (Vec<_>, Vec<_>) = found.into_iter().partition(|value| value.mark == mark);
        let last = of_this.iter().max_by_key(|value| value.epoch);
        if last.is_some_and(|last| last.epoch > epoch) {
            return Err(fenced(&self.group, partition));
        }
        let value = last.and_then(|last| unframed(&last.frame));
        let place = Place::new(&self.group, partition);
        if last.is_none_or(|last| last.epoch < epoch) {
            self.shared.writer().await?.put(place.value(mark, epoch), framed(value.as_ref())).await?;
        }
        self.claimed.lock().insert(partition.clone(), mark);
        if of_others.iter().any(|other| unframed(&other.frame).is_some()) {
            tracing::warn!(group = %self.group, %partition,
                "the topic was made anew: its parked keys are forgotten, and their dead letters stay where they are");
        }
        for former in
            of_this.iter().chain(&of_others).filter(|value| value.mark != mark || value.epoch < epoch)
        {
            self.shared.writer().await?.forget(place.value(former.mark, former.epoch));
        }
        Ok(value)
    }

    async fn keep(&self, partition: &PartitionId, epoch: Epoch, value: Bytes) -> Result<(), Error> {
        self.check_open("keep")?;
        if value.len() > self.max_bytes() {
            let message =
                format!("the list has {} bytes; at most {} are kept", value.len(), self.max_bytes());
            return Err(Error::new(ErrorKind::TooLarge, message).with_operation("keep"));
        }
        let mark = self.claimed.lock().get(partition).copied();
        let mark = mark.ok_or_else(|| fenced(&self.group, partition))?;
        let key = Place::new(&self.group, partition).value(mark, epoch);
        self.shared.writer().await?.put(key, framed(Some(&value))).await
    }

    async fn read(&self, partition: &PartitionId) -> Result<Option<Bytes>, Error> {
        let mark = self.mark(partition).await?;
        let found = self.look("read", partition, |table, place| table.values(place)).await?;
        let of_this = found.into_iter().filter(|value| value.mark == mark);
        Ok(of_this.max_by_key(|value| value.epoch).and_then(|value| unframed(&value.frame)))
    }

    async fn ask(&self, partition: &PartitionId, request: Bytes) -> Result<(), Error> {
        self.check_open("ask")?;
        let key = Place::new(&self.group, partition).request(&request);
        self.shared.writer().await?.put(key, Bytes::from_static(b"1")).await
    }

    async fn asked(&self, partition: &PartitionId) -> Result<Vec<Bytes>, Error> {
        self.look("asked", partition, |table, place| table.requests(place)).await
    }

    async fn answered(&self, partition: &PartitionId, request: &Bytes) -> Result<(), Error> {
        self.check_open("answered")?;
        self.shared.writer().await?.remove(Place::new(&self.group, partition).request(request)).await
    }
}

fn fenced(group: &Group, partition: &PartitionId) -> Error {
    let message = "the parked keys of the partition are claimed by a later owner";
    Error::new(ErrorKind::Fenced, message).with_context("group", group).with_context("partition", partition)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list that is refused for ever stops all keys that would be parked.
    #[test]
    fn a_value_is_not_longer_than_the_topic_takes_with_its_key_and_frames() {
        let takes = |most_bytes| Takes { most_bytes, needs_key: true };
        let config = KafkaConfig::new("b:9092");
        assert_eq!(max_bytes(&config, takes(None)), MOST_BYTES);
        assert_eq!(max_bytes(&config, takes(Some(1 << 20))), MOST_BYTES);
        assert_eq!(max_bytes(&config, takes(Some(900))), 0, "not even a key fits");
        assert_eq!(max_bytes(&config.with_max_message_bytes(5_000), takes(Some(1 << 20))), 5_000);
        let most = 100_000;
        let len = max_bytes(&KafkaConfig::new("b:9092"), takes(Some(most)));
        let long = "n".repeat(200);
        let partition = PartitionId::new(ebus_core::Topic::new(&long).expect("legal"), u32::MAX);
        let key = Place::new(&Group::new(&long).expect("legal"), &partition)
            .value(LogMark(u128::MAX), Epoch(u64::MAX));
        let record = ebus_core::Message::new(framed(Some(&Bytes::from(vec![0; len])))).with_key(key);
        takes(Some(most)).check(&record).expect("the longest value of the longest names");
    }
}
