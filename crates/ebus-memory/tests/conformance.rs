//! The conformance suite on the in-process broker.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{Backend, Error, Topic};
use ebus_memory::{MemoryBroker, MemoryConfig};
use ebus_testkit::conformance::{self, Harness, Setup, TopicPolicy};

struct Memory(MemoryBroker);

#[async_trait]
impl Harness for Memory {
    async fn connect(&self) -> Result<Arc<dyn Backend>, Error> {
        Ok(Arc::new(self.0.connect()))
    }

    async fn connect_with(&self, policy: TopicPolicy) -> Result<Option<Arc<dyn Backend>>, Error> {
        let policy = match policy {
            TopicPolicy::MustExist => ebus_memory::TopicPolicy::MustExist,
            TopicPolicy::Create { partitions } => ebus_memory::TopicPolicy::Create { partitions },
            _ => return Ok(None),
        };
        let broker = MemoryBroker::new(MemoryConfig::default().with_topic_policy(policy))?;
        Ok(Some(Arc::new(broker.connect())))
    }

    /// Publishes fail, then are stored twice, then their receipts come late.
    async fn disturb(&self, topic: &Topic) -> bool {
        let faults = self.0.faults();
        let pause = Duration::from_millis(20);
        let trouble = async {
            faults.unavailable(topic, true)?;
            tokio::time::sleep(pause).await;
            faults.unavailable(topic, false)?;
            faults.store_twice(topic, 10)?;
            faults.delay_receipts(topic, pause)?;
            tokio::time::sleep(pause).await;
            faults.delay_receipts(topic, Duration::ZERO)
        };
        let made: Result<(), Error> = trouble.await;
        made.is_ok()
    }
}

fn main() {
    conformance::run(|| match MemoryBroker::new(MemoryConfig::default()) {
        Ok(broker) => Setup::Ready(Arc::new(Memory(broker))),
        Err(error) => Setup::Missing { reason: error.to_string(), required: true },
    });
}
