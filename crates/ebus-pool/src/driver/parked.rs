//! Parked keys at the beginning of an ownership: nothing of it begins before they are known (G2).

use std::sync::Arc;

use ebus_core::{Assigned, Owned, PartitionId};
use tokio::task::AbortHandle;

use super::Driver;
use crate::jobs::{ParkedHere, ToShard};
use crate::parked::{FromKeeper, Keeper, KeeperHandle, KeeperParts, Lanes, ParkedKey};

/// The keeper of a partition's parked keys; ends with the ownership.
pub(super) struct PartitionKeeper {
    pub(super) handle: KeeperHandle,
    task: AbortHandle,
}

impl Drop for PartitionKeeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Driver {
    /// Has the parked keys of a partition claimed; `None` when no keys are parked in this pool.
    pub(super) fn keep_parked(&mut self, assigned: &Assigned, seed: u64) -> Option<PartitionKeeper> {
        let most = self.shared.config.most_parked?;
        let place = self.shared.config.parking.clone()?;
        let shards = self.shards.iter().map(|shard| shard.commands.clone()).collect();
        let (keeper, handle) = Keeper::new(KeeperParts {
            group: self.shared.config.group.clone(),
            place,
            most,
            lists: self.shared.lists.clone(),
            redrives: self.shared.redrives.clone(),
            partition: assigned.partition.clone(),
            owned: assigned.owned,
            lanes: Lanes { shards, router: self.router.clone(), seed },
            driver: self.to_driver.clone(),
        });
        let task = self.keepers.spawn(keeper.run());
        Some(PartitionKeeper { handle, task })
    }

    pub(super) fn keeper_said(&mut self, message: FromKeeper) {
        match message {
            FromKeeper::Claimed { owned, keys } => self.claimed(owned, keys),
            FromKeeper::Trouble(error) => self.trouble = Some(error),
        }
    }

    /// The parked keys of a partition are known: it begins, unless it still waits for the end of the ownership before it.
    fn claimed(&mut self, owned: Owned, keys: Vec<ParkedKey>) {
        let Some(held_back) = self.current(owned).and_then(|partition| partition.held_back.as_mut()) else {
            return;
        };
        held_back.parked = Some(keys);
        if !self.endings.has_slot(owned.slot) {
            self.begin_held_back(owned.slot);
        }
        self.apply_pauses();
    }

    /// Tells every shard of a new ownership, and of the parked keys whose lanes it has.
    pub(super) fn begin(&self, assigned: &Assigned, keys: Vec<ParkedKey>) {
        let partition = self.partitions.get(assigned.owned.slot.index()).and_then(Option::as_ref);
        let keeper = partition.and_then(|partition| partition.keeper.as_ref()).map(|keeper| &keeper.handle);
        let seed = self.router.topic_seed(&assigned.partition.topic);
        let mut keys_of: Vec<Vec<ParkedKey>> = self.shards.iter().map(|_| Vec::new()).collect();
        for parked in keys {
            keys_of[self.router.shard_of(self.router.lane(seed, &parked.key))].push(parked);
        }
        for (shard, keys) in self.shards.iter().zip(keys_of) {
            shard.tell(ToShard::Begin {
                owned: assigned.owned,
                partition: Arc::new(PartitionId::clone(&assigned.partition)),
                lease: assigned.lease.clone(),
                parked: keeper.map(|keeper| ParkedHere { keeper: keeper.clone(), keys }),
                full: partition.is_some_and(|partition| partition.full),
            });
        }
    }
}
