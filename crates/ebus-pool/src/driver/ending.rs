//! How ownerships end: revoked, lost, or drained (G1, G3, G6).

use std::time::Duration;

use ebus_core::{Owned, PartitionId, Settlement, Slot};
use tokio::time::Instant;

use super::{BLOCKED_GRACE, Draining, Driver, HeldBack, Partition, send};
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
        let mut never_began = Vec::new();
        for owned in owned {
            if self.endings.hasten(*owned, Some(then), deadline) {
                continue;
            }
            let held_back = |partition: &&mut Partition| !partition.ending || partition.held_back.is_some();
            let Some(partition) = self.current(*owned).filter(held_back) else {
                // Known to the source and not to us: nothing of it can run.
                if then == Then::Release {
                    never_began.push(*owned);
                }
                continue;
            };
            partition.ending = true;
            match &mut partition.held_back {
                Some(held_back) => {
                    held_back.then = Some(then);
                    for job in std::mem::take(&mut held_back.jobs) {
                        self.settle_now(job);
                    }
                }
                None => {
                    self.endings.begin(*owned, shards, then, deadline);
                    begun.push(*owned);
                }
            }
        }
        if !begun.is_empty() {
            for shard in &self.shards {
                send(shard, ToShard::End(begun.clone()));
            }
        }
        for owned in never_began {
            self.ended(owned, then);
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
            send(shard, ToShard::Cancel(open.clone()));
        }
    }

    pub(super) fn note_left(&mut self, owned: Owned, ending: &Ending) {
        let left = ending.left;
        if self.draining.is_none() || left.queued + left.failing + left.cancelled == 0 {
            return;
        }
        if let Some(partition) = self.partitions.get(owned.slot.index()).and_then(Option::as_ref) {
            self.left.push(Left {
                partition: PartitionId::clone(&partition.id),
                queued: left.queued,
                failing: left.failing,
                cancelled: left.cancelled,
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

    /// The former ownership has ended everywhere: the next one of the partition begins.
    pub(super) fn begin_held_back(&mut self, slot: Slot) {
        let Some(partition) = self.partitions[slot.index()].as_mut() else { return };
        let Some(HeldBack { assigned, jobs, then }) = partition.held_back.take() else { return };
        if let Some(then) = then {
            return self.ended(assigned.owned, then);
        }
        self.begin(&assigned);
        for job in jobs {
            let shard = match job.lane {
                Some(lane) => self.router.shard(lane),
                None => self.router.shard_without_key(),
            };
            self.batches[shard].push(job);
        }
        self.send_batches();
    }

    pub(super) fn drain(&mut self, within: Duration) {
        if self.draining.is_some() {
            return;
        }
        let deadline = Instant::now() + within;
        self.draining = Some(Draining { deadline, handled_before: self.finished() });
        let all: Vec<Owned> = self.partitions.iter().flatten().map(|partition| partition.owned).collect();
        let open: Vec<Owned> =
            all.into_iter().filter(|owned| !self.endings.hasten(*owned, None, deadline)).collect();
        self.end(&open, Then::Drain, deadline);
    }

    pub(super) fn finished(&self) -> u64 {
        let counters = self.shared.counters.snapshot();
        counters.handled + counters.dead_letters + counters.dropped
    }

    /// Cancels everything, and waits until no run is left: the source may be dropped only then, because what it owned may run
    /// elsewhere the moment after (G3).
    pub(super) async fn cancel_all(&mut self) {
        let all: Vec<Owned> = self.partitions.iter().flatten().map(|partition| partition.owned).collect();
        self.lost(&all);
        let deadline = Instant::now() + BLOCKED_GRACE;
        while !self.endings.is_empty() {
            match tokio::time::timeout_at(deadline, self.from_shards.recv()).await {
                Ok(Some(message)) => self.shard_said(message),
                Ok(None) | Err(_) => {
                    tracing::error!("handlers block their threads and could not be cancelled in time");
                    return;
                }
            }
        }
    }
}
