//! How a run starts: with a slot, while the lease lasts, when its handler is ready (G3, G5).

use std::task::{Context, Poll};

use ebus_core::Delivery;

use super::Route;
use super::tenure::Tenure;
use crate::jobs::Job;
use crate::lane::now;
use crate::runner::{Ended, PendingRun, Started};
use crate::shared::Shared;

/// What an attempt to start a run came to.
pub(super) enum Begun {
    /// No slot, or the handler is not ready: the shard is woken when that changes.
    Blocked,
    /// The lease has run out.
    LeaseOver,
    Ended(Ended),
    Running(PendingRun),
}

/// Starts a run if there is a slot, the handler is ready and the lease lasts.
#[allow(clippy::too_many_arguments)] // A method would borrow the whole shard.
pub(super) fn begin(
    shared: &Shared,
    shard: usize,
    credit: &mut usize,
    route: &mut Route,
    tenure: &Tenure,
    job: &Job,
    attempt: u32,
    cx: &mut Context<'_>,
) -> Begun {
    let Some(runner) = &mut route.runner else { return Begun::Blocked };
    if tenure.lease.is_limited() && !tenure.lease.is_current(now()) {
        return Begun::LeaseOver;
    }
    if *credit == 0 {
        if !shared.slots.acquire(shard, cx.waker()) {
            return Begun::Blocked;
        }
        *credit = 1;
    }
    let ready = runner.poll_ready(cx);
    route.asked = ready.is_pending();
    match ready {
        Poll::Pending => return Begun::Blocked,
        Poll::Ready(Err(ended)) => return Begun::Ended(ended),
        Poll::Ready(Ok(())) => {}
    }
    let delivery = Delivery::new(
        tenure.partition.clone(),
        tenure.owned.epoch,
        job.token.offset(),
        attempt,
        job.message.clone(),
    );
    match runner.start(delivery, cx) {
        Started::Ended(ended) => Begun::Ended(ended),
        Started::Pending(run) => {
            *credit -= 1;
            Begun::Running(run)
        }
    }
}
