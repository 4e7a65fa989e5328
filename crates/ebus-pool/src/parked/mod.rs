//! Parked keys: after a dead letter the order of its key goes on in the dead-letter topic (G2).
//!
//! A key whose message became a dead letter is parked: its later messages follow into the dead-letter topic, in order and
//! without a run, until the key is redriven: then its dead letters run in order, and after them its lane goes on. The list of a
//! partition's parked keys has one owner, a task (`keeper.rs`), and is kept by the backend ([`Parking`](ebus_core::Parking)):
//! the next owner of the partition reads it before its first delivery. What the shards do with it is in `shard/parked.rs`.
//!
//! The messages that follow have the reason `parked` and no attempts. Give the dead-letter topic a retention that outlasts your
//! redrives; do not compact it, and do not change its number of partitions while keys are parked.

mod control;
mod handle;
mod keeper;
mod key;
mod redrive;
mod set;

pub use control::{parked_keys, redrive};
pub use key::ParkedKey;

pub(crate) use handle::{AllLists, Change, KeeperHandle};
pub(crate) use keeper::{FromKeeper, Keeper, KeeperParts, Lanes, MOST_REDRIVES};
pub(crate) use set::ParkedSet;
