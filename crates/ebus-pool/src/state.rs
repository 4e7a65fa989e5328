//! What a pool says about itself, and about its end.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ebus_core::{Epoch, Error, Key, PartitionId};

/// A snapshot of a pool.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PoolState {
    /// Handler runs in progress.
    pub in_flight: usize,
    /// Messages held: queued, in progress, or waiting for a retry.
    pub held_messages: usize,
    /// Their bytes of key, headers and payload.
    pub held_bytes: usize,
    /// Keys with work.
    pub lanes: usize,
    /// The partitions that are owned.
    pub partitions: Vec<PartitionState>,
    /// Messages that failed and are not done, and those whose run lasts, or that wait for one, longer than they should; the
    /// oldest first, 100 a shard at most.
    pub stuck: Vec<Stuck>,
    /// Shards that did not answer in time: a handler blocks their thread.
    pub blocked_shards: usize,
    /// What happened since the start.
    pub counters: Counters,
    /// Why a dead letter could not be published, the last failure of those that wait; `None` when none waits for that.
    pub dead_letter_error: Option<Error>,
    /// The last passing failure that the source told of.
    pub trouble: Option<Error>,
    /// Why the pool has ended by itself, if it has.
    pub ended: Option<Error>,
}

/// A partition that is owned.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PartitionState {
    /// The partition.
    pub partition: PartitionId,
    /// The ownership.
    pub epoch: Epoch,
    /// Messages of it that are held.
    pub held_messages: usize,
    /// Their bytes.
    pub held_bytes: usize,
    /// Its keys that are parked, or are about to be.
    pub parked_keys: usize,
    /// It is not read at present: by the user's wish, because it holds more than its share, or because its parked keys are not
    /// read yet.
    pub paused: bool,
    /// It is not read on before some of it is finished: what is read and not finished takes all of its span
    /// ([`max_span`](ebus_core::LedgerLimits::max_span)), or of the text of its position.
    pub full: bool,
    /// It is being given up.
    pub ending: bool,
}

/// A message that is not done, and why.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Stuck {
    /// Where it is from.
    pub partition: PartitionId,
    /// Its place there.
    pub offset: u64,
    /// Its key.
    pub key: Option<Key>,
    /// For how long: since its first failure, since its run began, or since it was its key's turn.
    pub age: Duration,
    /// What it is at.
    pub doing: Doing,
    /// Runs that have begun.
    pub attempts: u32,
    /// The last failure; `None` while the first run lasts.
    pub last_error: Option<Error>,
    /// Time until the next run, of one that waits for its retry.
    pub next_retry: Option<Duration>,
    /// Messages of the same key behind it.
    pub waiting_behind: usize,
}

/// What a message is at that is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Doing {
    /// Its handler runs.
    Running,
    /// It failed, and waits for its next run.
    Retrying,
    /// It is its turn; all slots are in use, its handler is not ready, or its batch still gathers.
    NotStarted,
    /// Its commit is not accepted yet, and it must not start before ([at most once](crate::PoolConfig::with_at_most_once)).
    Committing,
    /// The lease of its partition is over: nothing starts before it is renewed or the partition is lost.
    LeaseOver,
    /// Its dead letter is being published; or what was done of a parked key is being written down.
    DeadLetter,
    /// Its key is being redriven: it waits for the dead letters before it.
    Held,
}

/// What happened since the start of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Handled to success.
    pub handled: u64,
    /// Attempts that failed and were followed by a wait for another one.
    pub retries: u64,
    /// Attempts that panicked.
    pub panics: u64,
    /// Messages whose dead letter has its receipt.
    pub dead_letters: u64,
    /// Of these, messages that never ran because their key was parked.
    pub parked: u64,
    /// Dead letters of parked keys that were redriven to success.
    pub redriven: u64,
    /// Messages settled without a run because they came again after they had been redriven, or had parked their key: as after a
    /// crash, and when somebody sets the group's position back.
    pub skipped: u64,
    /// Messages dropped because the user asked for it.
    pub dropped: u64,
    /// Runs cancelled at a hand-over or a loss. At most once, these messages do not run again.
    pub cancelled: u64,
    /// Of a pool that is [at most once](crate::PoolConfig::with_at_most_once): messages that were settled and never started, because
    /// their partition was lost, or had to be given up before it was their turn. Where the commit was not accepted before a loss,
    /// the next owner runs them all the same.
    pub lost: u64,
    /// Settlements and releases that the source found void.
    pub stale: u64,
}

#[derive(Debug, Default)]
pub(crate) struct AtomicCounters {
    pub(crate) handled: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) dead_letters: AtomicU64,
    pub(crate) parked: AtomicU64,
    pub(crate) redriven: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) stale: AtomicU64,
}

impl AtomicCounters {
    pub(crate) fn snapshot(&self) -> Counters {
        Counters {
            handled: self.handled.load(Relaxed),
            retries: self.retries.load(Relaxed),
            panics: self.panics.load(Relaxed),
            dead_letters: self.dead_letters.load(Relaxed),
            parked: self.parked.load(Relaxed),
            redriven: self.redriven.load(Relaxed),
            skipped: self.skipped.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            lost: self.lost.load(Relaxed),
            stale: self.stale.load(Relaxed),
        }
    }
}

/// What a drain came to.
#[derive(Debug, Clone)]
#[must_use = "the report says whether everything was finished and committed"]
#[non_exhaustive]
pub struct DrainReport {
    /// Messages finished since the drain began.
    pub finished: u64,
    /// What was left to the next owner, by partition.
    pub left: Vec<Left>,
    /// Whether the last commit was accepted. If not, what finished since the one before runs again.
    pub committed: Result<(), Error>,
    /// What happened since the start of the pool.
    pub counters: Counters,
}

/// What a partition's end left unfinished.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Left {
    /// The partition.
    pub partition: PartitionId,
    /// Messages that never started.
    pub queued: usize,
    /// Messages that failed and waited for another attempt.
    pub failing: usize,
    /// Messages whose run was cancelled at the deadline. At most once, they do not run again.
    pub cancelled: usize,
    /// Not left but lost: messages of a pool that is [at most once](crate::PoolConfig::with_at_most_once) that were committed and
    /// did not start before the deadline.
    pub lost: usize,
}
