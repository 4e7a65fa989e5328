//! How ownerships end: revoked, lost, or drained (G1, G3, G6).

use std::time::Duration;

use ebus_core::{Owned, PartitionId, Settlement, Slot};
use tokio::time::Instant;

use super::{Draining, Driver, Grace, HeldBack, after, sleep_until};
use crate::endings::{Ending, Then};
use crate::jobs::{Job, ToShard};
use crate::state::Left;

impl Driver {
    pub(super) fn revoking(&mut self, owned: Vec<Owned>, deadline: Instant) {
        let (drained, open): (Vec<_>, Vec<_>) =
            owned.into_iter().partition(|owned| self.drained.remove(owned));
        if !drained.is_empty() {
            self.source.release(&drained);
        }
        self.end(&open, Then::Release, deadline);
    }

    /// Ends ownerships: starts nothing more of them, and lets what runs end until the deadline.
    pub(super) fn end(&mut self, owned: &[Owned], then: Then, deadline: Instant) {
        let shards = self.shards.len();
        let mut begun = Vec::new();
        for &owned in owned {
            if self.endings.hasten(owned, then, deadline) {
                continue;
            }
            let Some(partition) = self.current(owned) else {
                // Known to the source and not to us: nothing of it can run.
                if then == Then::Release {
                    self.source.release(&[owned]);
                }
                continue;
            };
            let ending = std::mem::replace(&mut partition.ending, true);
            if let Some(held_back) = &mut partition.held_back {
                // It never began. What it waits for must end as soon as itself would.
                held_back.then = held_back.then.max(Some(then));
                for job in std::mem::take(&mut held_back.jobs) {
                    self.settle_now(job);
                }
                self.endings.hasten_slot(owned.slot, deadline);
                if then == Then::Forget {
                    self.cancel(&self.endings.of_slot(owned.slot));
                }
                if !self.endings.has_slot(owned.slot) {
                    // It waits for its parked keys alone.
                    self.begin_held_back(owned.slot);
                }
            } else if !ending {
                self.endings.begin(owned, shards, then, deadline);
                begun.push(owned);
            }
        }
        if !begun.is_empty() {
            for shard in &self.shards {
                shard.tell(ToShard::End(begun.clone()));
            }
        }
        self.count_owned();
    }

    pub(super) fn settle_now(&mut self, job: Job) {
        self.budget.give(job.token.owned().slot, job.message.byte_len());
        self.source.settle(&mut vec![(job.token, Settlement::Dropped)]);
    }

    pub(super) fn lost(&mut self, owned: &[Owned]) {
        self.end(owned, Then::Forget, Instant::now());
        for owned in owned {
            self.drained.remove(owned);
        }
        self.cancel(owned);
    }

    pub(super) fn cancel(&mut self, owned: &[Owned]) {
        let open: Vec<Owned> = owned.iter().copied().filter(|owned| self.endings.contains(*owned)).collect();
        if open.is_empty() {
            return;
        }
        for owned in &open {
            self.endings.cancelled(*owned);
        }
        for shard in &self.shards {
            shard.tell(ToShard::Cancel(open.clone()));
        }
    }

    pub(super) fn note_left(&mut self, owned: Owned, ending: &Ending) {
        let left = ending.left;
        let queued = ending.never_started(self.budget.held_by(owned.slot).messages);
        if self.draining.is_none() || queued + left.failing + left.cancelled + left.lost == 0 {
            return;
        }
        if let Some(partition) = self.partitions.get(owned.slot.index()).and_then(Option::as_ref) {
            self.left.push(Left {
                partition: PartitionId::clone(&partition.id),
                queued,
                failing: left.failing,
                cancelled: left.cancelled,
                lost: left.lost,
            });
        }
    }

    /// Every shard has confirmed the end of this ownership.
    pub(super) fn ended(&mut self, owned: Owned, then: Then) {
        match then {
            Then::Release => self.source.release(&[owned]),
            Then::Forget => {}
            Then::Drain => {
                self.drained.insert(owned);
            }
        }
        let slot = owned.slot;
        if self.current(owned).is_some() {
            self.partitions[slot.index()] = None;
        } else if !self.endings.has_slot(slot) {
            self.begin_held_back(slot);
        }
        self.count_owned();
    }

    /// The former ownership has ended everywhere: the next one of the partition begins, if its parked keys are known.
    pub(super) fn begin_held_back(&mut self, slot: Slot) {
        let Some(partition) = self.partitions.get_mut(slot.index()).and_then(Option::as_mut) else { return };
        let Some(held_back) = partition.held_back.take() else { return };
        let HeldBack { assigned, jobs, parked, then } = held_back;
        if let Some(then) = then {
            return self.ended(assigned.owned, then);
        }
        let Some(keys) = parked else {
            partition.held_back = Some(HeldBack { assigned, jobs, parked: None, then });
            return;
        };
        self.begin(&assigned, keys);
        for job in jobs {
            let shard = self.router.shard(job.lane);
            self.batches[shard].push(job);
        }
        self.send_batches();
    }

    /// Ends all; asked again, the sooner deadline counts.
    pub(super) fn drain(&mut self, within: Duration) {
        let mut deadline = after(Instant::now(), within);
        if let Some(draining) = &mut self.draining {
            deadline = deadline.min(draining.deadline);
            draining.deadline = deadline;
        } else {
            self.draining = Some(Draining { deadline, handled_before: self.finished() });
        }
        self.endings.hasten_all(deadline);
        self.end(&self.all_owned(), Then::Drain, deadline);
    }

    fn all_owned(&self) -> Vec<Owned> {
        self.partitions.iter().flatten().map(|partition| partition.owned).collect()
    }

    pub(super) fn finished(&self) -> u64 {
        let counters = self.shared.counters.snapshot();
        counters.handled + counters.dead_letters + counters.dropped
    }

    /// Cancels everything, and waits until no run is left: the source may be dropped only then, because what it owned may run
    /// elsewhere the moment after (G3). The source is polled meanwhile, if it can be, so that it stays a member.
    pub(super) async fn cancel_all(&mut self, mut poll_source: bool) {
        self.lost(&self.all_owned());
        self.cancel(&self.endings.all());
        let mut events = Vec::new();
        let mut grace = Grace::default();
        while !self.endings.is_empty() && !grace.is_over() {
            grace.run(true);
            let turn = sleep_until(grace.next);
            tokio::select! {
                message = self.from_shards.recv() => match message {
                    Some(message) => self.shard_said(message),
                    None => return,
                },
                () = turn => {}
                received = self.source.recv(0, &mut events), if poll_source => {
                    // All is lost already, whatever it says.
                    poll_source = received.is_ok_and(|events| events > 0);
                    events.clear();
                }
            }
        }
    }
}
