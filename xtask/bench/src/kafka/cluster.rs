//! The broker, and topics that go away after the benchmark.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::work::PARTITIONS;

const URL: &str = "EBUS_KAFKA_URL";
const WITHIN: Duration = Duration::from_secs(10);

/// A broker to measure on.
pub(crate) struct Cluster {
    pub(crate) url: String,
    /// As rdkafka takes it.
    pub(crate) bootstrap: String,
    topics: Vec<String>,
}

impl Cluster {
    pub(crate) fn find() -> Result<Self> {
        let url = std::env::var(URL).unwrap_or_default();
        let Some(bootstrap) = url.strip_prefix("kafka://") else {
            bail!(
                "{URL} does not name a broker as kafka://host:port; run cargo xtask bench, which starts one"
            );
        };
        ensure!(
            !bootstrap.contains(['?', '@', '/']),
            "{URL} has settings; the raw side takes only kafka://host:port"
        );
        let bootstrap = bootstrap.to_owned();
        Ok(Self { url, bootstrap, topics: Vec::new() })
    }

    /// The settings of every raw client.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.bootstrap);
        client
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        Ok(self.client().create()?)
    }

    /// A new topic.
    pub(crate) async fn create_topic(&mut self) -> Result<String> {
        let name = format!("ebus-bench-{}-{}", std::process::id(), self.topics.len());
        let partitions = i32::try_from(PARTITIONS)?;
        // What was deleted is gone from the disk before the next round.
        let topic =
            NewTopic::new(&name, partitions, TopicReplication::Fixed(1)).set("file.delete.delay.ms", "1000");
        for result in self.admin()?.create_topics([&topic], &options()).await? {
            result.map_err(|(name, code)| anyhow::anyhow!("could not create {name}: {code}"))?;
        }
        self.topics.push(name.clone());
        self.until_known(&name).await?;
        Ok(name)
    }

    /// What is created the broker knows a moment later.
    async fn until_known(&self, name: &str) -> Result<()> {
        let (admin, name) = (self.admin()?, name.to_owned());
        tokio::task::spawn_blocking(move || {
            let end = Instant::now() + WITHIN;
            loop {
                let metadata = admin.inner().fetch_metadata(Some(&name), WITHIN)?;
                let known = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
                if known == PARTITIONS as usize {
                    return Ok(());
                }
                ensure!(Instant::now() < end, "{name} has {known} partitions after {WITHIN:?}");
                std::thread::sleep(Duration::from_millis(10));
            }
        })
        .await?
    }

    pub(crate) async fn delete_topic(&mut self, name: &str) -> Result<()> {
        self.topics.retain(|topic| topic != name);
        for result in self.admin()?.delete_topics(&[name], &options()).await? {
            result.map_err(|(name, code)| anyhow::anyhow!("could not delete {name}: {code}"))?;
        }
        Ok(())
    }

    pub(crate) async fn delete_topics(&mut self) -> Result<()> {
        for name in self.topics.clone() {
            self.delete_topic(&name).await?;
        }
        Ok(())
    }

    /// How many messages each partition of a topic has.
    pub(crate) async fn lengths(&self, topic: &str) -> Result<Vec<i64>> {
        let consumer: BaseConsumer = self.client().create()?;
        let topic = topic.to_owned();
        tokio::task::spawn_blocking(move || {
            (0..i32::try_from(PARTITIONS)?)
                .map(|partition| {
                    let (low, high) = consumer
                        .fetch_watermarks(&topic, partition, WITHIN)
                        .with_context(|| format!("could not look at partition {partition} of {topic}"))?;
                    Ok(high - low)
                })
                .collect()
        })
        .await?
    }

    /// Sees that a topic has `n` messages.
    pub(crate) async fn check_length(&self, topic: &str, n: usize) -> Result<()> {
        let lengths = self.lengths(topic).await?;
        let all: i64 = lengths.iter().sum();
        ensure!(usize::try_from(all)? == n, "the topic has {all} messages, not {n}: {lengths:?}");
        Ok(())
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(WITHIN)).request_timeout(Some(WITHIN))
}
