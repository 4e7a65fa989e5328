//! The conformance suite on a real nats-server.
//!
//! Every case reaches the server through a proxy of its own, so that its connections can be cut and no other's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{Backend, Error, ErrorKind, Topic};
use ebus_nats::{MissingTopic, NatsBackend, NatsConfig};
use ebus_testkit::brokers::Need;
use ebus_testkit::conformance::{self, Harness, Setup, TopicPolicy};
use ebus_testkit::proxy::Proxy;
use tokio::runtime::{Handle, Id};

struct Nats {
    url: String,
    /// By the runtime of a case.
    proxies: Mutex<HashMap<Id, Proxy>>,
}

impl Nats {
    fn proxy(&self) -> Result<Proxy, Error> {
        let case = Handle::current().id();
        if let Some(proxy) = self.proxies.lock().expect("no case panics here").get(&case) {
            return Ok(proxy.clone());
        }
        let upstream = self.url.trim_start_matches("nats://").to_owned();
        let proxy = Proxy::start(upstream)
            .map_err(|why| Error::new(ErrorKind::Unexpected, "no proxy").with_source(why))?;
        self.proxies.lock().expect("no case panics here").insert(case, proxy.clone());
        Ok(proxy)
    }

    async fn backend(
        &self,
        change: impl FnOnce(NatsConfig) -> NatsConfig,
    ) -> Result<Arc<dyn Backend>, Error> {
        let config = NatsConfig::from_url(&self.proxy()?.url("nats"))?;
        Ok(Arc::new(NatsBackend::connect(change(config)).await?))
    }
}

#[async_trait]
impl Harness for Nats {
    async fn connect(&self) -> Result<Arc<dyn Backend>, Error> {
        self.backend(|config| config).await
    }

    async fn connect_with(&self, policy: TopicPolicy) -> Result<Option<Arc<dyn Backend>>, Error> {
        let policy = match policy {
            TopicPolicy::MustExist => MissingTopic::Refuse,
            TopicPolicy::Create { partitions } => MissingTopic::Create { partitions, replicas: 1 },
            _ => return Ok(None),
        };
        self.backend(|config| config.with_missing_topic(policy)).await.map(Some)
    }

    /// The connections of this case are cut three times.
    async fn disturb(&self, _: &Topic) -> bool {
        let Ok(proxy) = self.proxy() else { return false };
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(60)).await;
            proxy.cut_for(Duration::from_millis(20)).await;
        }
        true
    }
}

fn main() {
    conformance::run(|| Setup::shared(Need::Nats, |url| Nats { url, proxies: Mutex::default() }));
}
