//! The conformance suite on a real nats-server.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{Backend, Error, ErrorKind};
use ebus_nats::{MissingTopic, NatsBackend, NatsConfig};
use ebus_testkit::brokers::{self, Home, Need, launch_nats};
use ebus_testkit::conformance::{
    self, Faults, Harness, Link, LogFaults, OwnBroker, OwnServer, Setup, TopicPolicy,
};
use ebus_testkit::proxy::Line;

#[path = "support/faults.rs"]
mod faults;

use faults::NatsFaults;

struct Nats {
    url: String,
}

impl Nats {
    async fn backend(
        &self,
        url: &str,
        change: impl FnOnce(NatsConfig) -> NatsConfig,
    ) -> Result<Arc<dyn Backend>, Error> {
        Ok(Arc::new(NatsBackend::connect(change(NatsConfig::from_url(url)?)).await?))
    }

    fn made(&self) -> Arc<NatsFaults> {
        Arc::new(NatsFaults::new(&self.url, NatsConfig::new([&self.url]).bucket))
    }
}

#[async_trait]
impl Harness for Nats {
    async fn connect(&self) -> Result<Arc<dyn Backend>, Error> {
        self.backend(&self.url, |config| config).await
    }

    async fn connect_with(&self, policy: TopicPolicy) -> Result<Option<Arc<dyn Backend>>, Error> {
        let policy = match policy {
            TopicPolicy::MustExist => MissingTopic::Refuse,
            TopicPolicy::Create { partitions } => MissingTopic::Create { partitions, replicas: 1 },
            _ => return Ok(None),
        };
        self.backend(&self.url, |config| config.with_missing_topic(policy)).await.map(Some)
    }

    fn has_links(&self) -> bool {
        true
    }

    fn has_leases(&self) -> bool {
        true
    }

    fn publish_deadline(&self) -> Duration {
        NatsConfig::new([&self.url]).publish_timeout
    }

    async fn connect_linked(&self) -> Result<Option<(Arc<dyn Backend>, Arc<dyn Link>)>, Error> {
        let nodes = self.url.trim_start_matches("nats://").split(',');
        let line =
            Line::to(nodes).map_err(|why| Error::new(ErrorKind::Unexpected, "no proxy").with_source(why))?;
        let backend = self.backend(&line.url("nats"), |config| config).await?;
        Ok(Some((backend, Arc::new(line))))
    }

    fn faults(&self) -> Option<Arc<dyn Faults>> {
        Some(self.made())
    }

    fn log_faults(&self) -> Option<Arc<dyn LogFaults>> {
        Some(self.made())
    }

    fn lacks(&self, case: &str) -> Option<String> {
        faults::lacks(case)
    }

    async fn own_broker(&self, nodes: usize) -> Result<Option<Arc<dyn OwnBroker>>, Error> {
        let launch = move |home: &Home| launch_nats(home, brokers::NatsConfig::default().with_nodes(nodes));
        OwnServer::launch(Need::Nats, launch, |server| Arc::new(Self { url: server.url() })).await
    }
}

fn main() {
    conformance::run(|| Setup::shared(Need::Nats, |url| Nats { url }));
}
