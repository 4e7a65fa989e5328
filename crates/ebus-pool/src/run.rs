//! A run in progress, in the set that a shard polls.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use ebus_core::{Outcome, Owned};

use crate::runner::{Ended, PendingRun, drop_run, guarded};

/// A handler's run or a dead letter's publish. It belongs to somebody, to whom it goes back when it has said how it ended.
pub(crate) struct Run<W = OfLane, O = Outcome> {
    /// There until it has ended.
    pub(crate) whose: Option<W>,
    future: Option<PendingRun<O>>,
    waker: Option<Waker>,
}

/// Whose a run of one message is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OfLane {
    pub(crate) lane: usize,
    pub(crate) owned: Owned,
}

/// What a run said at its end; `None` when it was cancelled.
pub(crate) struct RunEnd<W = OfLane, O = Outcome> {
    pub(crate) whose: W,
    pub(crate) ended: Option<Ended<O>>,
}

impl<W, O> Run<W, O> {
    pub(crate) fn new(whose: W, future: PendingRun<O>) -> Self {
        Self { whose: Some(whose), future: Some(future), waker: None }
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

impl<W: Unpin, O> Future for Run<W, O> {
    type Output = RunEnd<W, O>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<RunEnd<W, O>> {
        let mut ended = None;
        if let Some(future) = &mut self.future {
            // A handler's run has a guard of its own; this one is for what surrounds it, and for dead letters.
            let polled = guarded(|| future.as_mut().poll(cx)).unwrap_or_else(Poll::Ready);
            let Poll::Ready(end) = polled else {
                // The set gives each run one waker for life.
                if self.waker.is_none() {
                    self.waker = Some(cx.waker().clone());
                }
                return Poll::Pending;
            };
            ended = Some(end);
        }
        if let Some(future) = self.future.take() {
            drop_run(future);
        }
        // Polled after its end, as the set does not: there is nobody to say it to.
        self.whose.take().map_or(Poll::Pending, |whose| Poll::Ready(RunEnd { whose, ended }))
    }
}
