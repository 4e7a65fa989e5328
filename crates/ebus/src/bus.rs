//! The bus: one connection to a broker, and a publisher with its layers.

use std::sync::Arc;
use std::time::Duration;

use ebus_core::{
    Backend, Capability, Error, Group, Key, PublishFuture, PublishService, Publisher, Receipt, Topic,
    TopicInfo, TopicSpec,
};
use ebus_pool::ParkedKey;
use tower_layer::Layer;

use crate::life::Life;
use crate::stack::Stack;
use crate::{ConsumerBuilder, IntoPublish, connect};

/// A connection to a broker: publishes, and starts consumers. Clones are the same connection.
///
/// ```
/// use ebus::{Bus, Message, Publish};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), ebus::Error> {
/// let bus = Bus::connect("memory://").await?;
/// let receipt = bus.publish(Publish::to("orders", Message::new("placed").with_key("order-42"))).await?;
/// assert_eq!((receipt.topic.as_str(), receipt.offset), ("orders", 0));
/// # Ok(())
/// # }
/// ```
///
/// # Dropping it
/// The connection lives as long as a clone, a publisher or a consumer of it. [`close`](Self::close) ends it in order; without,
/// what is enqueued and not yet acknowledged may be lost with the process.
#[derive(Debug, Clone)]
pub struct Bus {
    pub(crate) life: Arc<Life>,
    stack: Stack,
}

impl Bus {
    /// Connects to the broker at this URL: `memory://`, `kafka://host:port,host:port` or `nats://host:port`.
    ///
    /// # Errors
    /// As [`connect()`].
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, Error> {
        Ok(Self::new(connect(url.as_ref()).await?))
    }

    /// A bus on a backend that is connected already.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { life: Arc::new(Life::new(backend)), stack: Stack::default() }
    }

    /// Publishes through `layer` from here on. What was added before stands outside of it, as in tower's `ServiceBuilder`:
    /// with `bus.layer(metrics).layer(rate_limit)` the metrics see how long the rate limit makes a message wait.
    ///
    /// Any layer of Tower fits whose service takes [`Publish`](crate::Publish), gives [`Receipt`] and is `Clone`. The layers are put
    /// together once, when the first message is published or the first [`publisher`](Self::publisher) taken. Each call of
    /// `layer` costs a message one allocation; several layers in one `ServiceBuilder` cost one together.
    ///
    /// Dead letters do not pass these layers: a rate limit or an open circuit must not hold up what has failed already.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ebus::{Bus, Message, Publish};
    /// use tower::{ServiceBuilder, limit::ConcurrencyLimitLayer, timeout::TimeoutLayer};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), ebus::Error> {
    /// let bus = Bus::connect("memory://").await?.layer(
    ///     ServiceBuilder::new()
    ///         .layer(TimeoutLayer::new(Duration::from_secs(5)))
    ///         .layer(ConcurrencyLimitLayer::new(100)),
    /// );
    /// bus.publish(Publish::to("orders", Message::new("placed"))).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "the bus with the layer is what this returns"]
    pub fn layer<L>(self, layer: L) -> Self
    where
        L: Layer<Publisher, Service: PublishService> + Send + Sync + 'static,
    {
        Self { life: self.life, stack: self.stack.with(layer) }
    }

    /// Publishes a message and waits until the broker has stored it.
    ///
    /// To publish many, use [`enqueue`](Self::enqueue), or a [`publisher`](Self::publisher) in a loop.
    ///
    /// # Cancel safety
    /// A future that is dropped does not un-publish: the message is stored or not.
    ///
    /// # Errors
    /// What making the message gave; what the layers and the broker say, such as `NotFound`, `TooLarge`, `Unavailable` and
    /// `Timeout` (it may have been stored); `Closed`.
    pub async fn publish(&self, publish: impl IntoPublish) -> Result<Receipt, Error> {
        self.enqueue(publish).await?.await
    }

    /// Waits for a place in flight and enqueues. Of the messages of one key, those that are stored are stored in the order in
    /// which this returned; the future that it returns resolves when the message is stored.
    ///
    /// # Cancel safety
    /// Dropped before it resolved: nothing was enqueued.
    ///
    /// # Errors
    /// What making the message gave; what the layers and the broker say before it is enqueued, such as `Closed`.
    pub async fn enqueue(&self, publish: impl IntoPublish) -> Result<PublishFuture, Error> {
        let publish = publish.into_publish()?;
        self.life.check("publish")?;
        self.publisher().enqueue(publish).await
    }

    /// A publisher with the layers of this bus: a Tower service, and the quickest way to publish from a loop.
    pub fn publisher(&self) -> Publisher {
        self.stack.publisher(|| self.life.backend.publisher())
    }

    /// A consumer in this group, to be given topics and handlers.
    pub fn consumer(&self, group: impl AsRef<str>) -> ConsumerBuilder {
        ConsumerBuilder::new(self.life.clone(), group.as_ref())
    }

    /// Creates a topic, or finds it as it should be.
    ///
    /// # Errors
    /// `ConfigInvalid` when it exists with other partitions, and nothing is changed; `Unsupported` for what the backend lacks;
    /// `Denied`, `Unavailable`, `Timeout`, `Closed`.
    pub async fn create_topic(&self, spec: &TopicSpec) -> Result<TopicInfo, Error> {
        self.life.check("create_topic")?;
        self.life.backend.create_topic(spec).await
    }

    /// What there is of a topic.
    ///
    /// # Errors
    /// `ConfigInvalid` for an illegal name, `NotFound`, `Denied`, `Unavailable`, `Timeout`, `Closed`.
    pub async fn describe_topic<T>(&self, topic: T) -> Result<TopicInfo, Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        let topic = topic.try_into()?;
        self.life.check("describe_topic")?;
        self.life.backend.describe_topic(&topic).await
    }

    /// The keys that are parked for a group in a topic, see [`park_keys`](ConsumerBuilder::park_keys). Needs no membership in the
    /// group, and only the right to read where it keeps them: nothing is created or written.
    ///
    /// # Errors
    /// `ConfigInvalid` for an illegal name; `NotFound` when the topic does not exist, or no consumer of the group was ever started with
    /// [`park_keys`](ConsumerBuilder::park_keys), such as when its name is mistyped; `Unsupported` where the backend keeps no parked keys;
    /// `Decode` when they cannot be read; `Denied`, `Unavailable`, `Timeout`, `Closed`.
    pub async fn parked<T>(&self, group: impl AsRef<str>, topic: T) -> Result<Vec<ParkedKey>, Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        let (group, topic) = (Group::new(group)?, topic.try_into()?);
        self.life.check("parked")?;
        ebus_pool::parked_keys(&*self.life.backend, &group, &topic).await
    }

    /// Has the dead letters of a parked key run again, in order, and then the key go on. Needs no membership in the group: the
    /// request is kept for whoever owns the partition, now or later. It is done when the key is not among the
    /// [`parked`](Self::parked) ones any more; if one of its messages is given up again, the key stays parked there, and says
    /// so (`stopped`). However often it is asked for before it begins, it is done once; asked for while it is under way, once more.
    ///
    /// # Errors
    /// `NotFound` when the key is not parked, and those of [`parked`](Self::parked).
    pub async fn redrive<T>(&self, group: impl AsRef<str>, topic: T, key: impl Into<Key>) -> Result<(), Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        let (group, topic) = (Group::new(group)?, topic.try_into()?);
        self.life.check("redrive")?;
        ebus_pool::redrive(&*self.life.backend, &group, &topic, &key.into()).await
    }

    /// What the backend can do.
    pub fn capability(&self) -> Capability {
        self.life.backend.capability()
    }

    /// The backend, to read topics and positions.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.life.backend
    }

    /// Drains the consumers that still run, sends what is enqueued, waits for its acknowledgements, and disconnects. Topics,
    /// groups and positions stay.
    ///
    /// Called again, also from other tasks and with another `within`, it gives the same result. Afterwards everything of this
    /// bus says `Closed`. It may take a quarter longer than `within` when the consumers used all of it.
    ///
    /// # Cancel safety
    /// Dropped before it resolved: consumers are ending; call it again for the rest.
    ///
    /// # Errors
    /// `Timeout` when something was not acknowledged in time, and what a consumer's last commit gave. It is closed all the
    /// same.
    pub async fn close(&self, within: Duration) -> Result<(), Error> {
        self.life.close(within).await
    }
}
