//! How a run starts: with a slot, while the lease lasts, when its handler is ready (G3, G5).

use std::task::{Context, Poll};

use ebus_core::Delivery;

use super::tenure::Tenure;
use super::{CHUNK, Pass, Route, Shard};
use crate::jobs::Job;
use crate::lane::{Phase, now};
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
#[inline(always)] // The way of every message: passing its arguments costs as much as the rest.
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

impl Shard {
    /// Starts what is ready, as far as slots and readiness go: one of each route in turn.
    pub(super) fn start_ready(&mut self, pass: &mut Pass, cx: &mut Context<'_>) {
        let mut in_vain = 0;
        for _ in 0..CHUNK {
            if in_vain >= self.routes.len() || pass.enough || pass.closed {
                return;
            }
            let route = self.next_route % self.routes.len();
            self.next_route = route + 1;
            if !self.start_one(route, cx) {
                in_vain += 1;
                continue;
            }
            in_vain = 0;
            pass.progress = true;
            pass.enough = self.pace.called(self.index);
            if !self.commands.is_empty() {
                pass.closed = self.take_commands();
            }
        }
    }

    /// Starts the lane that waits longest on a route; false when there is none, or it cannot start.
    fn start_one(&mut self, route: usize, cx: &mut Context<'_>) -> bool {
        if self.routes[route].batches.is_some() {
            return self.batch_one(route, cx);
        }
        let Some(&lane) = self.routes[route].ready.front() else { return false };
        let head = &self.lanes[lane].head;
        let owned = head.job.token.owned();
        let Some(tenure) = self.tenures[owned.slot.index()].as_ref() else {
            debug_assert!(false, "what is ready belongs to a tenure");
            return false;
        };
        let attempt = head.attempts + 1;
        let (credit, to) = (&mut self.credit, &mut self.routes[route]);
        let begun = begin(&self.shared, self.index, credit, to, tenure, &head.job, attempt, cx);
        if matches!(begun, Begun::Blocked) {
            return false;
        }
        self.routes[route].ready.pop_front();
        match begun {
            Begun::Blocked => {}
            Begun::LeaseOver => self.wait_for_lease(lane),
            Begun::Ended(ended) => {
                self.lanes[lane].head.attempts = attempt;
                self.head_ended(lane, Some(ended));
            }
            Begun::Running(run) => {
                self.lanes[lane].head.attempts = attempt;
                self.lanes[lane].phase = Phase::Running { since: self.now };
                self.push_run(lane, owned, run);
            }
        }
        true
    }
}
