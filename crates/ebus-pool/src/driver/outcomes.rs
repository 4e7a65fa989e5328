//! What shards say: what of their messages the source is told, and which ownerships have ended (G1, G3, G6).

use ebus_core::{Owned, Settlement};

use super::Driver;
use crate::jobs::{FromShard, Outcomes};

impl Driver {
    pub(super) fn shard_said(&mut self, message: FromShard) {
        match message {
            FromShard::Settled { mut outcomes, spare } => {
                let Outcomes { settled, sizes } = &mut outcomes;
                let mut any_dropped = false;
                for ((token, settlement), bytes) in settled.iter().zip(sizes.drain(..)) {
                    self.budget.give(token.owned().slot, bytes);
                    if *settlement == Settlement::Dropped {
                        any_dropped = true;
                        self.endings.dropped(token.owned());
                    }
                }
                if any_dropped || !self.endings.is_empty() {
                    settled.retain(|(token, settlement)| self.may_settle(token.owned(), *settlement));
                }
                self.source.settle(settled);
                settled.clear();
                self.spare_outcomes.keep(outcomes);
                self.spare_jobs.keep(spare);
                if self.any_over_share {
                    self.apply_pauses();
                }
            }
            FromShard::CommitAhead { shard, owned, lanes, batch } => {
                self.commit_ahead(shard, owned, lanes, batch)
            }
            FromShard::Over(over) => {
                for (slot, bytes) in over {
                    self.budget.give(slot, bytes);
                }
                if self.any_over_share {
                    self.apply_pauses();
                }
            }
            FromShard::Ended { owned, left } => {
                if let Some(ending) = self.endings.confirm(owned, left) {
                    self.note_left(owned, &ending);
                    self.ended(owned, ending.then);
                }
            }
        }
    }

    /// Nothing is settled of what is lost; and what a shard drops unread after the end of its ownership is nobody's any more.
    fn may_settle(&self, owned: Owned, settlement: Settlement) -> bool {
        if !self.endings.is_empty() && self.endings.contains(owned) {
            return !self.endings.is_lost(owned);
        }
        let partition = self.partitions.get(owned.slot.index()).and_then(Option::as_ref);
        settlement == Settlement::Finished || partition.is_some_and(|partition| partition.owned == owned)
    }
}
