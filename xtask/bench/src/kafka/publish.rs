//! Publishing: durable and idempotent, keyed, every delivery report awaited.

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

const MESSAGES: usize = 1_000_000;

/// Publishing to Kafka.
#[derive(Default)]
pub(crate) struct Publish(Option<Cluster>);

impl Publish {
    fn cluster(&mut self) -> Result<&mut Cluster> {
        self.0.as_mut().context("not prepared")
    }
}

#[async_trait]
impl Benchmark for Publish {
    fn name(&self) -> &'static str {
        "kafka-publish"
    }

    fn messages(&self) -> usize {
        MESSAGES
    }

    fn work(&self) -> String {
        format!(
            "{MESSAGES} messages to {PARTITIONS} partitions, 10,000 keys, 230 bytes, from one task; a topic for each run"
        )
    }

    fn ours_is(&self) -> String {
        let config = KafkaConfig::new("");
        format!(
            "KafkaProducer (not erased), every receipt awaited; defaults: acks=all, idempotent, {:?}, linger {:?}, \
             batch {} bytes, {} messages in flight",
            config.compression, config.linger, config.batch_bytes, config.in_flight_messages
        )
    }

    fn baseline_is(&self) -> String {
        format!(
            "rdkafka BaseProducer polled by the thread that publishes, delivery reports counted; {}",
            raw::shown(&raw::PRODUCER)
        )
    }

    async fn prepare(&mut self) -> Result<()> {
        self.0 = Some(Cluster::find()?);
        Ok(())
    }

    async fn ours(&mut self) -> Result<f64> {
        let cluster = self.cluster()?;
        let name = cluster.create_topic().await?;
        let config = KafkaConfig::from_url(&cluster.url)?;
        let window = config.in_flight_messages;
        let backend = KafkaBackend::connect(config).await?;
        let rate =
            ours::publish(backend.producer(), Topic::new(name.as_str())?, messages(), MESSAGES, window)
                .await?;
        backend.close(Duration::from_secs(10)).await?;
        cluster.check_length(&name, MESSAGES).await?;
        cluster.delete_topic(&name).await?;
        Ok(rate)
    }

    async fn baseline(&mut self) -> Result<f64> {
        let cluster = self.cluster()?;
        let name = cluster.create_topic().await?;
        let (client, topic) = (cluster.client(), name.clone());
        let rate =
            tokio::task::spawn_blocking(move || raw::publish(client, &topic, messages(), MESSAGES)).await??;
        cluster.check_length(&name, MESSAGES).await?;
        cluster.delete_topic(&name).await?;
        Ok(rate)
    }

    async fn clean_up(&mut self) -> Result<()> {
        match self.0.take() {
            Some(mut cluster) => cluster.delete_topics().await,
            None => Ok(()),
        }
    }
}
