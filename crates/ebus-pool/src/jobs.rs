//! What driver and shards send each other. Always batches.

use std::sync::Arc;

use ebus_core::{Key, Lease, Message, Owned, PartitionId, Settlement, Slot, Token, Topic};
use tokio::sync::oneshot;

use crate::handlers::Handling;
use crate::parked::{KeeperHandle, ParkedKey};
use crate::route::LaneKey;
use crate::state::Stuck;

/// A message on its way to its lane.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) token: Token,
    pub(crate) message: Message,
    /// `None` without a key: a lane of its own.
    pub(crate) lane: Option<LaneKey>,
}

/// From the driver to a shard, beside the jobs: it is looked at before each job, so that an end does not stand behind a
/// backlog (G3). What was sent before a job is seen before it; an end may overtake jobs, which are dropped then.
pub(crate) enum ToShard {
    /// An ownership begins; its jobs follow.
    Begin { owned: Owned, partition: Arc<PartitionId>, lease: Lease, parked: Option<ParkedHere>, full: bool },
    /// These ownerships end: start nothing of them, drop what is queued or waits, let runs end. Answered by `Ended` for each.
    End(Vec<Owned>),
    /// These ownerships end now: drop their runs too. Answered by `Ended` for each that has not been answered yet.
    Cancel(Vec<Owned>),
    /// Handles this topic from now on.
    Handle { topic: Topic, handling: Handling },
    /// What has gathered for batches is looked at again: it waits for nothing from now on.
    Press,
    /// Nothing more of this ownership is read before some of it is finished (true), or it is read again: what has gathered of it for
    /// batches does not wait for its whole age meanwhile.
    Full { owned: Owned, full: bool },
    /// This topic is given up: drop its handler once nothing of it is owned.
    GiveUp(Topic),
    /// A parked key is redriven: hold its messages, and say when no dead letter of it is on its way any more, and which message
    /// of this ownership was the last that became one.
    Hold { owned: Owned, key: Key, held: oneshot::Sender<Option<u64>> },
    /// Run this dead letter of a key that is held, and say whether it was handled (true) or given up.
    Redrive { owned: Owned, letter: Letter, done: oneshot::Sender<bool> },
    /// The redrive has ended. With an offset the key is free, and what is below is done and may be delivered again; without, it is
    /// parked as before.
    Unhold { owned: Owned, key: Key, below: Option<u64> },
    /// What these lanes wait for is committed: they run.
    Committed { owned: Owned, lanes: Vec<usize> },
    /// What is running or failing longer than it should.
    Report(oneshot::Sender<ShardReport>),
}

/// What a shard knows of parked keys when an ownership begins: those whose lanes are here.
#[derive(Debug)]
pub(crate) struct ParkedHere {
    pub(crate) keeper: KeeperHandle,
    pub(crate) keys: Vec<ParkedKey>,
}

/// A dead letter to be run.
#[derive(Debug)]
pub(crate) struct Letter {
    /// Where the message was.
    pub(crate) offset: u64,
    /// Where its letter is in its partition of the dead-letter topic.
    pub(crate) place: u64,
    pub(crate) message: Message,
}

/// Messages for a shard, at most [`MOST`], and an emptied list for what becomes of them.
#[derive(Debug)]
pub(crate) struct Jobs {
    pub(crate) jobs: Vec<Job>,
    pub(crate) spare: Outcomes,
}

/// Jobs that are sent at once: they fit the first cache of a core, and a shard begins with them while the driver still routes
/// the rest of a read.
pub(crate) const MOST: usize = 256;

/// What became of messages; the i-th size is the i-th message's, in bytes.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    pub(crate) settled: Vec<(Token, Settlement)>,
    pub(crate) sizes: Vec<usize>,
}

impl Outcomes {
    #[inline]
    pub(crate) fn push(&mut self, token: Token, bytes: usize, settlement: Settlement) {
        self.settled.push((token, settlement));
        self.sizes.push(bytes);
    }
}

/// From a shard to the driver.
#[derive(Debug)]
pub(crate) enum FromShard {
    /// What became of messages, and an emptied list for others.
    Settled { outcomes: Outcomes, spare: Vec<Job> },
    /// At most once: settle these and commit them, and say so to the lanes that wait for it.
    CommitAhead { shard: usize, owned: Owned, lanes: Vec<usize>, batch: Vec<(Token, Settlement)> },
    /// Messages that were settled before their runs are over: partition and bytes of each.
    Over(Vec<(Slot, usize)>),
    /// Nothing of this ownership runs or is queued in this shard any more, and all that was is settled.
    Ended { owned: Owned, left: LeftInShard },
}

/// What an ownership's end left unfinished in a shard, of what had run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LeftInShard {
    pub(crate) failing: usize,
    pub(crate) cancelled: usize,
    /// Of these, settled before they ran.
    pub(crate) settled: usize,
    /// Settled and never started.
    pub(crate) lost: usize,
}

/// What a shard says about itself.
#[derive(Debug)]
pub(crate) struct ShardReport {
    pub(crate) running: usize,
    pub(crate) lanes: usize,
    pub(crate) stuck: Vec<Stuck>,
}
