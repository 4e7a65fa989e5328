//! What driver and shards send each other. Always batches.

use std::sync::Arc;

use ebus_core::{Lease, Message, Owned, PartitionId, Settlement, Token, Topic};
use tokio::sync::oneshot;

use crate::runner::Runner;
use crate::state::Stuck;

/// A message on its way to its lane.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) token: Token,
    pub(crate) message: Message,
    /// `None` without a key: a lane of its own.
    pub(crate) lane: Option<u64>,
}

/// From the driver to a shard, beside the jobs: it is looked at before each job, so that an end does not stand behind a
/// backlog (G3). What was sent before a job is seen before it; an end may overtake jobs, which are dropped then.
pub(crate) enum ToShard {
    /// An ownership begins; its jobs follow.
    Begin { owned: Owned, partition: Arc<PartitionId>, lease: Lease },
    /// These ownerships end: start nothing of them, drop what is queued or waits, let runs end. Answered by `Ended` for each.
    End(Vec<Owned>),
    /// These ownerships end now: drop their runs too. Answered by `Ended` for each that has not been answered yet.
    Cancel(Vec<Owned>),
    /// Handles this topic from now on.
    Handler { topic: Topic, runner: Box<dyn Runner> },
    /// This topic is given up: drop its handler once nothing of it is owned.
    GiveUp(Topic),
    /// What is running or failing longer than it should.
    Report(oneshot::Sender<ShardReport>),
}

/// From a shard to the driver.
#[derive(Debug)]
pub(crate) enum FromShard {
    /// Outcomes; the i-th size is the i-th message's, in bytes.
    Settled { batch: Vec<(Token, Settlement)>, sizes: Vec<usize> },
    /// Nothing of this ownership runs or is queued in this shard any more, and all that was is settled.
    Ended { owned: Owned, left: LeftInShard },
}

/// What an ownership's end left unfinished in a shard, of what had run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LeftInShard {
    pub(crate) failing: usize,
    pub(crate) cancelled: usize,
}

/// What a shard says about itself.
#[derive(Debug)]
pub(crate) struct ShardReport {
    pub(crate) running: usize,
    pub(crate) lanes: usize,
    pub(crate) stuck: Vec<Stuck>,
}
