//! How much is read, of which partitions, and what happens when it may be no more (G4, G5).

use std::sync::atomic::Ordering::SeqCst;

use ebus_core::Owned;
use tokio::time::Instant;

use super::{Driver, REST};
use crate::jobs::ToShard;

impl Driver {
    /// How many messages to read now; and when to ask again, if that is none for a moment.
    pub(super) fn room(&self) -> (usize, Option<Instant>) {
        if self.draining.is_some() {
            return (0, None);
        }
        let room = self.budget.room();
        if room == 0 || !self.budget.is_nearly_full() {
            return (room, None);
        }
        let rested = self.last_read + REST;
        if Instant::now() < rested { (0, Some(rested)) } else { (room, None) }
    }

    /// What has gathered for batches waits for nothing while the budget is nearly full, or a partition is not read because it
    /// holds too much: it holds what others need, and what it waits for may not come before it is gone.
    pub(super) fn press_batches(&self) {
        if !self.in_batches {
            return;
        }
        let press = self.any_over_share || self.budget.is_nearly_full();
        // Set before the shards are woken: what a shard takes in after that finds it set.
        if self.shared.press.swap(press, SeqCst) != press && press {
            for shard in &self.shards {
                shard.tell(ToShard::Press);
            }
        }
    }

    /// The source reads no more of a partition, or reads it again. Of the one that is full, what has gathered for batches waits for
    /// nothing: the others go on as before, because one message that is stuck may keep it full for long (G4).
    pub(super) fn is_full(&mut self, owned: Owned, full: bool) {
        let Some(partition) = self.current(owned) else { return };
        partition.full = full;
        for shard in &self.shards {
            shard.tell(ToShard::Full { owned, full });
        }
    }

    /// Tells the source which partitions to read: those that the user has not paused and that hold no more than they should.
    pub(super) fn apply_pauses(&mut self) {
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        self.any_over_share = false;
        for partition in self.partitions.iter_mut().flatten().filter(|partition| !partition.ending) {
            partition.over_share =
                self.budget.is_over(partition.owned.slot, self.owned_count, partition.over_share);
            self.any_over_share |= partition.over_share;
            let topic = &partition.id.topic;
            let by_user =
                self.all_paused || self.paused_topics.contains(topic) || self.given_up.contains(topic);
            let unknown = partition.held_back.as_ref().is_some_and(|held_back| held_back.parked.is_none());
            let want = partition.over_share || by_user || unknown;
            if want != partition.paused {
                partition.paused = want;
                if want { pause.push(partition.owned) } else { resume.push(partition.owned) }
            }
        }
        if !pause.is_empty() {
            self.source.pause(&pause);
        }
        if !resume.is_empty() {
            self.source.resume(&resume);
        }
    }
}
