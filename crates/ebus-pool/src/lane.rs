//! A key lane: the deliveries of one key, in order, one at a time (G2).

use std::collections::VecDeque;
use std::time::Instant;

use ebus_core::{Error, Timestamp};
use tokio::sync::oneshot;
use tokio_util::time::delay_queue;

use crate::jobs::Job;
use crate::retry::Retries;
use crate::route::LaneKey;

/// Now, on the runtime's clock: what a test that pauses time moves.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Exists only while it has work. The message at the head stays there until it is done, whatever happens to it.
pub(crate) struct Lane {
    /// Its place in the map of lanes; `None` for a message without a key.
    pub(crate) key: Option<LaneKey>,
    pub(crate) head: Head,
    /// What comes after the head.
    pub(crate) queue: VecDeque<Job>,
    pub(crate) phase: Phase,
    /// So many messages, from the head on, were in a batch that failed without a name: each runs by itself.
    pub(crate) alone: usize,
    /// Its head is a dead letter that is redriven: it came from no source, and is settled with none.
    pub(crate) redrive: Option<Box<Redrive>>,
    /// What of it was settled before its run; `None` unless the pool is at most once.
    pub(crate) ahead: Option<Box<Ahead>>,
}

/// How far a lane is settled and committed ahead of its runs.
pub(crate) struct Ahead {
    /// So many messages, from the head on: they run, or are lost.
    pub(crate) messages: usize,
    /// How many the next commit may cover.
    pub(crate) window: usize,
    /// When the last commit was answered.
    pub(crate) since: Instant,
}

impl Lane {
    /// Whether its head is settled, and committed or about to be.
    pub(crate) fn is_ahead(&self) -> bool {
        self.ahead.as_ref().is_some_and(|ahead| ahead.messages > 0)
    }
}

/// Messages behind the head for which room is made at first.
pub(crate) const FIRST: usize = 4;

impl Lane {
    /// Behind what waits already. The list grows by half, not to double: it is most of what a pool holds (G5).
    pub(crate) fn push(&mut self, job: Job) {
        if self.queue.len() == self.queue.capacity() {
            self.queue.reserve_exact((self.queue.len() / 2).max(FIRST));
        }
        self.queue.push_back(job);
    }
}

/// A dead letter that is redriven.
pub(crate) struct Redrive {
    /// Where its letter is.
    pub(crate) place: u64,
    /// Answered true when it was handled, false when it was given up.
    pub(crate) done: Option<oneshot::Sender<bool>>,
    /// What is being written down of it.
    pub(crate) handled: bool,
}

/// The message that a lane is at.
pub(crate) struct Head {
    pub(crate) job: Job,
    /// When it became the head.
    pub(crate) since: Instant,
    /// Runs that have begun.
    pub(crate) attempts: u32,
    pub(crate) failure: Option<Box<Failure>>,
}

/// What is known of a message that failed.
pub(crate) struct Failure {
    pub(crate) first: Timestamp,
    pub(crate) last: Timestamp,
    pub(crate) since: Instant,
    pub(crate) error: Error,
    pub(crate) retries: Retries,
}

/// What the head is doing.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Stands in its route's queue for a slot; at most once, before its commit, in the queue of its tenure.
    Ready,
    /// It is settled, and an accepted commit that covers it is waited for.
    Committing { since: Instant },
    /// Stands in its route's next batch, with so many messages from the head on.
    Gathering { taken: usize },
    /// Its handler runs.
    Running { since: Instant },
    /// So many messages from the head on are in a batch whose handler runs.
    InBatch { since: Instant, messages: usize },
    /// Waits for its retry, without a slot; or for its lease to be moved on.
    Waiting { timer: delay_queue::Key, until: Instant, lease_over: bool },
    /// Its dead letter is being published.
    DeadLetter { since: Instant },
    /// Its key is being redriven.
    Held,
    /// It is a dead letter that was redriven, and that is being written down.
    Keeping { since: Instant },
}

impl Head {
    pub(crate) fn new(job: Job, since: Instant) -> Self {
        Self { job, since, attempts: 0, failure: None }
    }
}

/// A lane's key is a hash already.
pub(crate) type LaneHash = std::hash::BuildHasherDefault<KeyIsHash>;

#[derive(Default)]
pub(crate) struct KeyIsHash(u64);

impl std::hash::Hasher for KeyIsHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        debug_assert!(false, "lane keys are u64, not {bytes:?}");
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}
