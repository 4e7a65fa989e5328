//! What the oracle says.

use std::fmt;
use std::time::Duration;

use crate::history::Event;

/// A promise that a history can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Promise {
    /// No loss.
    G1,
    /// Order per key.
    G2,
    /// No overlap.
    G3,
    /// A slow or failing key delays only itself.
    G4,
    /// Bounded.
    G5,
    /// Few duplicates.
    G6,
    /// Publish order.
    G7,
    /// None: the history itself cannot be true.
    Malformed,
}

/// One way in which a promise was broken.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Finding {
    /// The promise.
    pub promise: Promise,
    /// What is wrong.
    pub what: String,
    /// The events that show it, in order.
    pub events: Vec<Event>,
}

/// What the oracle found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Verdict {
    /// Calls of publishers.
    pub published: u64,
    /// Calls that the broker acknowledged.
    pub stored: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Runs that began, of all groups.
    pub runs: u64,
    /// Messages that were handled to success, once for each group.
    pub handled: u64,
    /// Runs that ended in `retry` or in a panic.
    pub retries: u64,
    /// Messages whose dead letter has its receipt, once for each group.
    pub dead_letters: u64,
    /// Runs of dead letters that were redriven, and succeeded.
    pub redriven: u64,
    /// Messages that ran again because of a crash; no promise is broken.
    pub replayed: u64,
    /// Of these, how long before the crash the oldest was finished; but for those whose commit another fault held up.
    pub oldest_replayed: Duration,
    /// Of these, those whose commit another fault held up.
    pub held_up: u64,
    /// Of these, how long before the crash the oldest was finished.
    pub oldest_held_up: Duration,
    /// Starts beside an open run of their key that are excused: a member did not know yet that it had lost its partition.
    pub excused_overlaps: u64,
    /// Of groups that are at most once: runs without an end, because their process died; no promise is broken.
    pub cut_short: u64,
    /// Of groups that are at most once: messages that were settled and never started, because their owner crashed; no promise is
    /// broken.
    pub unstarted_at_crashes: u64,
    /// Of groups that are at most once: messages that were settled and never started by an owner that gave its partition up in
    /// order. As many as members counted as lost, not more.
    pub unstarted: u64,
    /// G1: messages that were lost, once for each group.
    pub lost: u64,
    /// G2: starts out of order.
    pub reordered: u64,
    /// G3: starts beside an open run of their key, or without ownership.
    pub overlapping: u64,
    /// G4: messages that started too late.
    pub delayed: u64,
    /// G5: starts above the bound.
    pub unbounded: u64,
    /// G6: starts of what was finished, and dead letters of what was handled, that no crash excuses.
    pub duplicates: u64,
    /// G7: messages stored in another order than that of their calls.
    pub misplaced: u64,
    /// Events that cannot be true.
    pub malformed: u64,
    /// The first of all these, explained.
    pub findings: Vec<Finding>,
    most: usize,
}

impl Verdict {
    pub(super) fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    /// Whether every promise held.
    pub fn kept(&self) -> bool {
        self.broken() == 0
    }

    /// How often a promise was broken.
    pub fn broken(&self) -> u64 {
        self.lost
            + self.reordered
            + self.overlapping
            + self.delayed
            + self.unbounded
            + self.duplicates
            + self.misplaced
            + self.malformed
    }

    /// How often this promise was broken.
    pub fn count(&self, promise: Promise) -> u64 {
        match promise {
            Promise::G1 => self.lost,
            Promise::G2 => self.reordered,
            Promise::G3 => self.overlapping,
            Promise::G4 => self.delayed,
            Promise::G5 => self.unbounded,
            Promise::G6 => self.duplicates,
            Promise::G7 => self.misplaced,
            Promise::Malformed => self.malformed,
        }
    }

    pub(super) fn find<'a>(
        &mut self,
        promise: Promise,
        what: impl FnOnce() -> String,
        events: impl IntoIterator<Item = &'a Event>,
    ) {
        *match promise {
            Promise::G1 => &mut self.lost,
            Promise::G2 => &mut self.reordered,
            Promise::G3 => &mut self.overlapping,
            Promise::G4 => &mut self.delayed,
            Promise::G5 => &mut self.unbounded,
            Promise::G6 => &mut self.duplicates,
            Promise::G7 => &mut self.misplaced,
            Promise::Malformed => &mut self.malformed,
        } += 1;
        if self.findings.len() < self.most {
            let events = events.into_iter().cloned().collect();
            self.findings.push(Finding { promise, what: what(), events });
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "published {}, stored {}, failed {}, runs {}, handled {}, retries {}, dead letters {}, replayed {}",
            self.published,
            self.stored,
            self.failed,
            self.runs,
            self.handled,
            self.retries,
            self.dead_letters,
            self.replayed
        )?;
        write!(
            f,
            "lost {}, reordered {}, overlapping {}, duplicates {}, misplaced {}, delayed {}, unbounded {}, malformed {}",
            self.lost,
            self.reordered,
            self.overlapping,
            self.duplicates,
            self.misplaced,
            self.delayed,
            self.unbounded,
            self.malformed
        )?;
        for finding in &self.findings {
            write!(f, "\n{finding}")?;
        }
        let hidden = self.broken().saturating_sub(self.findings.len() as u64);
        if hidden > 0 {
            write!(f, "\n... and {hidden} more")?;
        }
        Ok(())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.what)?;
        for event in &self.events {
            let line = serde_json::to_string(event).map_err(|_| fmt::Error)?;
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}
