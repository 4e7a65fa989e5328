//! What a group keeps of parked keys: a value per partition, fenced by epoch, and requests (G2, G3).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use async_trait::async_trait;
use bytes::Bytes;
use ebus_core::{Epoch, Error, ErrorKind, Group, LogMark, Parking, PartitionId, Retryability};
use parking_lot::Mutex;

use crate::broker::MemoryBroker;
use crate::connection::Connection;
use crate::error;

/// The longest value: room for two thousand keys.
const MAX_BYTES: usize = 1 << 20;

/// What a group keeps of all partitions.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    partitions: Mutex<BTreeMap<PartitionId, Kept>>,
    /// Somebody who may write has opened it.
    opened: AtomicBool,
    /// By fault injection: every call fails with this.
    fails: Mutex<Option<ErrorKind>>,
}

#[derive(Debug)]
struct Kept {
    mark: LogMark,
    /// The highest one that has claimed the value.
    epoch: Epoch,
    value: Option<Bytes>,
    requests: BTreeSet<Bytes>,
}

impl Parked {
    /// Whether somebody has opened it. Of a group whose state was deleted since, what its owners wrote says so.
    fn is_known(&self) -> bool {
        self.opened.load(Relaxed) || !self.partitions.lock().is_empty()
    }

    pub(crate) fn set_fails(&self, fails: Option<ErrorKind>) {
        *self.fails.lock() = fails;
    }
}

/// Parked keys of one group.
#[derive(Debug)]
pub(crate) struct MemoryParking {
    broker: MemoryBroker,
    connection: Arc<Connection>,
    group: Group,
}

impl MemoryParking {
    /// # Errors
    /// What fault injection asks for.
    pub(crate) fn open(
        broker: MemoryBroker,
        connection: Arc<Connection>,
        group: Group,
    ) -> Result<Self, Error> {
        let parking = Self { broker, connection, group };
        parking.check("parking")?;
        parking.broker.with_group(&parking.group, |group| group.parked.opened.store(true, Relaxed));
        Ok(parking)
    }

    /// # Errors
    /// `NotFound` when nobody has opened it; what fault injection asks for.
    pub(crate) fn existing(
        broker: MemoryBroker,
        connection: Arc<Connection>,
        group: Group,
    ) -> Result<Self, Error> {
        let known = broker.group(&group);
        if !known.is_some_and(|group| group.parked.is_known()) {
            return Err(ebus_core::no_parked_keys(&group));
        }
        let parking = Self { broker, connection, group };
        parking.check("parking")?;
        Ok(parking)
    }

    fn check(&self, operation: &'static str) -> Result<(), Error> {
        if self.connection.is_closed() {
            return Err(Error::closed(operation));
        }
        let fails = self.broker.group(&self.group).and_then(|group| *group.parked.fails.lock());
        match fails {
            None => Ok(()),
            Some(kind) => Err(Error::new(kind, "parked keys cannot be kept, by fault injection")
                .with_retryability(Retryability::Safe)
                .with_operation(operation)
                .with_context("group", &self.group)),
        }
    }

    /// What is kept of a partition; of a topic that was made anew, nothing is.
    fn with<T>(
        &self,
        operation: &'static str,
        partition: &PartitionId,
        with: impl FnOnce(&mut Kept) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.check(operation)?;
        let topic = self.broker.topic(&partition.topic);
        let topic = topic.ok_or_else(|| error::no_such_topic(operation, &partition.topic))?;
        let (count, number) = (topic.partitions.len(), partition.partition);
        let log = topic.partitions.get(number as usize);
        let log = log.ok_or_else(|| error::no_such_partition(operation, &partition.topic, number, count))?;
        self.broker.with_group(&self.group, |group| {
            let mut partitions = group.parked.partitions.lock();
            let kept = partitions.entry(partition.clone()).or_insert_with(|| Kept::new(log.mark));
            if kept.mark != log.mark {
                if kept.value.is_some() {
                    tracing::warn!(group = %self.group, %partition,
                        "the topic was made anew: its parked keys are forgotten, and their dead letters stay where they are");
                }
                *kept = Kept::new(log.mark);
            }
            with(kept)
        })
    }
}

impl Kept {
    fn new(mark: LogMark) -> Self {
        Self { mark, epoch: Epoch(0), value: None, requests: BTreeSet::new() }
    }

    /// Whether an owner under `epoch` is the last one that has claimed it.
    fn owned(
        &self,
        operation: &'static str,
        group: &Group,
        partition: &PartitionId,
        epoch: Epoch,
    ) -> Result<(), Error> {
        if epoch < self.epoch { Err(error::fenced(operation, group, partition)) } else { Ok(()) }
    }
}

#[async_trait]
impl Parking for MemoryParking {
    fn max_bytes(&self) -> usize {
        MAX_BYTES
    }

    async fn claim(&self, partition: &PartitionId, epoch: Epoch) -> Result<Option<Bytes>, Error> {
        self.with("claim", partition, |kept| {
            kept.owned("claim", &self.group, partition, epoch)?;
            kept.epoch = epoch;
            Ok(kept.value.clone())
        })
    }

    async fn keep(&self, partition: &PartitionId, epoch: Epoch, value: Bytes) -> Result<(), Error> {
        if value.len() > MAX_BYTES {
            let message = format!("the list has {} bytes; at most {MAX_BYTES} are kept", value.len());
            return Err(Error::new(ErrorKind::TooLarge, message).with_operation("keep"));
        }
        self.with("keep", partition, |kept| {
            kept.owned("keep", &self.group, partition, epoch)?;
            kept.value = Some(value);
            Ok(())
        })
    }

    async fn read(&self, partition: &PartitionId) -> Result<Option<Bytes>, Error> {
        self.with("read", partition, |kept| Ok(kept.value.clone()))
    }

    async fn ask(&self, partition: &PartitionId, request: Bytes) -> Result<(), Error> {
        self.with("ask", partition, |kept| {
            kept.requests.insert(request);
            Ok(())
        })
    }

    async fn asked(&self, partition: &PartitionId) -> Result<Vec<Bytes>, Error> {
        self.with("asked", partition, |kept| Ok(kept.requests.iter().cloned().collect()))
    }

    async fn answered(&self, partition: &PartitionId, request: &Bytes) -> Result<(), Error> {
        self.with("answered", partition, |kept| {
            kept.requests.remove(request);
            Ok(())
        })
    }
}
