//! The connection to NATS as a [`Backend`] (G1, G8, G9).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{
    Backend, Capability, Committed, Epoch, Error, ErrorKind, FOR_EVER, Group, NextOffset, Parking,
    PartitionInfo, Publisher, ReadRange, Reader, Source, SourceOptions, Topic, TopicInfo, TopicSpec,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{OnceCell, watch};
use tokio::time::Instant;

use crate::config::{MissingTopic, NatsConfig};
use crate::connection::Connection;
use crate::group::Member;
use crate::parking::NatsParking;
use crate::producer::{self, NatsProducer, Publishing};
use crate::raw::{self, Which};
use crate::reader::NatsReader;
use crate::store::Store;
use crate::stream::{self as topics, TopicStream};
use crate::{error, join};

/// Requests that are made at once for the partitions of a topic.
const CONCURRENCY: usize = 32;

/// A connection to NATS JetStream.
///
/// Publishers share one connection; every source and reader has its own, so that commits and heartbeats never wait behind
/// publishes, and what is read harms no publisher.
/// Needs a tokio runtime.
pub struct NatsBackend {
    connection: Connection,
    config: Arc<NatsConfig>,
    publishing: Arc<Publishing>,
    closing: OnceCell<Result<(), Error>>,
    closed: watch::Sender<bool>,
}

impl NatsBackend {
    /// Connects.
    ///
    /// # Errors
    /// `ConfigInvalid` for settings that are not valid, all at once, before any connection; `Unavailable` when no server
    /// answers in time; `Denied` for wrong credentials or TLS; `Unsupported` for a server before 2.9.
    pub async fn connect(config: NatsConfig) -> Result<Self, Error> {
        config.validate()?;
        let config = Arc::new(config);
        let connection = Connection::open(config.clone(), "publisher").await?;
        let publishing = Publishing::start(connection.clone()).await?;
        let (closed, _) = watch::channel(false);
        Ok(Self { connection, config, publishing, closing: OnceCell::new(), closed })
    }

    /// A publisher that is not erased: no box per message.
    pub fn producer(&self) -> NatsProducer {
        NatsProducer::new(self.publishing.clone())
    }

    fn open(&self, operation: &'static str) -> Result<(), Error> {
        if self.publishing.is_closed() { Err(Error::closed(operation)) } else { Ok(()) }
    }

    async fn partition_info(&self, found: &TopicStream, partition: u32) -> Result<PartitionInfo, Error> {
        const OPERATION: &str = "describe_topic";
        let nothing = PartitionInfo { earliest: found.last + 1, end: NextOffset(found.last + 1) };
        let Some(filters) = &found.filters else {
            return Ok(PartitionInfo { earliest: found.first, end: NextOffset(found.last + 1) });
        };
        let filter = &filters[partition as usize];
        let offset = async |which| {
            let raw = raw::get(&self.connection, &found.name, &which, OPERATION).await?;
            let raw = raw.map_err(|why| error::api(&why, OPERATION))?;
            Ok::<_, Error>(raw.map(|raw| raw.offset))
        };
        let Some(last) = offset(Which::last(filter)).await? else { return Ok(nothing) };
        // None if it went between the two requests.
        let first = offset(Which::next(filter, found.first)).await?;
        Ok(PartitionInfo { earliest: first.unwrap_or(last), end: NextOffset::after(last) })
    }

    async fn info(&self, found: &TopicStream) -> Result<TopicInfo, Error> {
        let partitions =
            stream::iter((0..found.partitions).map(|p| self.partition_info(found, p)).collect::<Vec<_>>())
                .buffered(CONCURRENCY)
                .try_collect()
                .await
                .map_err(|error: Error| error.with_context("topic", &found.topic))?;
        Ok(TopicInfo::new(found.topic.clone(), partitions))
    }
}

#[async_trait]
impl Backend for NatsBackend {
    fn capability(&self) -> Capability {
        let max = producer::max_message_bytes(self.connection.client.max_payload());
        Capability::new("nats", max)
            .with_several_members(true)
            .with_durable(true)
            .with_deduplicates(true)
            .with_parks_keys(true)
            .with_creates_topics(self.config.missing_topic != MissingTopic::Refuse)
            .with_max_idle(join::lease(&self.connection) * 2 / 5)
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(self.producer())
    }

    async fn source(&self, options: SourceOptions) -> Result<Box<dyn Source>, Error> {
        self.open("source")?;
        let mut closed = self.closed.subscribe();
        let joining = join::join(self.config.clone(), options, self.closed.subscribe());
        tokio::select! {
            joined = joining => joined,
            _ = closed.wait_for(|closed| *closed) => Err(Error::closed("source")),
        }
    }

    async fn create_topic(&self, spec: &TopicSpec) -> Result<TopicInfo, Error> {
        self.open("create_topic")?;
        let found = topics::create(&self.connection, spec).await?;
        self.info(&found).await
    }

    async fn describe_topic(&self, topic: &Topic) -> Result<TopicInfo, Error> {
        self.open("describe_topic")?;
        let found = topics::find(&self.connection, topic, "describe_topic").await?;
        self.info(&found).await
    }

    async fn read(&self, range: ReadRange) -> Result<Box<dyn Reader>, Error> {
        self.open("read")?;
        let found = topics::find(&self.connection, &range.topic, "read").await?;
        found.check_partition(range.partition, "read")?;
        let connection = Connection::open(self.config.clone(), "reader").await?;
        Ok(Box::new(NatsReader::new(connection, found, &range)))
    }

    async fn committed(&self, group: &Group, topic: &Topic) -> Result<Vec<Committed>, Error> {
        self.open("committed")?;
        let found = topics::find(&self.connection, topic, "committed").await?;
        let member = Member {
            connection: self.connection.clone(),
            store: Store::bind(self.connection.clone()),
            group: group.clone(),
            owner: "".into(),
            lease: join::lease(&self.connection),
            has_joined: Arc::default(),
        };
        let looks = (0..found.partitions).map(|partition| {
            let (member, found) = (&member, &found);
            async move {
                let looked = match member.look(&found.topic, partition).await {
                    // No group was ever made: there is no bucket yet.
                    Err(error) if error.kind() == ErrorKind::NotFound => Err(0),
                    looked => looked?,
                };
                let record = looked.ok().and_then(|seen| seen.record().cloned());
                // A position of another log of this name is none.
                let position = record.as_ref().filter(|record| record.is_of(found.mark));
                let position = position.map(|record| record.position(found.mark).0);
                let epoch = Epoch(record.map_or(0, |record| record.epoch));
                Ok(Committed::new(partition, position, epoch))
            }
        });
        stream::iter(looks.collect::<Vec<_>>()).buffered(CONCURRENCY).try_collect().await
    }

    async fn parking(&self, group: &Group) -> Result<Arc<dyn Parking>, Error> {
        self.open("parking")?;
        let (connection, closed) = (self.connection.clone(), self.closed.subscribe());
        Ok(Arc::new(NatsParking::open(connection, group.clone(), closed).await?))
    }

    async fn existing_parking(&self, group: &Group) -> Result<Arc<dyn Parking>, Error> {
        self.open("parking")?;
        let (connection, closed) = (self.connection.clone(), self.closed.subscribe());
        Ok(Arc::new(NatsParking::existing(connection, group.clone(), closed).await?))
    }

    async fn close(&self, within: Duration) -> Result<(), Error> {
        let close = async {
            let closed = self.publishing.close(Instant::now() + within.min(FOR_EVER)).await;
            self.closed.send_replace(true);
            closed
        };
        self.closing.get_or_init(|| close).await.clone()
    }
}

impl fmt::Debug for NatsBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsBackend").field("config", &self.config).finish_non_exhaustive()
    }
}
