//! Ownerships that are ending, and what each of them still waits for (G2, G3).
//!
//! An ownership has ended when **every** shard has said so. Only then is it released, and only then may the next epoch of the
//! same partition begin.

use std::collections::HashMap;
use std::time::Duration;

use ebus_core::{Owned, Slot};
use tokio::time::Instant;

use crate::jobs::LeftInShard;

/// The part of a hand-over's time that is kept for dropping futures and telling the source before it takes the partition away,
/// and the most that is kept.
const MARGIN: (u32, Duration) = (4, Duration::from_millis(250));

/// What follows when all shards have confirmed; of two that are asked for, the greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Then {
    /// The pool drains: the source is closed when all have ended.
    Drain,
    /// The source asked for it: release.
    Release,
    /// It was lost: nothing.
    Forget,
}

#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) then: Then,
    /// Shards that have not confirmed.
    waiting: usize,
    /// `None` once its runs were cancelled.
    cancel_at: Option<Instant>,
    /// Messages of it that were given up unfinished.
    dropped: usize,
    pub(crate) left: LeftInShard,
}

impl Ending {
    /// Messages that never started; `held` are those that a shard has not even looked at.
    pub(crate) fn never_started(&self, held: usize) -> usize {
        let left = self.left;
        (self.dropped + held + left.settled).saturating_sub(left.failing + left.cancelled)
    }
}

/// Those that some shard has not confirmed.
#[derive(Debug, Default)]
pub(crate) struct Endings {
    open: HashMap<Owned, Ending>,
}

impl Endings {
    /// An end begins; its runs are cancelled at `deadline`, those of a hand-over shortly before.
    pub(crate) fn begin(&mut self, owned: Owned, shards: usize, then: Then, deadline: Instant) {
        let cancel_at = Some(cancel_at(then, deadline));
        let left = LeftInShard::default();
        self.open.insert(owned, Ending { then, waiting: shards, cancel_at, dropped: 0, left });
    }

    /// An end that is under way comes to more, or sooner, never to less or later. False when there is none.
    pub(crate) fn hasten(&mut self, owned: Owned, then: Then, deadline: Instant) -> bool {
        let Some(ending) = self.open.get_mut(&owned) else { return false };
        ending.hasten(then, deadline);
        true
    }

    /// The same for all of a partition: those before `owned` too.
    pub(crate) fn hasten_slot(&mut self, slot: Slot, deadline: Instant) {
        for (_, ending) in self.open.iter_mut().filter(|(owned, _)| owned.slot == slot) {
            ending.hasten(ending.then, deadline);
        }
    }

    /// The same for all.
    pub(crate) fn hasten_all(&mut self, deadline: Instant) {
        for ending in self.open.values_mut() {
            ending.hasten(ending.then, deadline);
        }
    }

    /// All that are open.
    pub(crate) fn all(&self) -> Vec<Owned> {
        self.open.keys().copied().collect()
    }

    pub(crate) fn contains(&self, owned: Owned) -> bool {
        self.open.contains_key(&owned)
    }

    /// Whether some former ownership of this partition has not ended yet.
    pub(crate) fn has_slot(&self, slot: Slot) -> bool {
        self.open.keys().any(|owned| owned.slot == slot)
    }

    /// All that are open of a partition.
    pub(crate) fn of_slot(&self, slot: Slot) -> Vec<Owned> {
        self.open.keys().copied().filter(|owned| owned.slot == slot).collect()
    }

    pub(crate) fn is_lost(&self, owned: Owned) -> bool {
        self.open.get(&owned).is_some_and(|ending| ending.then == Then::Forget)
    }

    /// A message was given up unfinished.
    pub(crate) fn dropped(&mut self, owned: Owned) {
        if let Some(ending) = self.open.get_mut(&owned) {
            ending.dropped += 1;
        }
    }

    /// Marks an end as cancelled, so that it is not cancelled again.
    pub(crate) fn cancelled(&mut self, owned: Owned) {
        if let Some(ending) = self.open.get_mut(&owned) {
            ending.cancel_at = None;
        }
    }

    /// One shard has confirmed: the ending, if it was the last one.
    pub(crate) fn confirm(&mut self, owned: Owned, left: LeftInShard) -> Option<Ending> {
        let ending = self.open.get_mut(&owned)?;
        ending.left.failing += left.failing;
        ending.left.cancelled += left.cancelled;
        ending.left.settled += left.settled;
        ending.left.lost += left.lost;
        ending.waiting -= 1;
        if ending.waiting > 0 {
            return None;
        }
        self.open.remove(&owned)
    }

    /// When the next runs are to be cancelled.
    pub(crate) fn next_cancel(&self) -> Option<Instant> {
        self.open.values().filter_map(|ending| ending.cancel_at).min()
    }

    /// Takes those whose runs are to be cancelled at `now`.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<Owned> {
        let mut due = Vec::new();
        for (owned, ending) in &mut self.open {
            if ending.cancel_at.is_some_and(|at| at <= now) {
                ending.cancel_at = None;
                due.push(*owned);
            }
        }
        due
    }

    /// Whether all are cancelled, and only runs that block their threads can be left.
    pub(crate) fn all_cancelled(&self) -> bool {
        self.open.values().all(|ending| ending.cancel_at.is_none())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Owned, Ending)> + '_ {
        self.open.drain()
    }
}

impl Ending {
    fn hasten(&mut self, then: Then, deadline: Instant) {
        self.then = self.then.max(then);
        let at = cancel_at(self.then, deadline);
        self.cancel_at = self.cancel_at.map(|before| before.min(at));
    }
}

/// When runs are cancelled that must have ended by `deadline`.
fn cancel_at(then: Then, deadline: Instant) -> Instant {
    let left = deadline.saturating_duration_since(Instant::now());
    let margin = (left / MARGIN.0).min(MARGIN.1);
    if then == Then::Release { deadline - margin } else { deadline }
}

#[cfg(test)]
#[path = "endings_tests.rs"]
mod tests;
