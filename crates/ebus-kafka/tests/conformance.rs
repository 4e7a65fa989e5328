//! The conformance suite on a real Apache Kafka.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{Backend, Error, ErrorKind};
use ebus_kafka::{KafkaBackend, KafkaConfig};
use ebus_testkit::brokers::{self, Home, Link as Way, Need, Server, launch_kafka};
use ebus_testkit::conformance::{self, Harness, Link, LogFaults, OwnBroker, OwnServer, Setup, TopicPolicy};
use ebus_testkit::proxy::Line;

#[path = "support/lacks.rs"]
mod lacks;
#[path = "support/log_faults.rs"]
mod log_faults;

use log_faults::KafkaLogFaults;

/// For the members of one case that can be cut off.
const LINKS_OF_ITS_OWN: usize = 4;

struct Kafka {
    url: String,
    /// Ways through proxies, each for one connection at a time.
    ways: Vec<Way>,
}

impl Kafka {
    fn of(server: &Server) -> Self {
        Self { url: server.url(), ways: server.links() }
    }

    fn shared() -> Setup {
        match Need::Kafka.links() {
            Ok(ways) => Setup::shared(Need::Kafka, |url| Self { url, ways }),
            Err(reason) => Setup::Missing { reason, required: true },
        }
    }

    /// A short session, so that what a killed member leaves is taken over soon.
    async fn backend(
        &self,
        url: &str,
        change: impl FnOnce(KafkaConfig) -> KafkaConfig,
    ) -> Result<Arc<dyn Backend>, Error> {
        let config = KafkaConfig::from_url(url)?.with_session_timeout(Duration::from_secs(6));
        Ok(Arc::new(KafkaBackend::connect(change(config)).await?))
    }

    /// The first network that nobody uses, in this process or another.
    async fn line(&self) -> Result<Line, Error> {
        loop {
            let line = Line::first_free(self.ways.iter().map(Way::routes));
            let line = line.map_err(|why| Error::new(ErrorKind::Unexpected, "no proxy").with_source(why))?;
            if let Some(line) = line {
                return Ok(line);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[async_trait]
impl Harness for Kafka {
    async fn connect(&self) -> Result<Arc<dyn Backend>, Error> {
        self.backend(&self.url, |config| config).await
    }

    async fn connect_with(&self, policy: TopicPolicy) -> Result<Option<Arc<dyn Backend>>, Error> {
        let policy = match policy {
            TopicPolicy::MustExist => ebus_kafka::TopicPolicy::MustExist,
            TopicPolicy::Create { partitions } => ebus_kafka::TopicPolicy::Create { partitions, replicas: 1 },
            _ => return Ok(None),
        };
        self.backend(&self.url, |config| config.with_topic_policy(policy)).await.map(Some)
    }

    fn has_links(&self) -> bool {
        !self.ways.is_empty()
    }

    async fn connect_linked(&self) -> Result<Option<(Arc<dyn Backend>, Arc<dyn Link>)>, Error> {
        if self.ways.is_empty() {
            return Ok(None);
        }
        let line = self.line().await?;
        let backend = self.backend(&line.url("kafka"), |config| config).await?;
        Ok(Some((backend, Arc::new(line))))
    }

    fn log_faults(&self) -> Option<Arc<dyn LogFaults>> {
        Some(Arc::new(KafkaLogFaults::new(&self.url)))
    }

    fn lacks(&self, case: &str) -> Option<String> {
        lacks::on_request(case)
    }

    async fn own_broker(&self, nodes: usize) -> Result<Option<Arc<dyn OwnBroker>>, Error> {
        let config = brokers::KafkaConfig::default().with_nodes(nodes).with_links(LINKS_OF_ITS_OWN);
        let launch = move |home: &Home| launch_kafka(home, config);
        OwnServer::launch(Need::Kafka, launch, |server| Arc::new(Self::of(server))).await
    }
}

fn main() {
    conformance::run(Kafka::shared);
}
