//! What the topic says, read as far as it goes whenever somebody asks (G2).

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use ebus_core::{Epoch, Error, Group, LogMark, NextOffset, ReadRange, Reader, Topic};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::names::{self, Place, mark_and_epoch};
use crate::config::KafkaConfig;
use crate::reader::KafkaReader;
use crate::topics::Control;

/// Records taken at once.
const CHUNK: usize = 512;

/// The last record of each key that was not removed.
#[derive(Debug, Default)]
pub(super) struct Table {
    records: BTreeMap<Bytes, Bytes>,
}

/// A value of a partition, by one owner.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) mark: LogMark,
    pub(super) epoch: Epoch,
    pub(super) frame: Bytes,
}

impl Table {
    fn put(&mut self, key: Bytes, value: Bytes) {
        if value.is_empty() {
            self.records.remove(&key);
        } else {
            self.records.insert(key, value);
        }
    }

    /// What stands behind `prefix` in the keys that begin with it, and their values.
    fn behind(&self, prefix: String) -> impl Iterator<Item = (Bytes, &Bytes)> {
        let len = prefix.len();
        let prefix = Bytes::from(prefix);
        let from = (Bound::Included(prefix.clone()), Bound::Unbounded);
        let these = self.records.range::<Bytes, _>(from).take_while(move |(key, _)| key.starts_with(&prefix));
        these.map(move |(key, value)| (key.slice(len..), value))
    }

    pub(super) fn values(&self, place: &Place) -> Vec<Value> {
        let values = self.behind(place.values()).filter_map(|(rest, frame)| {
            let (mark, epoch) = mark_and_epoch(&rest)?;
            Some(Value { mark, epoch, frame: frame.clone() })
        });
        values.collect()
    }

    /// Whether somebody has opened it for this group. Where the topic was made anew under its members, what they have written since
    /// says it too.
    pub(super) fn knows(&self, group: &Group) -> bool {
        self.records.contains_key(&names::group(group))
            || self.behind(names::values_of(group)).next().is_some()
    }

    pub(super) fn requests(&self, place: &Place) -> Vec<Bytes> {
        self.behind(place.requests()).map(|(request, _)| request).collect()
    }
}

/// A question to the table; an error says why it could not be read.
type Ask = Box<dyn FnOnce(Result<&Table, &Error>) + Send>;

/// The task that owns the table. It ends with the last of its handles.
#[derive(Debug, Clone)]
pub(super) struct Reading(UnboundedSender<Ask>);

impl Reading {
    pub(super) fn start(config: Arc<KafkaConfig>, control: Control, topic: Topic) -> Self {
        let (asks, asked) = unbounded_channel();
        let reader = Tail { config, control, topic, table: Table::default(), next: 0 };
        tokio::spawn(reader.serve(asked));
        Self(asks)
    }

    /// Asks the table when all has been read that was written before.
    ///
    /// # Errors
    /// Why that could not be read.
    pub(super) async fn with<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Table) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let ask: Ask = Box::new(move |table| {
            // Who asked may have stopped waiting.
            let _ = reply.send(table.map(look).map_err(Clone::clone));
        });
        // A task that is gone drops the question.
        let _ = self.0.send(ask);
        answer.await.unwrap_or_else(|_| Err(Error::closed("parking")))
    }
}

struct Tail {
    config: Arc<KafkaConfig>,
    control: Control,
    topic: Topic,
    table: Table,
    /// The first offset that was not read.
    next: u64,
}

impl Tail {
    async fn serve(mut self, mut asked: UnboundedReceiver<Ask>) {
        while let Some(first) = asked.recv().await {
            let mut asks = vec![first];
            while let Ok(ask) = asked.try_recv() {
                asks.push(ask);
            }
            let read = self.read_on().await;
            for ask in asks {
                ask(read.as_ref().map(|()| &self.table));
            }
        }
    }

    /// Reads to the end as it is now.
    async fn read_on(&mut self) -> Result<(), Error> {
        let topic = self.topic.clone();
        let there = self.control.run("parking", move |control| control.range(&topic, 0)).await?;
        if there.end.0 < self.next {
            tracing::warn!(topic = %self.topic, "the topic of parked keys was made anew; it is read again");
            (self.table, self.next) = (Table::default(), 0);
        }
        let from = self.next.max(there.earliest);
        if from >= there.end.0 {
            return Ok(());
        }
        let range = ReadRange::new(self.topic.clone(), 0, from, NextOffset(there.end.0));
        let config = self.config.clone();
        let opened = self.control.run("parking", move |control| KafkaReader::open(control, &config, range));
        let mut reader = opened.await?;
        let mut read = Vec::new();
        while reader.next(CHUNK, &mut read).await? > 0 {
            for (offset, message) in read.drain(..) {
                if let Some(key) = message.key {
                    self.table.put(key.into_bytes(), message.payload);
                }
                self.next = offset + 1;
            }
        }
        self.next = there.end.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ebus_core::PartitionId;

    use super::*;

    /// A former owner's late write is a record of its own, and a removal takes one away.
    #[test]
    fn p3_each_epoch_has_a_record_of_its_own() {
        let topic = Topic::new("orders").expect("legal");
        let place = Place::new(&Group::new("g").expect("legal"), &PartitionId::new(topic.clone(), 1));
        let near = Place::new(&Group::new("g").expect("legal"), &PartitionId::new(topic, 10));
        let mut table = Table::default();
        let put = |table: &mut Table, epoch, value: &'static str| {
            table.put(place.value(LogMark(5), Epoch(epoch)), Bytes::from_static(value.as_bytes()));
        };
        put(&mut table, 9, "nine");
        put(&mut table, 10, "ten");
        table.put(near.value(LogMark(5), Epoch(99)), Bytes::from_static(b"another partition"));
        put(&mut table, 9, "late");
        let highest = |table: &Table| table.values(&place).into_iter().max_by_key(|value| value.epoch);
        assert_eq!(highest(&table).expect("two are there").frame, "ten");
        let knows = |table: &Table, group| table.knows(&Group::new(group).expect("legal"));
        assert!(knows(&table, "g") && !knows(&table, "gg"), "nobody has opened it, and owners have written");
        put(&mut table, 9, "");
        assert_eq!(table.values(&place).len(), 1);
        table.put(place.request(b"redrive a/b"), Bytes::from_static(b"1"));
        assert_eq!(table.requests(&place), [Bytes::from_static(b"redrive a/b")]);
        table.put(place.request(b"redrive a/b"), Bytes::new());
        assert!(table.requests(&place).is_empty() && table.requests(&near).is_empty());
    }
}
