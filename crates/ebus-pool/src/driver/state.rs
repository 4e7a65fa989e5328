//! Answers to "what is held, what is stuck, and why" (G8).

use std::cmp::Reverse;
use std::time::Duration;

use ebus_core::PartitionId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Driver;
use crate::jobs::{ShardReport, ToShard};
use crate::state::{PartitionState, PoolState};

/// How long a state waits for a shard.
const REPORT_WITHIN: Duration = Duration::from_secs(1);

impl Driver {
    pub(super) fn state(&self, reply: oneshot::Sender<PoolState>) {
        let held = self.budget.held();
        let partitions = self.partitions.iter().flatten().map(|partition| {
            let held = self.budget.held_by(partition.owned.slot);
            PartitionState {
                partition: PartitionId::clone(&partition.id),
                epoch: partition.owned.epoch,
                held_messages: held.messages,
                held_bytes: held.bytes,
                parked_keys: partition.keeper.as_ref().map_or(0, |keeper| keeper.handle.keys()),
                paused: partition.paused,
                full: partition.full,
                ending: partition.ending,
            }
        });
        let mut state = PoolState {
            held_messages: held.messages,
            held_bytes: held.bytes,
            partitions: partitions.collect(),
            counters: self.shared.counters.snapshot(),
            dead_letter_error: self.shared.dead_letter_error(),
            trouble: self.trouble.clone(),
            ..PoolState::default()
        };
        let asked: Vec<oneshot::Receiver<ShardReport>> = self
            .shards
            .iter()
            .map(|shard| {
                let (reply, answer) = oneshot::channel();
                shard.tell(ToShard::Report(reply));
                answer
            })
            .collect();
        tokio::spawn(async move {
            let deadline = Instant::now() + REPORT_WITHIN;
            for answer in asked {
                match tokio::time::timeout_at(deadline, answer).await {
                    Ok(Ok(report)) => {
                        state.in_flight += report.running;
                        state.lanes += report.lanes;
                        state.stuck.extend(report.stuck);
                    }
                    _ => state.blocked_shards += 1,
                }
            }
            state.stuck.sort_by_key(|stuck| Reverse(stuck.age));
            // Who asked may have stopped waiting.
            let _ = reply.send(state);
        });
    }
}
