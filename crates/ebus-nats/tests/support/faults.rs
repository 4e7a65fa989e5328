//! Faults of what a real nats-server stores, for the conformance suite: of a stream, and of a group's records.

use std::time::Duration;

use async_nats::jetstream::{self, Context, kv};
use async_trait::async_trait;
use ebus_core::{Error, ErrorKind, Group, NextOffset, PartitionId, Topic};
use ebus_testkit::conformance::{Faults, LogFaults};
use futures_util::future::try_join_all;
use serde_json::{Map, Value, json};

/// The most messages that are stored and removed for a gap: a million would take as many.
const MOST: u64 = 1_000;
/// What they and all requests may take.
const WITHIN: Duration = Duration::from_secs(20);

pub(crate) struct NatsFaults {
    url: String,
    bucket: String,
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Unexpected, "a fault could not be made").with_source(error)
}

/// As in names of streams and in keys.
fn escaped(name: &str) -> String {
    name.replace('.', "=")
}

/// The key of a group's record.
fn record(group: &Group, partition: &PartitionId) -> String {
    let (group, topic) = (escaped(group.as_str()), escaped(partition.topic.as_str()));
    format!("p.{group}.{topic}.{}", partition.partition)
}

impl NatsFaults {
    pub(crate) fn new(url: impl Into<String>, bucket: impl Into<String>) -> Self {
        Self { url: url.into(), bucket: bucket.into() }
    }

    async fn context(&self) -> Result<Context, Error> {
        let servers: Vec<&str> = self.url.split(',').collect();
        let mut context = jetstream::new(async_nats::connect(servers).await.map_err(failed)?);
        context.set_timeout(WITHIN);
        Ok(context)
    }

    async fn bucket(&self) -> Result<kv::Store, Error> {
        self.context().await?.get_key_value(&self.bucket).await.map_err(failed)
    }

    /// Changes a group's record as nobody of the group would.
    async fn change(
        &self,
        group: &Group,
        partition: &PartitionId,
        change: impl FnOnce(&mut Map<String, Value>),
    ) -> Result<(), Error> {
        let (bucket, key) = (self.bucket().await?, record(group, partition));
        let entry = bucket.entry(&key).await.map_err(failed)?;
        let gone = || Error::new(ErrorKind::NotFound, format!("there is no record {key}"));
        let mut fields: Map<String, Value> =
            serde_json::from_slice(&entry.ok_or_else(gone)?.value).map_err(failed)?;
        change(&mut fields);
        let changed = serde_json::to_vec(&fields).map_err(failed)?;
        // Over whatever the owner wrote meanwhile: it is a fault.
        bucket.put(&key, changed.into()).await.map_err(failed)?;
        Ok(())
    }
}

#[async_trait]
impl LogFaults for NatsFaults {
    async fn trim(&self, partition: &PartitionId, below: u64) -> Result<(), Error> {
        let stream =
            self.context().await?.get_stream(escaped(partition.topic.as_str())).await.map_err(failed)?;
        let subject = format!("{}.{}", partition.topic, partition.partition);
        stream.purge().filter(subject).sequence(below).await.map_err(failed)?;
        Ok(())
    }

    /// By messages that are deleted again.
    async fn skip_offsets(&self, partition: &PartitionId, offsets: u64) -> Result<(), Error> {
        let context = self.context().await?;
        let subject = format!("{}.{}", partition.topic, partition.partition);
        let mut stored = Vec::new();
        for _ in 0..offsets.min(MOST) {
            stored.push(context.publish(subject.clone(), "deleted".into()).await.map_err(failed)?);
        }
        let mut sequences = Vec::new();
        for stored in stored {
            sequences.push(stored.await.map_err(failed)?.sequence);
        }
        let stream = context.get_stream(escaped(partition.topic.as_str())).await.map_err(failed)?;
        try_join_all(sequences.into_iter().map(|sequence| stream.delete_message(sequence)))
            .await
            .map_err(failed)?;
        Ok(())
    }

    /// Text takes the place of the position in the record; a record is JSON, and bytes that are no text take the place of all of it.
    async fn overwrite_position(
        &self,
        group: &Group,
        partition: &PartitionId,
        watermark: NextOffset,
        text: &[u8],
    ) -> Result<(), Error> {
        match std::str::from_utf8(text) {
            Ok(text) => {
                let (watermark, text) = (json!(watermark.0), json!(text));
                self.change(group, partition, |fields| {
                    fields.insert("watermark".into(), watermark);
                    fields.insert("position".into(), text);
                })
                .await
            }
            Err(_) => {
                let (bucket, bytes) = (self.bucket().await?, text.to_vec());
                bucket.put(record(group, partition), bytes.into()).await.map_err(failed)?;
                Ok(())
            }
        }
    }

    async fn remake_topic(&self, topic: &Topic) -> Result<(), Error> {
        let (context, name) = (self.context().await?, escaped(topic.as_str()));
        let mut stream = context.get_stream(&name).await.map_err(failed)?;
        let config = stream.info().await.map_err(failed)?.config.clone();
        context.delete_stream(&name).await.map_err(failed)?;
        context.create_stream(config).await.map_err(failed)?;
        Ok(())
    }
}

#[async_trait]
impl Faults for NatsFaults {
    /// The record says that nobody owns it: the next write of its owner is refused, and whoever sees it first may claim it.
    async fn lose(&self, group: &Group, partition: &PartitionId) -> Result<(), Error> {
        self.change(group, partition, |fields| drop(fields.insert("owner".into(), json!("")))).await
    }

    async fn commits_fail(&self, _: &Group, _: bool) -> Result<(), Error> {
        Err(Error::new(ErrorKind::Unsupported, "a nats-server refuses no write on request"))
    }
}

/// Why a case cannot run on a real nats-server, and where else it does.
pub(crate) fn lacks(case: &str) -> Option<String> {
    // Whatever would make the server refuse these writes refuses the claim of the next owner too: it is the same record.
    let d07 = "a commit is the write that hands a partition over; see p3_a_write_whose_reply_is_lost_costs_no_ownership and d12_...";
    let c10 = "a nats-server refuses no write on request; what is lost with a reply is that test's too";
    let whys = [("d07", d07), ("c10_while_commits_are_refused", c10)];
    whys.into_iter().find(|(name, _)| case.starts_with(name)).map(|(_, why)| why.to_owned())
}
