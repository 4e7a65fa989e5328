//! Who shall own what: evenly, and with as few partitions moved as that needs. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ebus_core::{PartitionId, Topic};

use crate::member::MemberId;

/// What each member reads.
pub(crate) type Readers = BTreeMap<MemberId, BTreeSet<Topic>>;
/// Who owns each partition, or shall.
pub(crate) type Owners = BTreeMap<PartitionId, Option<MemberId>>;

/// Changes `owners` so that each partition has an owner that reads its topic, if anybody does, and that no owner has two
/// more than another one who could have one of them, also by way of others.
pub(crate) fn balance(readers: &Readers, owners: &mut Owners) {
    let reads = |member: &MemberId, partition: &PartitionId| {
        readers.get(member).is_some_and(|topics| topics.contains(&partition.topic))
    };
    let mut load: BTreeMap<MemberId, usize> = readers.keys().map(|member| (*member, 0)).collect();
    for (partition, owner) in owners.iter_mut() {
        *owner = owner.filter(|member| reads(member, partition));
        if let Some(count) = owner.and_then(|member| load.get_mut(&member)) {
            *count += 1;
        }
    }
    for (partition, owner) in owners.iter_mut().filter(|entry| entry.1.is_none()) {
        let least = load.iter_mut().filter(|entry| reads(entry.0, partition)).min_by_key(|entry| *entry.1);
        if let Some((member, count)) = least {
            *owner = Some(*member);
            *count += 1;
        }
    }
    while let Some(path) = uneven(readers, owners, &load) {
        for (partition, to) in path {
            let from = owners.insert(partition, Some(to)).flatten();
            if let Some(count) = from.and_then(|from| load.get_mut(&from)) {
                *count -= 1;
            }
            *load.entry(to).or_default() += 1;
        }
    }
}

/// The moves along the shortest way from a member to one that has at least two fewer; `None` when all is even.
fn uneven(
    readers: &Readers,
    owners: &Owners,
    load: &BTreeMap<MemberId, usize>,
) -> Option<Vec<(PartitionId, MemberId)>> {
    let mut members: Vec<_> = load.iter().map(|(member, count)| (*count, *member)).collect();
    members.sort_unstable_by(|a, b| b.cmp(a));
    let fewest = members.last()?.0;
    for (count, from) in members.into_iter().take_while(|entry| entry.0 >= fewest + 2) {
        let mut came: BTreeMap<MemberId, (PartitionId, MemberId)> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            if load[&at] + 2 <= count {
                return Some(way(came, from, at));
            }
            // The highest of the partitions that another one could have, so that equal states give equal plans.
            for (partition, _) in owners.iter().rev().filter(|entry| *entry.1 == Some(at)) {
                if came.len() + 1 == readers.len() {
                    break;
                }
                for (next, topics) in readers {
                    if *next != from && !came.contains_key(next) && topics.contains(&partition.topic) {
                        came.insert(*next, (partition.clone(), at));
                        queue.push_back(*next);
                    }
                }
            }
        }
    }
    None
}

fn way(
    mut came: BTreeMap<MemberId, (PartitionId, MemberId)>,
    from: MemberId,
    to: MemberId,
) -> Vec<(PartitionId, MemberId)> {
    let mut moves = Vec::new();
    let mut at = to;
    while at != from
        && let Some((partition, before)) = came.remove(&at)
    {
        moves.push((partition, at));
        at = before;
    }
    moves
}

#[cfg(test)]
#[path = "assign_tests.rs"]
mod tests;
