//! One connection to a [`MemoryBroker`], as every backend has it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{
    Backend, Capability, Committed, Epoch, Error, ErrorKind, Group, Parking, Publisher, ReadRange, Reader,
    Source, SourceOptions, Topic, TopicInfo, TopicSpec,
};

use crate::broker::MemoryBroker;
use crate::config::{MemoryConfig, TopicPolicy};
use crate::connection::Connection;
use crate::error;
use crate::parking::MemoryParking;
use crate::producer::MemoryProducer;
use crate::reader::MemoryReader;
use crate::source::MemorySource;

/// One connection to a broker in this process. A clone is the same connection.
///
/// Closing it ends its publishers and sources; the broker keeps topics, groups and positions for the next
/// [`MemoryBroker::connect`].
#[derive(Debug, Clone)]
pub struct MemoryBackend {
    broker: MemoryBroker,
    connection: Arc<Connection>,
}

impl MemoryBackend {
    /// A connection to a broker of its own.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the setting.
    pub fn new(config: MemoryConfig) -> Result<Self, Error> {
        Ok(MemoryBroker::new(config)?.connect())
    }

    pub(crate) fn on(broker: MemoryBroker, connection: Connection) -> Self {
        Self { broker, connection: Arc::new(connection) }
    }

    /// The broker behind it.
    pub fn broker(&self) -> &MemoryBroker {
        &self.broker
    }

    /// A publisher that is not erased: its future costs no box.
    pub fn producer(&self) -> MemoryProducer {
        MemoryProducer::new(self.broker.clone(), self.connection.clone())
    }

    fn check_open(&self, operation: &'static str) -> Result<(), Error> {
        if self.connection.is_closed() { Err(Error::closed(operation)) } else { Ok(()) }
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn capability(&self) -> Capability {
        let config = self.broker.config();
        Capability::new("memory", config.max_message_bytes)
            .with_several_members(true)
            .with_parks_keys(true)
            .with_creates_topics(matches!(config.topic_policy, TopicPolicy::Create { .. }))
            .with_max_idle(config.max_idle)
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(self.producer())
    }

    async fn source(&self, options: SourceOptions) -> Result<Box<dyn Source>, Error> {
        self.check_open("source")?;
        Ok(Box::new(MemorySource::join(self.broker.clone(), &self.connection, options)?))
    }

    async fn create_topic(&self, spec: &TopicSpec) -> Result<TopicInfo, Error> {
        self.check_open("create_topic")?;
        let refused = |kind, message| {
            Err(Error::new(kind, message).with_operation("create_topic").with_context("topic", &spec.topic))
        };
        match spec.replicas {
            0 => refused(ErrorKind::ConfigInvalid, "replicas must be at least 1"),
            1 => Ok(self.broker.create(&spec.topic, spec.partitions)?.info()),
            _ => refused(ErrorKind::Unsupported, "a broker in this process keeps one replica; ask for 1"),
        }
    }

    async fn describe_topic(&self, topic: &Topic) -> Result<TopicInfo, Error> {
        self.check_open("describe_topic")?;
        let found = self.broker.topic(topic);
        found.map(|found| found.info()).ok_or_else(|| error::no_such_topic("describe_topic", topic))
    }

    async fn read(&self, range: ReadRange) -> Result<Box<dyn Reader>, Error> {
        self.check_open("read")?;
        let topic =
            self.broker.topic(&range.topic).ok_or_else(|| error::no_such_topic("read", &range.topic))?;
        let log = topic.partitions.get(range.partition as usize).ok_or_else(|| {
            error::no_such_partition("read", &range.topic, range.partition, topic.partitions.len())
        })?;
        Ok(Box::new(MemoryReader::new(log.clone(), range.from, range.to.0)))
    }

    async fn committed(&self, group: &Group, topic: &Topic) -> Result<Vec<Committed>, Error> {
        self.check_open("committed")?;
        let found = self.broker.topic(topic).ok_or_else(|| error::no_such_topic("committed", topic))?;
        let group = self.broker.group(group);
        let of = |log: &Arc<crate::log::Log>| {
            let kept = group.as_ref().and_then(|group| group.committed(log));
            let (position, epoch) =
                kept.map_or((None, Epoch(0)), |(position, epoch)| (Some(position), epoch));
            Committed::new(log.id.partition, position, epoch)
        };
        Ok(found.partitions.iter().map(of).collect())
    }

    async fn parking(&self, group: &Group) -> Result<Arc<dyn Parking>, Error> {
        self.check_open("parking")?;
        let (broker, connection) = (self.broker.clone(), self.connection.clone());
        Ok(Arc::new(MemoryParking::open(broker, connection, group.clone())?))
    }

    async fn existing_parking(&self, group: &Group) -> Result<Arc<dyn Parking>, Error> {
        self.check_open("parking")?;
        let (broker, connection) = (self.broker.clone(), self.connection.clone());
        Ok(Arc::new(MemoryParking::existing(broker, connection, group.clone())?))
    }

    /// Ends publishing at once, waits until every message that waits for room is stored, then ends the sources.
    ///
    /// # Cancel safety
    /// Dropped before it resolved: publishing has ended; call it again for the rest.
    async fn close(&self, within: Duration) -> Result<(), Error> {
        self.connection.close(&self.broker, within).await
    }
}
