//! A group as one member sees it: setting up its records, looking at them, claiming and writing them (G1, G3, G6).
//!
//! Setting up and claiming are apart: any member may set a topic up, at any time and several at once, by compare-and-set;
//! and a record that exists is claimed the same way whoever made it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ebus_core::{Epoch, Error, ErrorKind, Group, LogMark, NextOffset, Position, StartPosition, Topic};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use crate::connection::Connection;
use crate::record::{self, Entry, Manifest, Record};
use crate::roster::Said;
use crate::store::{Store, Written};
use crate::stream::{self as topics, TopicStream};
use crate::{names, start};

/// Requests that are made at once while many partitions are set up or claimed.
const CONCURRENCY: usize = 32;

/// One member of a group.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) connection: Connection,
    pub(crate) store: Store,
    pub(crate) group: Group,
    /// Unique per source that was ever made.
    pub(crate) owner: Arc<str>,
    pub(crate) lease: Duration,
    /// Whether this member saw the group's manifest: then a group without one is not new.
    pub(crate) has_joined: Arc<AtomicBool>,
}

/// A record as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) revision: u64,
    pub(crate) stored: record::Stored,
    pub(crate) asked: Instant,
    pub(crate) answered: Instant,
}

impl Seen {
    /// The record, if it is one.
    pub(crate) fn record(&self) -> Option<&Record> {
        match &self.stored {
            record::Stored::Record(record) => Some(record),
            record::Stored::Damaged => None,
        }
    }

    /// Who owns it; `None` when it was released or is damaged.
    pub(crate) fn owner(&self) -> Option<&str> {
        self.record().map(|record| record.owner.as_str()).filter(|owner| !owner.is_empty())
    }

    /// How long its owner may be silent, at least.
    pub(crate) fn lease(&self) -> Duration {
        self.record().map_or(Duration::ZERO, |record| Duration::from_millis(record.lease_ms))
    }
}

/// A partition that this member owns from now on.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) revision: u64,
    pub(crate) epoch: Epoch,
    pub(crate) position: Position,
    pub(crate) sent: Instant,
    /// What was found and put right: for health and the log.
    pub(crate) trouble: Option<Error>,
    /// The former owner's consumer.
    pub(crate) former: Option<String>,
    /// The stream, if it was looked up for the claim.
    pub(crate) stream: Option<Arc<TopicStream>>,
}

/// What became of a write of the owner.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Stored; the lease counts from `sent`.
    Accepted {
        revision: u64,
        sent: Instant,
    },
    /// Ours is stored, but its reply was lost: nothing is renewed. `same` if it is this very write.
    Adopted {
        revision: u64,
        same: bool,
    },
    /// Another owner, or another epoch.
    Fenced {
        by: String,
    },
    Failed(Error),
}

impl Member {
    /// How long one attempt of a write may take: several fit into the two thirds of the lease that the owner has.
    pub(crate) fn attempt(&self) -> Duration {
        (self.lease / 6).min(Duration::from_secs(2))
    }

    fn key(&self, topic: &Topic, partition: u32) -> String {
        names::record_key(&self.group, topic, partition)
    }

    /// Makes what is missing of a topic's records, at the start position where the topic is new to the group.
    ///
    /// # Errors
    /// `NotFound` when the topic does not exist and the policy does not create it, or when a record is gone that was there.
    pub(crate) async fn set_up(&self, topic: &Topic, from: StartPosition) -> Result<Arc<TopicStream>, Error> {
        let found = topics::find_or_create(&self.connection, topic, "source").await?;
        let (manifest, revision) = self.manifest_or_new().await?;
        let entry = Entry::new(found.mark, found.partitions);
        let known = manifest.topics.get(topic.as_str()).cloned();
        let first = Position::at(NextOffset(found.first));
        // Nothing: a record that is missing is gone. Else where it begins.
        let begin = match &known {
            Some(known) if *known == entry => None,
            // The topic was made anew; the group is not new.
            Some(_) => Some(first),
            None => Some(Position::at(start::resolve(&self.connection, &found, from).await?)),
        };
        let found = Arc::new(found);
        stream::iter(0..found.partitions)
            .map(|partition| self.make_record(&found, partition, begin.as_ref()))
            .buffered(CONCURRENCY)
            .try_collect::<()>()
            .await?;
        if known.as_ref() != Some(&entry) {
            self.enter(topic, entry, manifest, revision).await?;
        }
        Ok(found)
    }

    async fn make_record(
        &self,
        stream: &TopicStream,
        partition: u32,
        begin: Option<&Position>,
    ) -> Result<(), Error> {
        let key = self.key(&stream.topic, partition);
        let place =
            |error: Error| error.with_context("topic", &stream.topic).with_context("partition", partition);
        loop {
            let revision = match self.look(&stream.topic, partition).await.map_err(place)? {
                Ok(_) => return Ok(()),
                Err(revision) => revision,
            };
            let Some(begin) = begin else {
                return Err(place(
                    Error::new(
                        ErrorKind::NotFound,
                        "the group's record of this partition is gone; restore the bucket, or delete all keys of the \
                         group for it to begin anew",
                    )
                    .with_operation("source")
                    .with_context("group", &self.group)
                    .with_context("key", &key),
                ));
            };
            let record = Record::new(stream.mark, begin, Epoch(0), "");
            let value = Bytes::from(record.encode());
            let timeout = self.connection.request_timeout;
            match self.store.write(&key, value, revision, self.attempt(), timeout).await {
                Written::Accepted { .. } | Written::Conflict => {} // read what is there now, whoever made it
                Written::Failed(error) => return Err(place(error)),
            }
        }
    }

    /// The manifest; none only where the group is new.
    async fn manifest_or_new(&self) -> Result<(Manifest, u64), Error> {
        let (manifest, revision) = self.manifest().await?;
        if !manifest.topics.is_empty() {
            return Ok((manifest, revision));
        }
        if !self.has_joined.load(Ordering::Relaxed) && !self.is_read_by_others().await? {
            return Ok((manifest, revision));
        }
        let (manifest, revision) = self.manifest().await?;
        if !manifest.topics.is_empty() {
            return Ok((manifest, revision));
        }
        Err(Error::new(
            ErrorKind::NotFound,
            "the group has members and no manifest: its state is gone; restore the bucket, or close all members for the \
             group to begin anew",
        )
        .with_operation("source")
        .with_context("group", &self.group)
        .with_context("key", names::manifest_key(&self.group)))
    }

    /// Whether others read topics in this group: each has entered them in the manifest before its first heartbeat.
    ///
    /// A bucket that was just made may stand in the place of one that was deleted under running members. They say so by
    /// their next heartbeat, so these are waited for.
    async fn is_read_by_others(&self) -> Result<bool, Error> {
        let until = if self.store.is_young().await? { self.lease / 4 } else { Duration::ZERO };
        let until = Instant::now() + until;
        loop {
            let listed = self.list(1).await?.changes;
            let reads = |said: &Said| matches!(said, Said::Here(standing) if !standing.claims.is_empty());
            if listed.iter().any(|change| change.member != self.name() && reads(&change.said)) {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            tokio::time::sleep(self.lease / 60).await;
        }
    }

    async fn manifest(&self) -> Result<(Manifest, u64), Error> {
        match self.store.read(&names::manifest_key(&self.group)).await? {
            None => Ok((Manifest::default(), 0)),
            Some(stored) => {
                let manifest = stored.value.as_deref().map(Manifest::decode).transpose();
                let manifest = manifest.map_err(|error| error.with_context("group", &self.group))?;
                if manifest.as_ref().is_some_and(|manifest| !manifest.topics.is_empty()) {
                    self.has_joined.store(true, Ordering::Relaxed);
                }
                Ok((manifest.unwrap_or_default(), stored.revision))
            }
        }
    }

    /// Says in the manifest that all records of a topic were made.
    async fn enter(
        &self,
        topic: &Topic,
        entry: Entry,
        mut manifest: Manifest,
        mut revision: u64,
    ) -> Result<(), Error> {
        let key = names::manifest_key(&self.group);
        while manifest.topics.get(topic.as_str()) != Some(&entry) {
            manifest.topics.insert(topic.to_string(), entry.clone());
            let value = Bytes::from(manifest.encode());
            let timeout = self.connection.request_timeout;
            match self.store.write(&key, value, revision, self.attempt(), timeout).await {
                Written::Accepted { .. } => {
                    self.has_joined.store(true, Ordering::Relaxed);
                    return Ok(());
                }
                Written::Conflict => (manifest, revision) = self.manifest().await?,
                Written::Failed(error) => return Err(error.with_context("group", &self.group)),
            }
        }
        Ok(())
    }

    /// Reads a record: what it says, or the revision to expect where there is none.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; `Unsupported` for the record of a newer version.
    pub(crate) async fn look(&self, topic: &Topic, partition: u32) -> Result<Result<Seen, u64>, Error> {
        let asked = Instant::now();
        let stored = self.store.read(&self.key(topic, partition)).await?;
        let answered = Instant::now();
        Ok(match stored {
            None => Err(0),
            Some(stored) => match stored.value {
                None => Err(stored.revision),
                Some(bytes) => {
                    Ok(Seen { revision: stored.revision, stored: Record::decode(&bytes)?, asked, answered })
                }
            },
        })
    }

    /// Takes a partition over, under the next epoch, unless its record changed since it was seen.
    ///
    /// # Errors
    /// `Fenced` when somebody else wrote meanwhile; `Unavailable` or `Timeout`.
    pub(crate) async fn claim(
        &self,
        stream: &TopicStream,
        partition: u32,
        seen: &Seen,
    ) -> Result<Claimed, Error> {
        let (epoch, position, trouble) = resume(stream, partition, seen);
        let former = match &seen.stored {
            record::Stored::Record(record) if record.consumer > 0 => {
                Some(names::consumer(&self.group, partition, Epoch(record.epoch), record.consumer))
            }
            _ => None,
        };
        let record = self.owned(stream.mark, &position, epoch);
        match self.put(&stream.topic, partition, record, seen.revision, self.lease / 2).await {
            Outcome::Accepted { revision, sent } => {
                Ok(Claimed { revision, epoch, position, sent, trouble, former, stream: None })
            }
            // A claim whose reply was lost renews nothing: claim once more, with the next epoch.
            Outcome::Adopted { .. } => {
                Err(Error::new(ErrorKind::Timeout, "the claim's reply was lost; claim again"))
            }
            Outcome::Fenced { by } => Err(fenced(&stream.topic, partition, &by)),
            Outcome::Failed(error) => Err(error),
        }
    }

    /// A record that says that this member owns the partition.
    pub(crate) fn owned(&self, mark: LogMark, position: &Position, epoch: Epoch) -> Record {
        let lease_ms = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
        Record { lease_ms, ..Record::new(mark, position, epoch, &self.owner) }
    }

    /// Writes a record of this member's, and settles a reply that was lost.
    pub(crate) async fn put(
        &self,
        topic: &Topic,
        partition: u32,
        record: Record,
        revision: u64,
        within: Duration,
    ) -> Outcome {
        let value = Bytes::from(record.encode());
        let key = self.key(topic, partition);
        match self.store.write(&key, value, revision, self.attempt(), within).await {
            Written::Accepted { revision, sent } => Outcome::Accepted { revision, sent },
            Written::Failed(error) => {
                Outcome::Failed(error.with_context("topic", topic).with_context("partition", partition))
            }
            Written::Conflict => match self.look(topic, partition).await {
                Err(error) => Outcome::Failed(error),
                Ok(Err(_)) => Outcome::Fenced { by: "nobody: the record was deleted".into() },
                Ok(Ok(seen)) => match seen.stored {
                    record::Stored::Damaged => {
                        Outcome::Fenced { by: "somebody who damaged the record".into() }
                    }
                    record::Stored::Record(now) if now.epoch == record.epoch && *now.owner == *self.owner => {
                        Outcome::Adopted { revision: seen.revision, same: now == record }
                    }
                    // The release of this very write was stored, and nobody has claimed since.
                    record::Stored::Record(now) if now == record => {
                        Outcome::Adopted { revision: seen.revision, same: true }
                    }
                    record::Stored::Record(now) => Outcome::Fenced { by: now.owner },
                },
            },
        }
    }
}

/// The error of a partition that somebody else owns.
pub(crate) fn fenced(topic: &Topic, partition: u32, by: &str) -> Error {
    Error::new(ErrorKind::Fenced, "somebody else owns the partition now")
        .with_context("topic", topic)
        .with_context("partition", partition)
        .with_context("owner", by)
}

/// What the stream gave up before the group had read it (G8). Of several partitions that share their offsets nobody can tell whose
/// messages those were: it is said to the log alone.
fn unread(stream: &TopicStream, position: &Position) -> Option<String> {
    let mut next = position.watermark.0;
    for &(from, to) in position.finished.runs() {
        if from > next {
            break;
        }
        next = next.max(to);
    }
    if next >= stream.first {
        return None;
    }
    let message = format!(
        "the messages from {next} to {} were removed from the stream before the group had read them; it goes on with what is left",
        stream.first - 1
    );
    if stream.partitions == 1 {
        return Some(message);
    }
    tracing::info!(topic = %stream.topic, "if any of them were of this partition: {message}");
    None
}

/// Where the next owner goes on, and what had to be put right.
fn resume(stream: &TopicStream, partition: u32, seen: &Seen) -> (Epoch, Position, Option<Error>) {
    let first = Position::at(NextOffset(stream.first));
    let trouble = |kind, message: String| {
        Some(
            Error::new(kind, message)
                .with_operation("source")
                .with_context("topic", &stream.topic)
                .with_context("partition", partition),
        )
    };
    let record = match &seen.stored {
        record::Stored::Damaged => {
            // Every claim is a write of the bucket, so no epoch was ever above the revision.
            let message =
                "the group's record is damaged; it begins again at the first message, with duplicates";
            return (Epoch(seen.revision + 1), first, trouble(ErrorKind::Decode, message.into()));
        }
        record::Stored::Record(record) => record,
    };
    let epoch = Epoch(record.epoch).next();
    if !record.is_of(stream.mark) {
        let message = "the topic was made anew; the group begins again at its first message";
        return (epoch, first, trouble(ErrorKind::NotFound, message.into()));
    }
    if record.watermark > stream.last + 1 {
        let message = format!(
            "the group's position {} is beyond the end of the stream {}; it begins again at the first message",
            record.watermark, stream.last
        );
        return (epoch, first, trouble(ErrorKind::NotFound, message));
    }
    let (position, why) = record.position(stream.mark);
    let unread = || unread(stream, &position).and_then(|message| trouble(ErrorKind::NotFound, message));
    let trouble = match why {
        Some(why) => {
            trouble(ErrorKind::Decode, format!("{why}; what finished above the watermark is repeated"))
        }
        None => unread(),
    };
    (epoch, position, trouble)
}
