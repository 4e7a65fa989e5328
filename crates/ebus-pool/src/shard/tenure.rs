//! Ownerships as a shard sees them, and how they end: everything queued is dropped, runs end or are cancelled, and only then
//! is the end confirmed (G2, G3).

use std::collections::HashSet;
use std::sync::Arc;

use ebus_core::{Lease, Owned, PartitionId, Settlement};

use super::Shard;
use super::ahead::AheadOf;
use super::parked::Parked;
use crate::jobs::{FromShard, LeftInShard, ParkedHere};
use crate::lane::Phase;

/// An ownership, as this shard sees it.
pub(super) struct Tenure {
    pub(super) owned: Owned,
    pub(super) partition: Arc<PartitionId>,
    pub(super) lease: Lease,
    pub(super) route: usize,
    /// Runs in progress, dead letters included.
    pub(super) running: usize,
    pub(super) ending: bool,
    /// Nothing more of it comes before some of it is finished.
    pub(super) full: bool,
    pub(super) left: LeftInShard,
    /// `None` when no keys are parked in this pool.
    pub(super) parked: Option<Box<Parked>>,
    /// `None` unless the pool is at most once.
    pub(super) ahead: Option<Box<AheadOf>>,
}

impl Shard {
    pub(super) fn begin_tenure(
        &mut self,
        owned: Owned,
        partition: Arc<PartitionId>,
        lease: Lease,
        parked: Option<ParkedHere>,
    ) {
        let route = self.route(&partition.topic);
        // A copy of its own: shards do not share the counter that each delivery moves.
        let partition = Arc::new(PartitionId::clone(&partition));
        let tenure = Tenure {
            owned,
            partition,
            lease,
            route,
            running: 0,
            ending: false,
            full: false,
            left: LeftInShard::default(),
            parked: parked.map(|here| Box::new(Parked::new(here))),
            ahead: self.shared.config.at_most_once.then(Box::default),
        };
        if self.tenures.len() <= owned.slot.index() {
            self.tenures.resize_with(owned.slot.index() + 1, || None);
        }
        self.tenures[owned.slot.index()] = Some(tenure);
    }

    pub(super) fn tenure(&mut self, owned: Owned) -> Option<&mut Tenure> {
        self.tenures.get_mut(owned.slot.index())?.as_mut().filter(|tenure| tenure.owned == owned)
    }

    /// Starts nothing more of these but what is committed already, and drops what is queued or waits for a retry.
    pub(super) fn end_tenures(&mut self, owned: &[Owned]) {
        let mut ending = HashSet::new();
        for owned in owned {
            if let Some(tenure) = self.tenure(*owned).filter(|tenure| !tenure.ending) {
                tenure.ending = true;
                if let Some(ahead) = &mut tenure.ahead {
                    ahead.waiting.clear();
                }
                ending.insert(*owned);
            }
        }
        let ids: Vec<usize> = self.lanes.iter().map(|(id, _)| id).collect();
        let mut idle = HashSet::new();
        for id in ids {
            let lane = &mut self.lanes[id];
            if lane.queue.iter().any(|job| ending.contains(&job.token.owned())) {
                // What is in a batch that runs ends with it, and what is committed runs now or never.
                let running = match (&lane.phase, &lane.ahead) {
                    (Phase::InBatch { messages, .. }, _) => messages - 1,
                    (_, Some(ahead)) => ahead.messages.saturating_sub(1),
                    _ => 0,
                };
                for (place, job) in std::mem::take(&mut lane.queue).into_iter().enumerate() {
                    if place >= running && ending.contains(&job.token.owned()) {
                        self.settle(job, Settlement::Dropped);
                    } else {
                        self.lanes[id].queue.push_back(job);
                    }
                }
            }
            let lane = &mut self.lanes[id];
            if !ending.contains(&lane.head.job.token.owned()) || lane.is_ahead() {
                continue;
            }
            match &lane.phase {
                Phase::Running { .. }
                | Phase::InBatch { .. }
                | Phase::Committing { .. }
                | Phase::DeadLetter { .. }
                | Phase::Keeping { .. } => {}
                Phase::Ready | Phase::Gathering { .. } | Phase::Held => {
                    idle.insert(id);
                }
                Phase::Waiting { timer, .. } => {
                    self.timers.remove(timer);
                    idle.insert(id);
                }
            }
        }
        for route in 0..self.routes.len() {
            self.routes[route].ready.retain(|lane| !idle.contains(lane));
            self.gather_anew(route, |lane| !idle.contains(&lane));
        }
        for id in idle {
            if self.lanes[id].head.attempts == 0 {
                self.advance(id, Settlement::Dropped);
            } else {
                self.leave(id, |left| &mut left.failing);
            }
        }
        for owned in ending {
            self.end_if_over(owned);
        }
    }

    /// Drops the runs of these too, and with them the batches that have anything of them. They say so at their next poll, and
    /// only then is the tenure over.
    pub(super) fn cancel_tenures(&mut self, owned: &[Owned]) {
        self.end_tenures(owned);
        for run in self.running.iter_mut() {
            if run.whose.is_some_and(|whose| owned.contains(&whose.owned)) {
                run.cancel();
            }
        }
        for run in self.batch_runs.iter_mut() {
            let mut lanes = run.whose.iter().flatten().map(|member| &self.lanes[member.lane]);
            if lanes.any(|lane| owned.contains(&lane.head.job.token.owned())) {
                run.cancel();
            }
        }
        if self.shared.config.at_most_once {
            self.forfeit(owned);
        }
    }

    /// Confirms the end of a tenure once nothing of it runs; everything else of it was dropped before.
    pub(super) fn end_if_over(&mut self, owned: Owned) {
        let open = |tenure: &Tenure| tenure.ahead.as_ref().is_some_and(|ahead| ahead.open > 0);
        let is_over = |tenure: &&mut Tenure| tenure.ending && tenure.running == 0 && !open(tenure);
        let Some(tenure) = self.tenure(owned).filter(is_over) else { return };
        let left = tenure.left;
        self.tenures[owned.slot.index()] = None;
        self.flush();
        // A driver that is gone needs no confirmation: its source is closed.
        let _ = self.tx.send(FromShard::Ended { owned, left });
    }
}
