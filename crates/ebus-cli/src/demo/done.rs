//! How far a run is: for waiting and for the progress bar, not for the verdict.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::watch;

/// What was published and handled so far, each event once.
#[derive(Debug)]
pub(crate) struct Done {
    stored: AtomicU64,
    handled: Vec<AtomicU64>,
    count: AtomicU64,
    rejected: AtomicU64,
    marks: Vec<u64>,
    reached: watch::Sender<u64>,
}

impl Done {
    /// For so many events; waits can be for `marks` only.
    pub(crate) fn new(events: u64, marks: Vec<u64>) -> Self {
        Self {
            stored: AtomicU64::new(0),
            handled: (0..events.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            count: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            marks,
            reached: watch::Sender::new(0),
        }
    }

    /// One event more has its receipt.
    pub(crate) fn store(&self) {
        self.stored.fetch_add(1, Relaxed);
    }

    /// Events that have their receipt.
    pub(crate) fn stored(&self) -> u64 {
        self.stored.load(Relaxed)
    }

    /// The handler is through with this event.
    pub(crate) fn mark(&self, index: usize, rejected: bool) {
        let bit = 1 << (index % 64);
        if self.handled[index / 64].fetch_or(bit, Relaxed) & bit != 0 {
            return;
        }
        self.rejected.fetch_add(u64::from(rejected), Relaxed);
        let count = self.count.fetch_add(1, Relaxed) + 1;
        if self.marks.contains(&count) {
            self.reached.send_modify(|reached| *reached = (*reached).max(count));
        }
    }

    /// Events that the handlers are through with.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Those of them that were rejected.
    pub(crate) fn rejected(&self) -> u64 {
        self.rejected.load(Relaxed)
    }

    /// Waits until `mark`, one of those given, is reached.
    pub(crate) async fn reached(&self, mark: u64) {
        // The sender is part of `self`.
        let _ = self.reached.subscribe().wait_for(|reached| *reached >= mark).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_event_counts_once() {
        let done = Done::new(100, vec![2]);
        done.mark(7, false);
        done.mark(7, false);
        assert_eq!((done.count(), done.rejected()), (1, 0));
        done.mark(99, true);
        assert_eq!((done.count(), done.rejected()), (2, 1));
        done.reached(2).await;
    }
}
