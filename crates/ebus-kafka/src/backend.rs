//! A connection to a Kafka cluster.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{
    Backend, Capability, Committed, Error, ErrorKind, Group, Parking, Publisher, ReadRange, Reader, Source,
    SourceOptions, Topic, TopicInfo, TopicSpec,
};
use tokio::sync::OnceCell;

use crate::config::{KafkaConfig, TopicPolicy};
use crate::parking::{self, KafkaParking};
use crate::positions;
use crate::producer::{KafkaProducer, Shared};
use crate::reader::KafkaReader;
use crate::source::KafkaSource;
use crate::topics::Control;

/// A connection to a Kafka cluster. Cheap to clone; clones share one producer and its bounds.
#[derive(Debug, Clone)]
pub struct KafkaBackend {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<KafkaConfig>,
    control: Control,
    producer: Arc<Shared>,
    parking: OnceCell<Arc<parking::Shared>>,
    closed: OnceCell<Result<(), Error>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("config", &self.config).finish_non_exhaustive()
    }
}

impl KafkaBackend {
    /// Connects, and waits for the first answer of the cluster.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming all that is wrong, before any connection; `Unsupported` for what librdkafka was not built with;
    /// `Unavailable` when no broker answers within the request time-out; `Denied` when it refuses the credentials.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(config: KafkaConfig) -> Result<Self, Error> {
        config.validate()?;
        let config = Arc::new(config);
        let control = Control::new(config.clone())?;
        control.run("connect", Control::reach).await?;
        let producer = Shared::new(&config, control.clone())?;
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                control,
                producer,
                parking: OnceCell::new(),
                closed: OnceCell::new(),
            }),
        })
    }

    /// A publisher without the box of [`Backend::publisher`].
    pub fn producer(&self) -> KafkaProducer {
        KafkaProducer::new(self.inner.producer.clone())
    }

    fn open(&self, operation: &'static str) -> Result<(), Error> {
        if self.inner.producer.is_closed() { Err(Error::closed(operation)) } else { Ok(()) }
    }

    /// What the connection has of the topic of parked keys.
    async fn parked(&self, create: bool) -> Result<Arc<parking::Shared>, Error> {
        self.open("parking")?;
        let inner = &self.inner;
        let (config, control) = (inner.config.clone(), inner.control.clone());
        let open = || parking::Shared::open(config, control, inner.producer.clone(), create);
        inner.parking.get_or_try_init(open).await.cloned()
    }

    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Control) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.open(operation)?;
        self.inner.control.run(operation, work).await
    }
}

#[async_trait]
impl Backend for KafkaBackend {
    fn capability(&self) -> Capability {
        let config = &self.inner.config;
        Capability::new("kafka", config.max_message_bytes)
            .with_several_members(true)
            .with_durable(true)
            .with_parks_keys(true)
            .with_creates_topics(matches!(config.topic_policy, TopicPolicy::Create { .. }))
            .with_max_idle(config.max_poll_interval)
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(self.producer())
    }

    async fn source(&self, options: SourceOptions) -> Result<Box<dyn Source>, Error> {
        let (topics, group, start) = (options.topics.clone(), options.group.clone(), options.start);
        let undecided = self.run("join", move |control| {
            let mut undecided = Vec::new();
            for topic in topics {
                if !positions::commit_start(control, &group, &topic, start)? {
                    undecided.push(topic);
                }
            }
            Ok(undecided)
        });
        let undecided = undecided.await?;
        let mut source = KafkaSource::join(&self.inner.config, self.inner.control.clone(), options)?;
        source.until_begun(undecided).await?;
        Ok(Box::new(source))
    }

    async fn create_topic(&self, spec: &TopicSpec) -> Result<TopicInfo, Error> {
        let spec = spec.clone();
        self.run("create topic", move |control| control.create(&spec)).await
    }

    async fn describe_topic(&self, topic: &Topic) -> Result<TopicInfo, Error> {
        let topic = topic.clone();
        self.run("describe topic", move |control| {
            let described = control.existing(&topic)?;
            control.info(&topic, described.partitions)
        })
        .await
    }

    async fn read(&self, range: ReadRange) -> Result<Box<dyn Reader>, Error> {
        let config = self.inner.config.clone();
        let reader = self.run("read", move |control| KafkaReader::open(control, &config, range)).await?;
        Ok(Box::new(reader))
    }

    async fn committed(&self, group: &Group, topic: &Topic) -> Result<Vec<Committed>, Error> {
        let (group, topic) = (group.clone(), topic.clone());
        self.run("committed", move |control| positions::committed(control, &group, &topic)).await
    }

    async fn parking(&self, group: &Group) -> Result<Arc<dyn Parking>, Error> {
        let shared = self.parked(true).await?;
        Ok(Arc::new(KafkaParking::open(shared, group.clone()).await?))
    }

    async fn existing_parking(&self, group: &Group) -> Result<Arc<dyn Parking>, Error> {
        let shared = match self.parked(false).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(ebus_core::no_parked_keys(group).with_source(error));
            }
            shared => shared?,
        };
        Ok(Arc::new(KafkaParking::existing(shared, group.clone()).await?))
    }

    async fn close(&self, within: Duration) -> Result<(), Error> {
        self.inner.producer.refuse();
        let producer = self.inner.producer.clone();
        let closed = self.inner.closed.get_or_init(|| async move {
            let closing = tokio::task::spawn_blocking(move || producer.close(within));
            closing.await.unwrap_or_else(|failed| {
                Err(Error::new(ErrorKind::Unexpected, "closing ended early")
                    .with_operation("close")
                    .with_source(failed))
            })
        });
        closed.await.clone()
    }
}
