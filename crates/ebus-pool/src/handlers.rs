//! Handlers by topic, before the pool that runs them is there.

use ebus_core::{Handler, Topic};

use crate::runner::{HandlerRunner, Runner};

/// One runner a shard.
type MakeRunners = Box<dyn FnOnce(usize) -> Vec<Box<dyn Runner>> + Send>;

/// The handlers that a pool starts with, so that the source is asked for all of their topics at once.
#[derive(Default)]
#[must_use]
pub struct Handlers(Vec<(Topic, MakeRunners)>);

impl Handlers {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Handles `topic` with `handler`; a later one of the same topic replaces it.
    pub fn on<H: Handler>(mut self, topic: Topic, handler: H) -> Self {
        self.0.retain(|(other, _)| *other != topic);
        self.0.push((topic, make_runners(handler)));
        self
    }

    /// Their topics.
    pub fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.0.iter().map(|(topic, _)| topic)
    }

    pub(crate) fn into_runners(self, shards: usize) -> Vec<(Topic, Vec<Box<dyn Runner>>)> {
        self.0.into_iter().map(|(topic, make)| (topic, make(shards))).collect()
    }
}

pub(crate) fn make_runners<H: Handler>(handler: H) -> MakeRunners {
    Box::new(move |shards| {
        (0..shards).map(|_| Box::new(HandlerRunner::new(handler.clone())) as Box<dyn Runner>).collect()
    })
}

impl std::fmt::Debug for Handlers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.topics()).finish()
    }
}
