//! The conformance suite on the in-process broker.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{Backend, Error, ErrorKind, Group, NextOffset, PartitionId, Topic};
use ebus_memory::{MemoryBroker, MemoryConfig};
use ebus_testkit::conformance::{self, Faults, Harness, LogFaults, OwnBroker, Setup, TopicPolicy};

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

    fn faults(&self) -> Option<Arc<dyn Faults>> {
        Some(Arc::new(MemoryFaults(self.0.faults())))
    }

    fn log_faults(&self) -> Option<Arc<dyn LogFaults>> {
        Some(Arc::new(MemoryFaults(self.0.faults())))
    }

    async fn own_broker(&self, nodes: usize) -> Result<Option<Arc<dyn OwnBroker>>, Error> {
        if nodes > 1 {
            return Ok(None);
        }
        let broker = MemoryBroker::new(MemoryConfig::default())?;
        Ok(Some(Arc::new(OneBroker { broker, topics: Mutex::default() })))
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

/// A broker that takes nothing while it is down.
struct OneBroker {
    broker: MemoryBroker,
    topics: Mutex<Vec<Topic>>,
}

impl OneBroker {
    fn set_down(&self, down: bool) -> Result<(), Error> {
        let topics = self.topics.lock().expect("nobody panics here");
        topics.iter().try_for_each(|topic| self.broker.faults().unavailable(topic, down))
    }
}

#[async_trait]
impl OwnBroker for OneBroker {
    fn harness(&self) -> Arc<dyn Harness> {
        Arc::new(Memory(self.broker.clone()))
    }

    fn nodes(&self) -> usize {
        1
    }

    async fn stop(&self, _: usize) -> Result<(), Error> {
        self.set_down(true)
    }

    async fn kill(&self, _: usize) -> Result<(), Error> {
        self.set_down(true)
    }

    async fn start(&self, _: usize) -> Result<(), Error> {
        self.set_down(false)
    }

    async fn freeze(&self, _: usize) -> Result<(), Error> {
        Err(Error::new(ErrorKind::Unsupported, "a broker in this process is never frozen"))
    }

    async fn thaw(&self, _: usize) -> Result<(), Error> {
        Ok(())
    }

    fn has_topic(&self, topic: &Topic) {
        self.topics.lock().expect("nobody panics here").push(topic.clone());
    }
}

struct MemoryFaults(ebus_memory::Faults);

#[async_trait]
impl Faults for MemoryFaults {
    async fn lose(&self, group: &Group, partition: &PartitionId) -> Result<(), Error> {
        self.0.lose(group, partition)
    }

    async fn commits_fail(&self, group: &Group, fail: bool) -> Result<(), Error> {
        self.0.commits_fail(group, fail)
    }
}

#[async_trait]
impl LogFaults for MemoryFaults {
    async fn trim(&self, partition: &PartitionId, below: u64) -> Result<(), Error> {
        self.0.trim(partition, below)
    }

    async fn skip_offsets(&self, partition: &PartitionId, offsets: u64) -> Result<(), Error> {
        self.0.skip_offsets(partition, offsets)
    }

    async fn overwrite_position(
        &self,
        group: &Group,
        partition: &PartitionId,
        watermark: NextOffset,
        text: &[u8],
    ) -> Result<(), Error> {
        self.0.overwrite_position(group, partition, watermark, text)
    }

    async fn remake_topic(&self, topic: &Topic) -> Result<(), Error> {
        self.0.remake_topic(topic)
    }
}

fn main() {
    conformance::run(|| match MemoryBroker::new(MemoryConfig::default()) {
        Ok(broker) => Setup::Ready(Arc::new(Memory(broker))),
        Err(error) => Setup::Missing { reason: error.to_string(), required: true },
    });
}
