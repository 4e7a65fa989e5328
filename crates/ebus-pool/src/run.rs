//! A run in progress, in the set that a shard polls.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use ebus_core::Owned;

use crate::runner::{Ended, PendingRun, drop_run, guarded};

/// Belongs to one lane until it has said how it ended. A handler's run or a dead letter's publish.
pub(crate) struct Run {
    pub(crate) lane: usize,
    pub(crate) owned: Owned,
    future: Option<PendingRun>,
    waker: Option<Waker>,
}

/// What a run said at its end; `None` when it was cancelled.
pub(crate) struct RunEnd {
    pub(crate) lane: usize,
    pub(crate) ended: Option<Ended>,
}

impl Run {
    pub(crate) fn new(lane: usize, owned: Owned, future: PendingRun) -> Self {
        Self { lane, owned, future: Some(future), waker: None }
    }

    /// Drops the handler's future now; the run says so at its next poll.
    pub(crate) fn cancel(&mut self) {
        if let Some(future) = self.future.take() {
            drop_run(future);
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Future for Run {
    type Output = RunEnd;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<RunEnd> {
        let lane = self.lane;
        let Some(future) = &mut self.future else { return Poll::Ready(RunEnd { lane, ended: None }) };
        // A handler's run has a guard of its own; this one is for what surrounds it, and for dead letters.
        let polled = guarded(|| future.as_mut().poll(cx)).unwrap_or_else(Poll::Ready);
        match polled {
            Poll::Ready(ended) => {
                if let Some(future) = self.future.take() {
                    drop_run(future);
                }
                Poll::Ready(RunEnd { lane, ended: Some(ended) })
            }
            Poll::Pending => {
                // The set gives each run one waker for life.
                if self.waker.is_none() {
                    self.waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}
