//! Handlers by topic, before the pool that runs them is there.

use ebus_core::{BatchHandler, BatchOutcome, Delivery, Error, ErrorKind, Handler, Topic};

use crate::batch::Batch;
use crate::config::PoolConfig;
use crate::runner::{HandlerRunner, Runner};

/// Runs batches of one topic.
pub(crate) type BatchRunner = Box<dyn Runner<Vec<Delivery>, BatchOutcome>>;

/// How a topic is handled in one shard.
pub(crate) enum Handling {
    /// Message by message.
    Each(Box<dyn Runner>),
    Batches(Batch, BatchRunner),
}

/// One a shard.
type MakeHandlings = Box<dyn FnOnce(usize) -> Vec<Handling> + Send>;

struct OfTopic {
    topic: Topic,
    batch: Option<Batch>,
    make: MakeHandlings,
}

/// The handlers that a pool starts with, so that the source is asked for all of their topics at once.
#[derive(Default)]
#[must_use]
pub struct Handlers(Vec<OfTopic>);

impl Handlers {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Handles `topic` with `handler`; a later one of the same topic replaces it.
    pub fn on<H: Handler>(self, topic: Topic, handler: H) -> Self {
        self.with(topic, None, each(handler))
    }

    /// Handles `topic` in batches; a later handler of the same topic replaces it.
    pub fn batch<H: BatchHandler>(self, topic: Topic, batch: Batch, handler: H) -> Self {
        self.with(topic, Some(batch), batches(batch, handler))
    }

    fn with(mut self, topic: Topic, batch: Option<Batch>, make: MakeHandlings) -> Self {
        self.0.retain(|other| other.topic != topic);
        self.0.push(OfTopic { topic, batch, make });
        self
    }

    /// Their topics.
    pub fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.0.iter().map(|of| &of.topic)
    }

    /// Whether a pool with these settings can run them: to be asked before a group is joined for it.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming all that is wrong.
    pub fn validate(&self, config: &PoolConfig) -> Result<(), Error> {
        let problems: Vec<String> = self
            .0
            .iter()
            .flat_map(|of| {
                let problems = of.batch.iter().flat_map(|batch| batch.problems(config));
                problems.map(|problem| format!("{problem} (topic {})", of.topic))
            })
            .collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::ConfigInvalid, problems.join("; ")).with_operation("start"))
    }

    pub(crate) fn into_handlings(self, shards: usize) -> Vec<(Topic, Vec<Handling>)> {
        self.0.into_iter().map(|of| (of.topic, (of.make)(shards))).collect()
    }
}

pub(crate) fn each<H: Handler>(handler: H) -> MakeHandlings {
    Box::new(move |shards| {
        (0..shards).map(|_| Handling::Each(Box::new(HandlerRunner::new(handler.clone())))).collect()
    })
}

pub(crate) fn batches<H: BatchHandler>(batch: Batch, handler: H) -> MakeHandlings {
    Box::new(move |shards| {
        let runner = || Box::new(HandlerRunner::new(handler.clone()));
        (0..shards).map(|_| Handling::Batches(batch, runner())).collect()
    })
}

impl std::fmt::Debug for Handlers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.topics()).finish()
    }
}
