//! How much is read, and what happens when it may be no more (G4, G5).

use std::sync::atomic::Ordering::SeqCst;

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
}
