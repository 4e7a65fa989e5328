//! The end of a pool: by a drain, by itself, or by a panic (G1, G3, G9).

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use ebus_core::{Error, ErrorKind, Owned, Source};
use futures_util::FutureExt;
use tokio::time::Instant;

use super::Driver;
use crate::endings::Ending;
use crate::state::DrainReport;

/// How long is waited for cancelled runs whose threads a handler blocks, in turns.
const BLOCKED_GRACE: u32 = 5;
const GRACE_TURN: Duration = Duration::from_secs(1);
/// The least time for the last commit, when a drain has used its own up.
const LEAST_CLOSE: Duration = Duration::from_secs(1);

async fn close(source: Box<dyn Source>, within: Duration) -> Result<(), Error> {
    let closed = AssertUnwindSafe(source.close(within)).catch_unwind().await;
    closed
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Unexpected, "the source panicked while it was closed")))
}

/// How driving ended.
pub(super) enum End {
    Drained,
    /// The user dropped the pool.
    Forgotten,
    /// The source ended, or a shard did.
    Failed(Error),
    /// A panic: the source is not asked for anything any more.
    Broken(Error),
}

/// How long a drain waits for runs that were cancelled and do not end, because their threads are blocked. Counted in turns of
/// this loop, a second each: of a process that was stopped meanwhile, no time has passed.
#[derive(Default)]
pub(super) struct Grace {
    pub(super) next: Option<Instant>,
    turns: u32,
}

impl Grace {
    pub(super) fn run(&mut self, all_cancelled: bool) {
        if !all_cancelled {
            *self = Self::default();
            return;
        }
        let now = Instant::now();
        if self.next.is_none_or(|next| next <= now) {
            self.turns += u32::from(self.next.is_some());
            self.next = Some(now + GRACE_TURN);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.turns >= BLOCKED_GRACE
    }
}

impl Driver {
    /// Ends what is left, closes the source and reports.
    pub(super) async fn finish(mut self, end: End) {
        let by_itself = matches!(end, End::Failed(_) | End::Broken(_));
        if !matches!(end, End::Drained) {
            self.cancel_all(!matches!(end, End::Broken(_))).await;
        }
        let blocked: Vec<(Owned, Ending)> = self.endings.drain().collect();
        if !blocked.is_empty() {
            tracing::error!(
                partitions = blocked.len(),
                "handlers block their threads, or never end, after they were cancelled"
            );
        }
        for (owned, ending) in &blocked {
            self.note_left(*owned, ending);
        }
        // Nobody waits for an answer while the source is closed, nor finds the pool open when he has the report.
        self.control.close();
        while self.control.try_recv().is_ok() {}
        let finished = self.finished();
        let (deadline, before) =
            self.draining.as_ref().map_or((Instant::now(), finished), |d| (d.deadline, d.handled_before));
        let within = deadline.saturating_duration_since(Instant::now()).max(LEAST_CLOSE);
        let committed = match end {
            End::Drained => close(self.source, within).await,
            End::Failed(error) => {
                // What it ended by is what is reported.
                let _ = close(self.source, within).await;
                Err(error)
            }
            // Dropped unclosed, as by a crash: nothing more is committed.
            End::Forgotten => Err(Error::closed("consume")),
            End::Broken(error) => Err(error),
        };
        let counters = self.shared.counters.snapshot();
        let left = std::mem::take(&mut self.left);
        let report = DrainReport { finished: finished - before, left, committed, counters };
        if let (true, Err(error)) = (by_itself, &report.committed) {
            tracing::error!(group = %self.shared.config.group, error = %error.chain(), "consumer has ended by itself");
        }
        self.report.send_replace(Some(report));
    }
}
