//! Handlers of batches, and what they were given.

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebus_core::{BatchHandler, BatchOutcome, Delivery, Error, ErrorKind, Failures};
use ebus_pool::{Batch, Handlers, Pool, PoolConfig, RetryPolicy};
use tokio::time::Instant;

use super::{ScriptedSource, config, topic};

/// A handler of a function that gives an outcome.
pub fn in_batches<F, Fut>(f: F) -> impl BatchHandler
where
    F: Fn(Vec<Delivery>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = BatchOutcome> + Send + 'static,
{
    tower::service_fn(move |batch| {
        let outcome = f(batch);
        async move { Ok::<_, Infallible>(outcome.await) }
    })
}

/// What a handler was given: when, and which offsets at which attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    pub at: Duration,
    pub messages: Vec<(u64, u32)>,
}

#[derive(Clone)]
pub struct Seen {
    pub since: Instant,
    given: Arc<Mutex<Vec<Given>>>,
}

impl Seen {
    pub fn new() -> Self {
        Self { since: Instant::now(), given: Arc::default() }
    }

    pub fn note(&self, batch: &[Delivery]) {
        let messages = batch.iter().map(|delivery| (delivery.offset(), delivery.attempt())).collect();
        let given = Given { at: self.since.elapsed(), messages };
        self.given.lock().expect("no test panicked with it").push(given);
    }

    pub fn given(&self) -> Vec<Given> {
        self.given.lock().expect("no test panicked with it").clone()
    }

    pub fn offsets(&self) -> Vec<Vec<u64>> {
        let given = self.given();
        given.iter().map(|given| given.messages.iter().map(|(offset, _)| *offset).collect()).collect()
    }
}

pub fn one_shard() -> PoolConfig {
    config().with_shards(1).with_retry(RetryPolicy::fixed(Duration::from_millis(10)))
}

pub fn failed() -> Error {
    Error::new(ErrorKind::Handler, "not yet")
}

pub fn all_failed() -> BatchOutcome {
    BatchOutcome::Retry { after: None, error: failed() }
}

pub const DONE: BatchOutcome = BatchOutcome::Each(Failures::new());

/// A pool whose handler notes what it is given and says what `say` says of it.
pub fn pool_that_says<F>(
    source: Box<ScriptedSource>,
    config: PoolConfig,
    batch: Batch,
    say: F,
) -> (Pool, Seen)
where
    F: Fn(&[Delivery]) -> BatchOutcome + Clone + Send + 'static,
{
    let seen = Seen::new();
    let noted = seen.clone();
    let handler = in_batches(move |deliveries| {
        noted.note(&deliveries);
        let said = say(&deliveries);
        async move { said }
    });
    let pool = Pool::start_with(source, config, Handlers::new().batch(topic(), batch, handler));
    (pool.expect("valid"), seen)
}
