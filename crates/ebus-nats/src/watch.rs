//! Whether another member is alive, judged by this member's own clock (G3): its heartbeat, or a record that it owns.
//!
//! There is no wall clock between members: an owner is taken for dead when his record did not change for his lease, seen
//! from here without a gap.

use std::time::Duration;

use tokio::time::Instant;

/// What is known of a key that somebody else writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch {
    revision: u64,
    /// The answer that first showed this revision.
    since: Instant,
    /// The last answer.
    seen: Instant,
}

impl Watch {
    pub(crate) fn new(revision: u64, answered: Instant) -> Self {
        Self { revision, since: answered, seen: answered }
    }

    /// The record was read. Starts again when it changed, or when this member looked away for a third of the lease:
    /// whoever slept that long, or could not ask, must not judge others. One look that failed is no reason: in a cluster that
    /// elects a leader nobody would ever be judged.
    pub(crate) fn saw(&mut self, revision: u64, answered: Instant, lease: Duration) {
        if revision != self.revision || answered.duration_since(self.seen) > lease / 3 {
            *self = Self::new(revision, answered);
        }
        self.seen = answered;
    }

    /// How long it stood still, as of a look that was asked for at `asked`.
    pub(crate) fn still(&self, asked: Instant) -> Duration {
        asked.saturating_duration_since(self.since)
    }

    /// Whether it stood still for a lease, as of a look that was asked for at `asked`.
    pub(crate) fn is_dead(&self, asked: Instant, lease: Duration) -> bool {
        self.still(asked) >= lease
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(3);
    const STEP: Duration = Duration::from_millis(300);

    #[test]
    fn p3_only_a_whole_lease_without_a_gap_is_death() {
        let start = Instant::now();
        let mut watch = Watch::new(7, start);
        let mut now = start;
        for _ in 0..10 {
            assert!(!watch.is_dead(now, LEASE));
            now += STEP;
            watch.saw(7, now, LEASE);
        }
        assert!(watch.is_dead(now, LEASE));
        watch.saw(8, now, LEASE);
        assert!(!watch.is_dead(now + STEP, LEASE), "it moved");
    }

    #[test]
    fn p3_a_look_that_failed_in_between_does_not_start_it_again() {
        let start = Instant::now();
        let mut watch = Watch::new(7, start);
        // Every second look fails.
        for step in (2..=10).step_by(2) {
            watch.saw(7, start + STEP * step, LEASE);
        }
        assert!(watch.is_dead(start + STEP * 10, LEASE));
    }

    #[test]
    fn p3_who_slept_starts_again() {
        let start = Instant::now();
        let mut watch = Watch::new(7, start);
        let woke = start + LEASE * 2;
        watch.saw(7, woke, LEASE);
        assert!(!watch.is_dead(woke, LEASE));
    }
}
