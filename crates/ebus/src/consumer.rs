//! A running member of a group.

use std::sync::Arc;
use std::time::Duration;

use ebus_core::{BatchHandler, Error, Group, Handler, Topic};
use ebus_pool::{Batch, Counters, DrainReport, Pool, PoolState};

use crate::builder::{dead_letter_loop, exists};
use crate::life::Life;

/// A running member of a group: reads topics and runs handlers, in order per key.
///
/// # Dropping it
/// Stops at once: runs are cancelled, what finished since the last commit runs again elsewhere, and a warning is logged. Use
/// [`drain`](Self::drain).
#[derive(Debug)]
#[must_use = "a consumer that is dropped stops at once"]
pub struct Consumer {
    pool: Arc<Pool>,
    life: Arc<Life>,
    group: Group,
    dead_letter: Option<Topic>,
}

impl Consumer {
    pub(crate) fn new(pool: Arc<Pool>, life: Arc<Life>, group: Group, dead_letter: Option<Topic>) -> Self {
        Self { pool, life, group, dead_letter }
    }

    /// The group.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Handles one topic more; an earlier handler of it is replaced for runs that start later.
    ///
    /// # Errors
    /// `ConfigInvalid` for an illegal name, and for the dead-letter topic of this consumer; `NotFound` when it does not exist;
    /// `Closed` when the consumer has ended; what the backend says.
    pub async fn on<T, H>(&self, topic: T, handler: H) -> Result<(), Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
        H: Handler,
    {
        let topic = self.new_topic("on", topic.try_into()?).await?;
        self.pool.subscribe(topic, handler)
    }

    /// Handles one topic more in batches; an earlier handler of it is replaced for runs that start later.
    ///
    /// # Errors
    /// As [`on`](Self::on), and `ConfigInvalid` for a batch that could never fill.
    pub async fn batch<T, H>(&self, topic: T, batch: Batch, handler: H) -> Result<(), Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
        H: BatchHandler,
    {
        let topic = self.new_topic("batch", topic.try_into()?).await?;
        self.pool.subscribe_batch(topic, batch, handler)
    }

    async fn new_topic(&self, operation: &'static str, topic: Topic) -> Result<Topic, Error> {
        self.life.check(operation)?;
        let checked = if self.dead_letter.as_ref() == Some(&topic) {
            Err(dead_letter_loop(&topic))
        } else {
            exists(&self.life, &topic, "topic").await
        };
        match checked {
            Ok(()) => Ok(topic),
            Err(error) if error.operation().is_empty() => Err(error.with_operation(operation)),
            Err(error) => Err(error),
        }
    }

    /// Gives one topic up: its partitions go to the other members of the group, as at a rebalance; what runs has the time of
    /// a hand-over to end, and what is queued is theirs. The other topics go on.
    ///
    /// # Errors
    /// `ConfigInvalid` for an illegal name; `Closed` when the consumer has ended.
    pub fn unsubscribe<T>(&self, topic: T) -> Result<(), Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        self.pool.unsubscribe(&topic.try_into()?)
    }

    /// Stops reading a topic; what is held of it is handled, and its partitions stay owned. It lasts over rebalances.
    ///
    /// # Errors
    /// `ConfigInvalid` for an illegal name; `Closed` when the consumer has ended.
    pub fn pause<T>(&self, topic: T) -> Result<(), Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        self.pool.pause(&topic.try_into()?)
    }

    /// Reads a topic again; not while all are paused.
    ///
    /// # Errors
    /// `ConfigInvalid` for an illegal name; `Closed` when the consumer has ended.
    pub fn resume<T>(&self, topic: T) -> Result<(), Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        self.pool.resume(&topic.try_into()?)
    }

    /// Stops reading all topics, those that are subscribed later too; what is held is handled, and the partitions stay owned.
    ///
    /// # Errors
    /// `Closed` when the consumer has ended.
    pub fn pause_all(&self) -> Result<(), Error> {
        self.pool.pause_all()
    }

    /// Reads all topics again, but for those that are paused by themselves.
    ///
    /// # Errors
    /// `Closed` when the consumer has ended.
    pub fn resume_all(&self) -> Result<(), Error> {
        self.pool.resume_all()
    }

    /// What is owned and held, what is stuck and why. Answers within about a second, also when handlers block their threads.
    pub async fn state(&self) -> PoolState {
        self.pool.state().await
    }

    /// What happened since the start, at no cost.
    pub fn counters(&self) -> Counters {
        self.pool.counters()
    }

    /// Starts no run any more, waits up to `within` for those in progress, cancels the rest, commits, and leaves the group. The
    /// report says what was left and whether the last commit was accepted; if it was, nothing that finished runs again.
    ///
    /// Called again, also from other tasks, it gives the same report.
    ///
    /// # Cancel safety
    /// The drain goes on when this future is dropped.
    pub async fn drain(&self, within: Duration) -> DrainReport {
        self.pool.drain(within).await
    }

    /// Waits until the consumer has ended, by a drain or by a failure for good, and says how.
    ///
    /// # Cancel safety
    /// Dropping it changes nothing.
    pub async fn ended(&self) -> DrainReport {
        self.pool.ended().await
    }
}
