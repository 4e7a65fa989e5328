//! How a batch starts: with a slot, when its handler is ready, and only with what has a lease (G3, G5).

use std::task::{Context, Poll};

use ebus_core::{BatchOutcome, Delivery};

use super::Member;
use crate::lane::{Phase, now};
use crate::run::Run;
use crate::runner::{Ended, Started};
use crate::shard::Shard;

impl Shard {
    /// Starts what was gathered; false while there is no slot, or the handler is not ready.
    pub(super) fn start_batch(&mut self, route: usize, cx: &mut Context<'_>) -> bool {
        if !self.take_slot(cx) {
            return false;
        }
        self.leave_out_what_has_no_lease(route);
        let Some(batches) = &mut self.routes[route].batches else { return false };
        if batches.gathered.is_empty() {
            return true;
        }
        let Some(ready) = self.handler_ready(route, cx) else { return false };
        let Some(batches) = &mut self.routes[route].batches else { return false };
        let member = |lane: usize| match self.lanes[lane].phase {
            Phase::Gathering { taken } => Member { lane, messages: taken },
            _ => Member { lane, messages: 1 },
        };
        // The list of lanes keeps its room for the next batch.
        let members = batches.gathered.drain(..).map(member).collect();
        batches.clear();
        self.run_batch(route, members, ready, cx);
        true
    }

    /// Starts a message by itself: one of a batch that failed without a name, or a dead letter that is redriven.
    pub(super) fn start_alone(&mut self, route: usize, lane: usize, cx: &mut Context<'_>) -> bool {
        let owned = self.lanes[lane].head.job.token.owned();
        let lapsed = self.tenure(owned).is_none_or(|tenure| !tenure.lease.is_current(now()));
        if lapsed {
            self.routes[route].ready.pop_front();
            self.wait_for_lease(lane);
            return true;
        }
        if !self.take_slot(cx) {
            return false;
        }
        let Some(ready) = self.handler_ready(route, cx) else { return false };
        self.routes[route].ready.pop_front();
        self.run_batch(route, vec![Member { lane, messages: 1 }], ready, cx);
        true
    }

    fn take_slot(&mut self, cx: &mut Context<'_>) -> bool {
        if self.credit == 0 && self.shared.slots.acquire(self.index, cx.waker()) {
            self.credit = 1;
        }
        self.credit > 0
    }

    /// Asks the handler whether a batch may start; `None` when it may not yet.
    fn handler_ready(
        &mut self,
        route: usize,
        cx: &mut Context<'_>,
    ) -> Option<Result<(), Ended<BatchOutcome>>> {
        let route = &mut self.routes[route];
        let ready = route.batches.as_mut()?.runner.poll_ready(cx);
        route.asked = ready.is_pending();
        match ready {
            Poll::Pending => None,
            Poll::Ready(ready) => Some(ready),
        }
    }

    fn leave_out_what_has_no_lease(&mut self, route: usize) {
        let Some(batches) = &self.routes[route].batches else { return };
        let at = now();
        let lapsed = |lane: &usize| {
            let slot = self.lanes[*lane].head.job.token.owned().slot;
            self.tenures[slot.index()].as_ref().is_none_or(|tenure| !tenure.lease.is_current(at))
        };
        let out: Vec<usize> = batches.gathered.iter().copied().filter(lapsed).collect();
        if out.is_empty() {
            return;
        }
        self.gather_anew(route, |lane| !out.contains(&lane));
        for lane in out {
            self.wait_for_lease(lane);
        }
    }

    fn run_batch(
        &mut self,
        route: usize,
        members: Vec<Member>,
        ready: Result<(), Ended<BatchOutcome>>,
        cx: &mut Context<'_>,
    ) {
        let mut deliveries = Vec::with_capacity(members.iter().map(|member| member.messages).sum());
        for member in &members {
            let lane = &mut self.lanes[member.lane];
            lane.head.attempts += 1;
            lane.phase = Phase::InBatch { since: self.now, messages: member.messages };
            let owned = lane.head.job.token.owned();
            let Some(tenure) = self.tenures[owned.slot.index()].as_mut() else {
                debug_assert!(false, "what is gathered belongs to a tenure");
                continue;
            };
            tenure.running += 1;
            let mut attempt = lane.head.attempts;
            for job in std::iter::once(&lane.head.job).chain(lane.queue.iter().take(member.messages - 1)) {
                let (partition, offset) = (tenure.partition.clone(), job.token.offset());
                deliveries.push(Delivery::new(partition, owned.epoch, offset, attempt, job.message.clone()));
                attempt = 1;
            }
        }
        let started = match (ready, &mut self.routes[route].batches) {
            (Ok(()), Some(batches)) => batches.runner.start(deliveries, cx),
            (Err(ended), _) => Started::Ended(ended),
            (Ok(()), None) => return debug_assert!(false, "a handler that was ready is there"),
        };
        match started {
            Started::Ended(ended) => self.batch_ended(members, Some(ended)),
            Started::Pending(run) => {
                self.credit -= 1;
                self.batch_runs.push(Run::new(members, run));
            }
        }
    }
}
