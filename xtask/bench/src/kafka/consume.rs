//! Catching up: a topic full of messages, read by a new group of one member, positions committed.

use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use ebus_core::{Backend, Topic};
use ebus_kafka::{KafkaBackend, KafkaConfig};

use crate::kafka::cluster::Cluster;
use crate::kafka::raw;
use crate::ours;
use crate::runner::Benchmark;
use crate::work::{PARTITIONS, messages};

const MESSAGES: usize = 3_000_000;

/// Reading from Kafka.
#[derive(Default)]
pub(crate) struct Consume(Option<Prepared>);

struct Prepared {
    cluster: Cluster,
    topic: String,
    lengths: Vec<i64>,
    groups: usize,
}

impl Consume {
    fn prepared(&mut self) -> Result<(&Prepared, String)> {
        let prepared = self.0.as_mut().context("not prepared")?;
        prepared.groups += 1;
        let group = format!("{}-{}", prepared.topic, prepared.groups);
        Ok((prepared, group))
    }
}

#[async_trait]
impl Benchmark for Consume {
    fn name(&self) -> &'static str {
        "kafka-consume"
    }

    fn messages(&self) -> usize {
        MESSAGES
    }

    fn work(&self) -> String {
        format!(
            "{MESSAGES} stored messages of {PARTITIONS} partitions, 10,000 keys, 230 bytes, lz4; a new group for each run"
        )
    }

    fn ours_is(&self) -> String {
        let config = KafkaConfig::new("");
        format!(
            "{}; prefetch {} messages and {} bytes per partition, fetch.queue.backoff.ms=5",
            ours::SETTINGS,
            config.prefetch_messages,
            config.prefetch_bytes
        )
    }

    fn baseline_is(&self) -> String {
        format!(
            "rdkafka BaseConsumer, one thread, key and payload owned as Bytes of a slab, an asynchronous commit every \
             200 ms; {}",
            raw::shown(&raw::CONSUMER)
        )
    }

    async fn prepare(&mut self) -> Result<()> {
        let mut cluster = Cluster::find()?;
        let topic = cluster.create_topic().await?;
        let client = cluster.client();
        let prepared =
            self.0.insert(Prepared { cluster, topic: topic.clone(), lengths: Vec::new(), groups: 0 });
        let name = topic.clone();
        tokio::task::spawn_blocking(move || raw::publish(client, &name, messages(), MESSAGES)).await??;
        prepared.cluster.check_length(&topic, MESSAGES).await?;
        prepared.lengths = prepared.cluster.lengths(&topic).await?;
        Ok(())
    }

    async fn ours(&mut self) -> Result<f64> {
        let (Prepared { cluster, topic, .. }, group) = self.prepared()?;
        let backend = KafkaBackend::connect(KafkaConfig::from_url(&cluster.url)?).await?;
        let rate = ours::consume(&backend, &Topic::new(topic.as_str())?, &group, MESSAGES).await?;
        backend.close(Duration::from_secs(10)).await?;
        Ok(rate)
    }

    async fn baseline(&mut self) -> Result<f64> {
        let (Prepared { cluster, topic, lengths, .. }, group) = self.prepared()?;
        let (client, topic, lengths) = (cluster.client(), topic.clone(), lengths.clone());
        tokio::task::spawn_blocking(move || raw::consume(client, &topic, &group, &lengths)).await?
    }

    async fn clean_up(&mut self) -> Result<()> {
        match self.0.take() {
            Some(mut prepared) => prepared.cluster.delete_topics().await,
            None => Ok(()),
        }
    }
}
