//! The server, and streams that go away after the benchmark.

use anyhow::{Result, ensure};
use async_nats::jetstream::stream::{Config, StorageType};
use async_nats::jetstream::{self, Context};
use ebus_core::{Backend, Topic, TopicSpec};
use ebus_nats::{NatsBackend, NatsConfig};

use crate::work::PARTITIONS;

const URL: &str = "EBUS_NATS_URL";

/// A server to measure on.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) client: async_nats::Client,
    pub(crate) jetstream: Context,
    streams: Vec<String>,
}

impl Server {
    pub(crate) async fn find() -> Result<Self> {
        let url = std::env::var(URL).unwrap_or_default();
        ensure!(
            url.starts_with("nats://") && !url.contains('?'),
            "{URL} does not name a server as nats://host:port; run cargo xtask bench, which starts one"
        );
        let client = async_nats::connect(&url).await?;
        Ok(Self { url, jetstream: jetstream::new(client.clone()), client, streams: Vec::new() })
    }

    /// What our side connects with. Its groups are kept in a bucket that goes away, too.
    pub(crate) fn config(&self) -> Result<NatsConfig> {
        Ok(NatsConfig::from_url(&self.url)?.with_bucket(bucket()))
    }

    fn name(&self) -> String {
        format!("ebus-bench-{}-{}", std::process::id(), self.streams.len())
    }

    /// A new topic of ours.
    pub(crate) async fn create_topic(&mut self, backend: &NatsBackend) -> Result<Topic> {
        let name = self.name();
        let topic = Topic::new(name.as_str())?;
        self.streams.push(name);
        backend.create_topic(&TopicSpec::new(topic.clone(), PARTITIONS)).await?;
        Ok(topic)
    }

    /// A new stream with a subject for each partition, as a topic of ours has.
    pub(crate) async fn create_stream(&mut self) -> Result<String> {
        let name = self.name();
        let subjects = (0..PARTITIONS).map(|partition| subject(&name, partition)).collect();
        let config = Config {
            name: name.clone(),
            subjects,
            storage: StorageType::File,
            num_replicas: 1,
            ..Config::default()
        };
        self.jetstream.create_stream(config).await?;
        self.streams.push(name.clone());
        Ok(name)
    }

    /// Sees that a stream has `n` messages.
    pub(crate) async fn check_length(&self, stream: &str, n: usize) -> Result<()> {
        let all = self.jetstream.get_stream(stream).await?.cached_info().state.messages;
        ensure!(all == n as u64, "the stream has {all} messages, not {n}");
        Ok(())
    }

    pub(crate) async fn delete_stream(&mut self, name: &str) -> Result<()> {
        self.jetstream.delete_stream(name).await?;
        Ok(())
    }

    pub(crate) async fn delete_streams(&mut self) {
        self.streams.push(format!("KV_{}", bucket()));
        for name in &self.streams {
            // Most are gone by now.
            let _ = self.jetstream.delete_stream(name).await;
        }
    }
}

/// Where the messages of a partition go.
pub(crate) fn subject(stream: &str, partition: u32) -> String {
    format!("{stream}.{partition}")
}

fn bucket() -> String {
    format!("ebus-bench-{}", std::process::id())
}
