//! A consumer before it starts: everything that can be wrong is found before the group is joined (G8).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use ebus_core::{
    BatchHandler, Error, ErrorKind, Group, Handler, LedgerLimits, SourceOptions, StartPosition, Topic,
};
use ebus_pool::{Batch, Handlers, Pool, PoolConfig, RetryPolicy};

use crate::Consumer;
use crate::life::Life;

/// A consumer that is being put together. Nothing happens before [`start`](Self::start), which also tells all that is wrong.
///
/// ```
/// use std::time::Duration;
/// use ebus::{Bus, Delivery, Handled, RetryPolicy, raw};
///
/// async fn charge(delivery: Delivery) -> Handled {
///     println!("charge {:?}", delivery.key());
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), ebus::Error> {
/// # let bus = Bus::connect("memory://").await?;
/// let consumer = bus
///     .consumer("billing")
///     .on("orders", raw(charge))
///     .retry(RetryPolicy::exponential().max_attempts(5))
///     .dead_letter("orders.dlq")
///     .max_in_flight(256)
///     .start()
///     .await?;
/// let report = consumer.drain(Duration::from_secs(30)).await;
/// report.committed?;
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is consumed before `start`"]
pub struct ConsumerBuilder {
    life: Arc<Life>,
    group: Option<Group>,
    topics: Vec<Topic>,
    handlers: Handlers,
    dead_letter: Option<Topic>,
    most_parked: Option<usize>,
    settings: Vec<Box<dyn FnOnce(PoolConfig) -> PoolConfig + Send>>,
    start: StartPosition,
    max_span: Option<usize>,
    commit_interval: Option<Duration>,
    revoke_within: Option<Duration>,
    problems: Vec<Error>,
}

impl ConsumerBuilder {
    pub(crate) fn new(life: Arc<Life>, group: &str) -> Self {
        let mut problems = Vec::new();
        let group = Group::new(group).map_err(|error| problems.push(error)).ok();
        Self {
            life,
            group,
            topics: Vec::new(),
            handlers: Handlers::new(),
            dead_letter: None,
            most_parked: None,
            settings: Vec::new(),
            start: StartPosition::default(),
            max_span: None,
            commit_interval: None,
            revoke_within: None,
            problems,
        }
    }

    fn topic<T>(&mut self, topic: T) -> Option<Topic>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        topic.try_into().map_err(|error| self.problems.push(error.into())).ok()
    }

    fn set(mut self, setting: impl FnOnce(PoolConfig) -> PoolConfig + Send + 'static) -> Self {
        self.settings.push(Box::new(setting));
        self
    }

    /// Handles `topic` with `handler`. A consumer may have several topics; more can follow with
    /// [`Consumer::on`](crate::Consumer::on).
    pub fn on<T, H>(mut self, topic: T, handler: H) -> Self
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
        H: Handler,
    {
        if let Some(topic) = self.new_topic(topic) {
            self.handlers = self.handlers.on(topic, handler);
        }
        self
    }

    /// Handles `topic` in batches: for handlers that are quicker with many messages at once. A batch that failed in part names
    /// those that did, and only their keys wait. More can follow with [`Consumer::batch`](crate::Consumer::batch).
    ///
    /// ```
    /// use std::time::Duration;
    /// use ebus::{Batch, BatchHandled, Bus, Delivery, Failures, HandlerError, raw};
    /// # use ebus::{Message, Publish};
    ///
    /// # #[derive(Clone)]
    /// # struct Search;
    /// # impl Search {
    /// #     async fn index(&self, batch: &[Delivery]) -> Result<Vec<Result<(), String>>, std::io::Error> {
    /// #         Ok(batch.iter().map(|_| Ok(())).collect())
    /// #     }
    /// # }
    /// async fn index(search: Search, documents: Vec<Delivery>) -> BatchHandled {
    ///     let mut failures = Failures::new();
    ///     for (place, answer) in search.index(&documents).await?.into_iter().enumerate() {
    ///         if let Err(why) = answer {
    ///             failures.add(place, HandlerError::retry(why));
    ///         }
    ///     }
    ///     Ok(failures)
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), ebus::Error> {
    /// # let (bus, search) = (Bus::connect("memory://").await?, Search);
    /// // A bulk interface goes on behind a failure: so no key twice in a batch.
    /// let batch = Batch::of(500).max_age(Duration::from_millis(20)).distinct_keys();
    /// let consumer = bus.consumer("search").batch("documents", batch, raw(index).with(search)).start().await?;
    /// # bus.publish(Publish::to("documents", Message::new("text").with_key("document-1"))).await?;
    /// # while consumer.counters().handled == 0 { tokio::time::sleep(Duration::from_millis(1)).await }
    /// # consumer.drain(Duration::from_secs(5)).await.committed?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn batch<T, H>(mut self, topic: T, batch: Batch, handler: H) -> Self
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
        H: BatchHandler,
    {
        if let Some(topic) = self.new_topic(topic) {
            self.handlers = self.handlers.batch(topic, batch, handler);
        }
        self
    }

    fn new_topic<T>(&mut self, topic: T) -> Option<Topic>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        let topic = self.topic(topic)?;
        if self.topics.contains(&topic) {
            self.problems.push(
                Error::new(ErrorKind::ConfigInvalid, "the topic has two handlers; give it one")
                    .with_context("topic", &topic),
            );
        }
        self.topics.push(topic.clone());
        Some(topic)
    }

    /// When a failed message runs again. Exponential from 100 ms to 30 s and for ever, unless it is given.
    pub fn retry(self, policy: RetryPolicy) -> Self {
        self.set(|config| config.with_retry(policy))
    }

    /// Where rejected messages go, and those whose attempts are used up. It must exist, unless the backend creates topics by
    /// its policy.
    ///
    /// Dead letters pass none of the layers of the bus.
    pub fn dead_letter<T>(mut self, topic: T) -> Self
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        self.dead_letter = self.topic(topic);
        self
    }

    /// Keeps the order of a key across its dead letters: a message that becomes one *parks* its key. What follows of that key goes
    /// after it into the dead-letter topic, in order and without a run, while other keys go on. [`Bus::redrive`](crate::Bus::redrive)
    /// has the dead letters of the key run, in order, and then the key goes on as before.
    ///
    /// Which keys are parked outlives this consumer; at most `most` of each partition are. When there are as many, a message that
    /// would park one more is retried as if there were no dead-letter topic, and is listed as stuck: nothing is lost.
    ///
    /// # How many
    /// The list of a partition is one value of the backend. So many keys of up to 256 bytes must fit into it, or the consumer does not
    /// start: about 1,000 on Kafka and NATS, 2,000 on memory. Keys that are longer, or that are not plain text, take more, so that fewer
    /// of these may fit. All lists of a consumer together take at most a quarter of the bytes of its [`budget`](Self::budget).
    ///
    /// # All members, or none
    /// A member of the group without this option knows of no parked keys: it runs their later messages in front of their dead
    /// letters, and redrives nothing. So give it to all members at once. To take it away, redrive all keys, see
    /// [`Bus::parked`](crate::Bus::parked) empty, and then start all members without it.
    ///
    /// # The dead-letter topic
    /// Let it keep its messages until they are redriven: a retention that is long enough, no compaction, and the same number of
    /// partitions as long as keys are parked. Dead letters that expired are warned of, and the rest runs; when letters are missing that
    /// the consumer has stored itself, the redrive stops and says so.
    ///
    /// # Replay
    /// When the group's position is set back, messages of a key that is parked, or was redriven and had no message since, are settled
    /// without a run as far as they had been handled ([`Counters::skipped`](crate::Counters::skipped)). Replay with another group.
    ///
    /// ```
    /// use ebus::{Bus, Delivery, Handled, HandlerError, Message, Publish, raw};
    /// # use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    /// # static FIXED: AtomicBool = AtomicBool::new(false);
    ///
    /// async fn charge(delivery: Delivery) -> Handled {
    ///     # if FIXED.load(Relaxed) { return Ok(()) }
    ///     Err(HandlerError::permanent(format!("no account for {:?}", delivery.key())))
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), ebus::Error> {
    /// let bus = Bus::connect("memory://").await?;
    /// let consumer =
    ///     bus.consumer("billing").on("orders", raw(charge)).dead_letter("orders.dlq").park_keys(500).start().await?;
    /// for payload in ["placed", "paid", "sent"] {
    ///     bus.publish(Publish::to("orders", Message::new(payload).with_key("order-42"))).await?;
    /// }
    /// # while consumer.counters().parked < 2 { tokio::time::sleep(std::time::Duration::from_millis(1)).await }
    /// // ... later, from any program that is connected to the broker:
    /// for parked in bus.parked("billing", "orders").await? {
    ///     println!("{} since offset {}: {}", parked.key, parked.offset, parked.error);
    ///     # FIXED.store(true, Relaxed);
    ///     bus.redrive("billing", "orders", parked.key).await?; // placed, paid, sent
    /// }
    /// # while consumer.counters().redriven < 3 { tokio::time::sleep(std::time::Duration::from_millis(1)).await }
    /// # Ok(())
    /// # }
    /// ```
    pub fn park_keys(mut self, most: usize) -> Self {
        self.most_parked = Some(most);
        self
    }

    /// Drops rejected messages, and those whose attempts are used up: each is logged and counted. Breaks G1, as asked for.
    pub fn drop_rejected(self) -> Self {
        self.set(PoolConfig::with_drop_rejected)
    }

    /// At least once, and what fails is dropped: a message whose run failed, panicked or was rejected is logged, counted in
    /// [`Counters::dropped`](crate::Counters::dropped), and does not run again. Exactly the failing message is lost, which breaks G1,
    /// as asked for; what a crash met runs again. Of a batch that fails without naming anybody, each message runs once more, alone.
    ///
    /// Goes with neither [`retry`](Self::retry), [`dead_letter`](Self::dead_letter), [`park_keys`](Self::park_keys) nor
    /// [`at_most_once`](Self::at_most_once).
    pub fn drop_on_failure(self) -> Self {
        self.set(PoolConfig::with_drop_on_failure)
    }

    /// At most once, for what must rather not happen than happen twice: the position is committed **before** a run starts. No message
    /// runs twice, whatever happens to this process, its partitions or the broker's answers; a handler that takes its process down
    /// with it does not meet the same message again.
    ///
    /// # What is lost
    /// Breaks G1, as asked for:
    /// - what fails, panics or is rejected: logged, and counted in [`Counters::dropped`](crate::Counters::dropped);
    /// - by a crash, the runs in progress, and what was committed and not started: of each partition at most twice
    ///   [`max_in_flight`](Self::max_in_flight), runs in progress included;
    /// - by a partition that is lost without notice, and at the deadline of a hand-over ([`revoke_within`](Self::revoke_within)) or a
    ///   drain, the same, counted in [`Counters::cancelled`](crate::Counters::cancelled) and [`Counters::lost`](crate::Counters::lost).
    ///
    /// A hand-over and a drain that have the time lose nothing: what is committed is started and finished before the partition is
    /// released, and what is held beyond that is the next owner's. Order per key and all bounds are as without it.
    ///
    /// # Speed
    /// A message starts a commit's round trip later. What is to run goes together into one commit, and of a key with quick runs up to 64
    /// messages; of a key whose runs are slow, one.
    ///
    /// # All members, or none
    /// A member of the group without this option runs at least once. And the position is all that is known of what ran: where somebody sets
    /// it back, or damages it, messages run again.
    ///
    /// Goes with neither [`batch`](Self::batch), [`retry`](Self::retry), [`dead_letter`](Self::dead_letter),
    /// [`park_keys`](Self::park_keys) nor [`drop_on_failure`](Self::drop_on_failure).
    ///
    /// ```
    /// use ebus::{Bus, Delivery, Handled, raw};
    /// # use ebus::{Message, Publish};
    ///
    /// async fn text(delivery: Delivery) -> Handled {
    ///     println!("a text message to {:?}: rather none than two", delivery.key());
    ///     Ok(())
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), ebus::Error> {
    /// # let bus = Bus::connect("memory://").await?;
    /// let consumer = bus.consumer("texts").on("reminders", raw(text)).at_most_once().start().await?;
    /// # bus.publish(Publish::to("reminders", Message::new("soon").with_key("user-1"))).await?;
    /// # while consumer.counters().handled == 0 { tokio::time::sleep(std::time::Duration::from_millis(1)).await }
    /// # consumer.drain(std::time::Duration::from_secs(5)).await.committed?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn at_most_once(self) -> Self {
        self.set(PoolConfig::with_at_most_once)
    }

    /// Handler runs in progress at most; 1,024 by default. A message that waits for its retry is not in progress.
    pub fn max_in_flight(self, runs: usize) -> Self {
        self.set(move |config| config.with_max_in_flight(runs))
    }

    /// Messages and bytes held at most, queued and in progress together; 65,536 and 64 MiB by default.
    pub fn budget(self, messages: usize, bytes: usize) -> Self {
        self.set(move |config| config.with_budget_messages(messages).with_budget_bytes(bytes))
    }

    /// How many shard tasks run handlers; one per core by default. A handler that blocks its thread blocks one of them.
    pub fn shards(self, shards: usize) -> Self {
        self.set(move |config| config.with_shards(shards))
    }

    /// How long a run lasts before the state lists it as stuck; 10 s by default.
    pub fn stuck_after(self, after: Duration) -> Self {
        self.set(move |config| config.with_stuck_after(after))
    }

    /// Where the group begins if it has no position yet; at the earliest message by default.
    pub fn start_position(mut self, start: StartPosition) -> Self {
        self.start = start;
        self
    }

    /// How many messages one unfinished one can hold up in its partition; 16,384 by default. A batch that is larger is handed over
    /// as it is when its partitions have brought that many.
    ///
    /// On Kafka what is finished above a stuck message must fit the metadata of a commit, so where offsets have gaps (transactions,
    /// compaction) reading stops earlier: after some 1,700 messages with gaps below 128, 1,000 with gaps below 16,384.
    pub fn max_span(mut self, messages: usize) -> Self {
        self.max_span = Some(messages);
        self
    }

    /// How often positions are committed when something finished: what a crash may run again. 200 ms by default.
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.commit_interval = Some(interval);
        self
    }

    /// How long a hand-over waits for runs in progress before it cancels them; 10 s by default.
    pub fn revoke_within(mut self, within: Duration) -> Self {
        self.revoke_within = Some(within);
        self
    }

    /// Checks everything, joins the group and starts to handle. Resolves when the start position of a new group is committed:
    /// nothing that is published later is missed.
    ///
    /// # Cancel safety
    /// Dropped before it resolved, the consumer has not started; its membership ends as by a crash.
    ///
    /// # Errors
    /// `ConfigInvalid`, with all that is wrong, such as more parked keys than the backend can keep; `NotFound` for a topic or a dead-letter topic that does not exist;
    /// `Unsupported` for what the backend lacks; `Denied`, also without the right to keep parked keys; `Unavailable`, `Timeout`; `Closed` when the bus is.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn start(self) -> Result<Consumer, Error> {
        self.begin()
            .await
            .map_err(|error| if error.operation().is_empty() { error.with_operation("start") } else { error })
    }

    async fn begin(mut self) -> Result<Consumer, Error> {
        self.life.check_start()?;
        let life = self.life.clone();
        let (mut config, options) = self.check()?;
        if let Some(topic) = &self.dead_letter {
            exists(&life, topic, "dead-letter topic").await?;
        }
        let group = options.group.clone();
        if self.most_parked.is_some() {
            let parking = life.backend.parking(&group).await?;
            config = config.with_parking(parking, life.backend.clone());
            config.validate()?;
        }
        let source =
            life.backend.source(options).await.map_err(|error| error.with_context("group", &group))?;
        let pool = Arc::new(Pool::start_with(source, config, self.handlers)?);
        if !life.add(&pool) {
            // Closing began meanwhile and does not know this pool: leave the group here.
            let report = pool.drain(Duration::ZERO).await;
            tracing::debug!(?report, "started while the bus was closing");
            return Err(Error::closed("start"));
        }
        Ok(Consumer::new(pool, life, group, self.dead_letter))
    }

    /// Everything that can be known without the broker.
    fn check(&mut self) -> Result<(PoolConfig, SourceOptions), Error> {
        let mut problems = std::mem::take(&mut self.problems);
        let named: HashSet<&Topic> = self.topics.iter().collect();
        if let Some(topic) = self.dead_letter.as_ref().filter(|topic| named.contains(topic)) {
            problems.push(dead_letter_loop(topic));
        }
        for (name, zero) in [
            ("max_span", self.max_span == Some(0)),
            ("commit_interval", self.commit_interval == Some(Duration::ZERO)),
        ] {
            if zero {
                problems.push(Error::new(ErrorKind::ConfigInvalid, format!("{name} is 0; give more")));
            }
        }
        let Some(group) = self.group.clone() else { return Err(join(problems)) };
        let mut config = PoolConfig::new(group.clone());
        for setting in std::mem::take(&mut self.settings) {
            config = setting(config);
        }
        if let Some(topic) = &self.dead_letter {
            config = config.with_dead_letter(topic.clone(), self.life.backend.publisher());
        }
        if let Some(most) = self.most_parked {
            config = config.with_parked_keys(most);
        }
        problems.extend(config.validate().err());
        problems.extend(self.handlers.validate(&config).err());
        if !problems.is_empty() {
            return Err(join(problems));
        }
        let mut options = SourceOptions::new(group, self.topics.clone()).with_start(self.start);
        if let Some(messages) = self.max_span {
            options = options.with_limits(LedgerLimits::default().with_max_span(messages));
        }
        if let Some(interval) = self.commit_interval {
            options = options.with_commit_interval(interval);
        }
        if let Some(within) = self.revoke_within {
            options = options.with_revoke_within(within);
        }
        Ok((config, options))
    }
}

/// What a consumer would do that reads its own dead letters.
pub(crate) fn dead_letter_loop(topic: &Topic) -> Error {
    let message = "the dead-letter topic is one of the topics that are consumed: a message that fails would go round for ever; \
                   give it a topic of its own";
    Error::new(ErrorKind::ConfigInvalid, message).with_context("topic", topic)
}

/// Whether `topic` is there, or will be by the policy of the backend.
pub(crate) async fn exists(life: &Life, topic: &Topic, what: &str) -> Result<(), Error> {
    match life.backend.describe_topic(topic).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound && life.backend.capability().creates_topics => {
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let message =
                format!("the {what} does not exist; create it first, with Bus::create_topic for example");
            Err(Error::new(ErrorKind::NotFound, message).with_context("topic", topic).with_source(error))
        }
        Err(error) => Err(error),
    }
}

/// One error that says all; a single one stays what it is.
fn join(mut problems: Vec<Error>) -> Error {
    if problems.len() == 1 {
        return problems.remove(0);
    }
    // What failed is said once, in front.
    let all = problems.into_iter().map(|problem| problem.with_operation("").to_string());
    Error::new(ErrorKind::ConfigInvalid, all.collect::<Vec<_>>().join("; ")).with_operation("start")
}

impl std::fmt::Debug for ConsumerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsumerBuilder")
            .field("group", &self.group)
            .field("topics", &self.topics)
            .field("dead_letter", &self.dead_letter)
            .field("problems", &self.problems)
            .finish_non_exhaustive()
    }
}
