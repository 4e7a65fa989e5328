//! What a shard says about itself: what runs, and what is stuck and why (G8).

use std::cmp::Reverse;

use ebus_core::PartitionId;

use super::Shard;
use crate::jobs::ShardReport;
use crate::lane::{self, Phase};
use crate::state::{Doing, Stuck};

/// Stuck messages that one report lists.
const MOST_STUCK: usize = 100;

impl Shard {
    pub(super) fn report(&self) -> ShardReport {
        let now = lane::now();
        let mut stuck = Vec::new();
        for (_, lane) in &self.lanes {
            let head = &lane.head;
            let (doing, since) = match &lane.phase {
                Phase::Running { since } | Phase::InBatch { since, .. } => (Doing::Running, *since),
                Phase::DeadLetter { since } | Phase::Keeping { since } => (Doing::DeadLetter, *since),
                Phase::Held => (Doing::Held, head.since),
                Phase::Committing { since } => (Doing::Committing, *since),
                Phase::Waiting { lease_over: true, .. } => (Doing::LeaseOver, head.since),
                Phase::Waiting { .. } => (Doing::Retrying, head.since),
                Phase::Ready | Phase::Gathering { .. } => (Doing::NotStarted, head.since),
            };
            let failing = head.failure.as_ref().map(|failure| now.saturating_duration_since(failure.since));
            let age = now.saturating_duration_since(since).max(failing.unwrap_or_default());
            if failing.is_none() && age < self.shared.config.stuck_after {
                continue;
            }
            let Some(tenure) = self.tenures[head.job.token.owned().slot.index()].as_ref() else { continue };
            stuck.push(Stuck {
                partition: PartitionId::clone(&tenure.partition),
                offset: head.job.token.offset(),
                key: head.job.message.key.clone(),
                age,
                doing,
                attempts: head.attempts,
                last_error: head.failure.as_ref().map(|failure| failure.error.clone()),
                next_retry: match lane.phase {
                    Phase::Waiting { until, lease_over: false, .. } => {
                        Some(until.saturating_duration_since(now))
                    }
                    _ => None,
                },
                waiting_behind: lane.queue.len(),
            });
        }
        stuck.sort_by_key(|stuck| Reverse(stuck.age));
        stuck.truncate(MOST_STUCK);
        let running =
            self.lanes.iter().filter(|(_, lane)| matches!(lane.phase, Phase::Running { .. })).count();
        let running = running + self.batch_runs.len();
        ShardReport { running, lanes: self.lanes.len(), stuck }
    }
}
