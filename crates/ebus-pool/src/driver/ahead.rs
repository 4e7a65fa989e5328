//! At most once: shards ask that what they are to run is committed, and hear when it is.
//!
//! Of each partition one request is open at the source; what shards ask for meanwhile goes with the next one. So many messages
//! share one round trip to the broker, the more the longer it takes.

use ebus_core::{Owned, Settlement, Token};

use super::Driver;
use crate::jobs::ToShard;

/// The commits that lanes of a partition wait for: of each shard, its lanes.
#[derive(Default)]
pub(super) struct Ahead {
    /// By the request that is open.
    open: Vec<(usize, Vec<usize>)>,
    /// By the next one, with what it settles.
    next: Vec<(usize, Vec<usize>)>,
    batch: Vec<(Token, Settlement)>,
}

impl Driver {
    /// A shard asks for the commit of what these lanes are to run.
    pub(super) fn commit_ahead(
        &mut self,
        shard: usize,
        owned: Owned,
        lanes: Vec<usize>,
        batch: Vec<(Token, Settlement)>,
    ) {
        if self.endings.is_lost(owned) {
            return;
        }
        // Of an ownership that is over, the shard has given these up.
        let Some(partition) = self.current(owned) else { return };
        partition.ahead.next.push((shard, lanes));
        partition.ahead.batch.extend(batch);
        if partition.ahead.open.is_empty() {
            self.commit_next(owned);
        }
    }

    fn commit_next(&mut self, owned: Owned) {
        let Some(partition) = self.current(owned).filter(|partition| !partition.ahead.next.is_empty()) else {
            return;
        };
        partition.ahead.open = std::mem::take(&mut partition.ahead.next);
        let mut batch = std::mem::take(&mut partition.ahead.batch);
        self.source.settle(&mut batch);
        self.source.commit_now(&[owned]);
    }

    /// An accepted commit covers what was asked for: it may start.
    pub(super) fn committed(&mut self, owned: &[Owned]) {
        for &owned in owned {
            let Some(partition) = self.current(owned) else { continue };
            for (shard, lanes) in std::mem::take(&mut partition.ahead.open) {
                self.shards[shard].tell(ToShard::Committed { owned, lanes });
            }
            self.commit_next(owned);
        }
    }
}
