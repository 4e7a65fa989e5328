use proptest::prelude::*;

use super::*;

fn topic(number: usize) -> Topic {
    Topic::new(format!("t{number}")).expect("legal")
}

fn owners_of(topics: usize, partitions: u32) -> Owners {
    let all = (0..topics).flat_map(|t| (0..partitions).map(move |p| PartitionId::new(topic(t), p)));
    all.map(|partition| (partition, None)).collect()
}

fn readers_of(members: &[(u64, &[usize])]) -> Readers {
    members.iter().map(|(id, topics)| (MemberId(*id), topics.iter().map(|t| topic(*t)).collect())).collect()
}

fn load(owners: &Owners) -> BTreeMap<MemberId, usize> {
    let mut load = BTreeMap::new();
    owners.values().flatten().for_each(|member| *load.entry(*member).or_default() += 1);
    load
}

fn moved(before: &Owners, after: &Owners) -> usize {
    before.iter().filter(|(partition, owner)| owner.is_some() && after[*partition] != **owner).count()
}

#[test]
fn a_member_that_joins_takes_its_share_and_no_more_moves() {
    let mut owners = owners_of(1, 8);
    balance(&readers_of(&[(1, &[0])]), &mut owners);
    assert_eq!(load(&owners)[&MemberId(1)], 8);
    let before = owners.clone();
    balance(&readers_of(&[(1, &[0]), (2, &[0]), (3, &[0])]), &mut owners);
    let mut shares: Vec<_> = load(&owners).into_values().collect();
    shares.sort_unstable();
    assert_eq!(shares, [2, 3, 3]);
    assert_eq!(moved(&before, &owners), 5);
}

#[test]
fn a_member_that_leaves_moves_only_what_it_had() {
    let mut owners = owners_of(1, 9);
    balance(&readers_of(&[(1, &[0]), (2, &[0]), (3, &[0])]), &mut owners);
    let before = owners.clone();
    balance(&readers_of(&[(1, &[0]), (3, &[0])]), &mut owners);
    assert_eq!(moved(&before, &owners), 3);
}

#[test]
fn shares_are_evened_by_way_of_a_third() {
    // 1 reads t0, 2 reads both, 3 reads t1: what 1 has too much reaches 3 only through 2.
    let readers = readers_of(&[(1, &[0]), (2, &[0, 1]), (3, &[1])]);
    let mut owners = owners_of(2, 3);
    for partition in 0..3 {
        owners.insert(PartitionId::new(topic(0), partition), Some(MemberId(1)));
        let of_second = Some(MemberId(if partition < 2 { 2 } else { 3 }));
        owners.insert(PartitionId::new(topic(1), partition), of_second);
    }
    balance(&readers, &mut owners);
    assert!(load(&owners).values().all(|count| *count == 2), "{owners:?}");
}

#[test]
fn what_nobody_reads_has_no_owner() {
    let mut owners = owners_of(2, 2);
    balance(&readers_of(&[(1, &[0])]), &mut owners);
    assert!(owners.iter().all(|(partition, owner)| owner.is_some() == (partition.topic == topic(0))));
}

proptest! {
    #[test]
    fn even_complete_and_stable(
        partitions in 1u32..20,
        history in prop::collection::vec(prop::collection::btree_map(0u64..6, prop::collection::btree_set(0usize..3, 0..3), 0..6), 1..8),
    ) {
        let mut owners = owners_of(3, partitions);
        for step in history {
            let readers: Readers = step.into_iter()
                .map(|(id, topics)| (MemberId(id), topics.into_iter().map(topic).collect())).collect();
            balance(&readers, &mut owners);
            for (partition, owner) in &owners {
                let can: Vec<_> = readers.iter().filter(|(_, topics)| topics.contains(&partition.topic)).collect();
                prop_assert_eq!(owner.is_some(), !can.is_empty());
                if let Some(owner) = owner {
                    prop_assert!(readers[owner].contains(&partition.topic));
                    let load = load(&owners);
                    for (other, _) in can {
                        prop_assert!(load.get(other).copied().unwrap_or(0) + 2 > load[owner]);
                    }
                }
            }
            let again = owners.clone();
            balance(&readers, &mut owners);
            prop_assert_eq!(&again, &owners, "an even plan is not changed");
        }
    }
}
