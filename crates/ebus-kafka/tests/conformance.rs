//! The conformance suite on a real Apache Kafka.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{Backend, Error};
use ebus_kafka::{KafkaBackend, KafkaConfig};
use ebus_testkit::brokers::Need;
use ebus_testkit::conformance::{self, Harness, Setup, TopicPolicy};

struct Kafka {
    url: String,
}

impl Kafka {
    /// A short session, so that what a killed member leaves is taken over soon.
    async fn backend(
        &self,
        change: impl FnOnce(KafkaConfig) -> KafkaConfig,
    ) -> Result<Arc<dyn Backend>, Error> {
        let config = KafkaConfig::from_url(&self.url)?.with_session_timeout(Duration::from_secs(6));
        Ok(Arc::new(KafkaBackend::connect(change(config)).await?))
    }
}

#[async_trait]
impl Harness for Kafka {
    async fn connect(&self) -> Result<Arc<dyn Backend>, Error> {
        self.backend(|config| config).await
    }

    async fn connect_with(&self, policy: TopicPolicy) -> Result<Option<Arc<dyn Backend>>, Error> {
        let policy = match policy {
            TopicPolicy::MustExist => ebus_kafka::TopicPolicy::MustExist,
            TopicPolicy::Create { partitions } => ebus_kafka::TopicPolicy::Create { partitions, replicas: 1 },
            _ => return Ok(None),
        };
        self.backend(|config| config.with_topic_policy(policy)).await.map(Some)
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(45)
    }
}

fn main() {
    conformance::run(|| Setup::shared(Need::Kafka, |url| Kafka { url }));
}
