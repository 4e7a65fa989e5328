use proptest::prelude::*;

use super::*;

fn claims(topics: &[(&str, u32, &[u32])]) -> Claims {
    topics
        .iter()
        .map(|(topic, partitions, held)| {
            ((*topic).to_owned(), Claim { partitions: *partitions, held: held.to_vec() })
        })
        .collect()
}

fn compute(members: &[Claims], me: usize) -> BTreeMap<String, Vec<usize>> {
    let members: Vec<&Claims> = members.iter().collect();
    shares(&members, me).into_iter().map(|(topic, owners)| (topic.to_owned(), owners)).collect()
}

/// What the members hold when all have taken what is theirs.
fn settle(members: &mut [Claims], shares: &BTreeMap<String, Vec<usize>>) -> usize {
    let mut moved = 0;
    for (member, claims) in members.iter_mut().enumerate() {
        for (topic, claim) in claims {
            let owners = &shares[topic];
            let held = (0..owners.len() as u32).filter(|p| owners[*p as usize] == member).collect();
            moved += claim.held.iter().filter(|p| owners[**p as usize] != member).count();
            claim.held = held;
        }
    }
    moved
}

fn spread(counts: impl Iterator<Item = usize> + Clone) -> usize {
    counts.clone().max().unwrap_or(0) - counts.min().unwrap_or(0)
}

#[test]
fn a_member_alone_owns_all() {
    assert_eq!(compute(&[claims(&[("a", 3, &[]), ("b", 1, &[])])], 0)["a"], [0, 0, 0]);
}

#[test]
fn a_member_that_joins_gets_its_share_and_nothing_else_moves() {
    let mut members =
        [claims(&[("a", 6, &[0, 2, 4])]), claims(&[("a", 6, &[1, 3, 5])]), claims(&[("a", 6, &[])])];
    let shares = compute(&members, 0);
    assert_eq!(settle(&mut members, &shares), 2);
    assert!(members.iter().all(|claims| claims["a"].held.len() == 2));
}

#[test]
fn what_a_member_left_goes_to_those_who_lack_it() {
    let mut members = [claims(&[("a", 6, &[0, 1])]), claims(&[("a", 6, &[4, 5])])];
    let shares = compute(&members, 1);
    assert_eq!(settle(&mut members, &shares), 0);
    assert_eq!(members[0]["a"].held, [0, 1, 2]);
}

#[test]
fn an_extra_partition_stays_with_who_holds_it() {
    let members = [claims(&[("a", 3, &[1])]), claims(&[("a", 3, &[0, 2])])];
    assert_eq!(compute(&members, 0)["a"], [1, 0, 1]);
}

#[test]
fn more_members_than_partitions_leave_some_without() {
    let mut members = vec![claims(&[("a", 2, &[])]); 4];
    let shares = compute(&members, 0);
    settle(&mut members, &shares);
    assert_eq!(members.iter().filter(|claims| claims["a"].held.len() == 1).count(), 2);
}

#[test]
fn the_odd_partitions_of_many_topics_do_not_all_go_to_the_first() {
    let members = vec![claims(&[("a", 1, &[]), ("b", 1, &[]), ("c", 1, &[]), ("d", 1, &[])]); 2];
    let shares = compute(&members, 0);
    assert_eq!(shares.values().filter(|owners| owners[0] == 0).count(), 2);
}

#[test]
fn topics_go_to_their_readers_only() {
    let members = [claims(&[("a", 2, &[])]), claims(&[("a", 2, &[]), ("b", 2, &[])]), claims(&[])];
    let shares = compute(&members, 0);
    assert_eq!(shares["b"], [1, 1]);
    assert_eq!(shares["a"], [0, 1]);
}

#[test]
fn who_computes_believes_himself_where_two_claim_the_same() {
    let members = [claims(&[("a", 2, &[0, 1])]), claims(&[("a", 2, &[1])])];
    assert_eq!(compute(&members, 1)["a"], [0, 1]);
    assert_eq!(compute(&[claims(&[("a", 2, &[7])])], 0)["a"], [0, 0], "there is no such partition");
}

prop_compose! {
    /// Members that read the same topics, each partition held by one of them or by nobody.
    fn group()(
        members in 1..7usize,
        topics in prop::collection::vec(prop::collection::vec(prop::option::of(0..8usize), 1..12), 1..5),
    ) -> Vec<Claims> {
        (0..members).map(|member| {
            topics.iter().enumerate().map(|(topic, holders)| {
                let held = (0..holders.len() as u32).filter(|p| holders[*p as usize] == Some(member)).collect();
                (format!("t{topic}"), Claim { partitions: holders.len() as u32, held })
            }).collect()
        }).collect()
    }
}

proptest! {
    #[test]
    fn shares_are_even_per_topic_and_in_total(mut members in group()) {
        let shares = compute(&members, 0);
        settle(&mut members, &shares);
        for topic in shares.keys() {
            prop_assert!(spread(members.iter().map(|claims| claims[topic].held.len())) <= 1);
        }
        prop_assert!(
            spread(members.iter().map(|claims| claims.values().map(|claim| claim.held.len()).sum())) <= 1
        );
    }

    #[test]
    fn everybody_computes_the_same(members in group()) {
        let first = compute(&members, 0);
        for me in 1..members.len() {
            prop_assert_eq!(&compute(&members, me), &first);
        }
    }

    #[test]
    fn what_is_even_stays_as_it_is(mut members in group()) {
        let shares = compute(&members, 0);
        settle(&mut members, &shares);
        prop_assert_eq!(compute(&members, 0), shares.clone());
        prop_assert_eq!(settle(&mut members, &shares), 0);
    }

    /// Of one topic nobody gives up more than he holds too much, and of that only what others lack.
    #[test]
    fn no_more_moves_than_needed_in_one_topic(
        members in 1..6usize,
        holders in prop::collection::vec(prop::option::of(0..8usize), 1..14),
    ) {
        let held = |member| (0..holders.len() as u32).filter(|p| holders[*p as usize] == Some(member)).collect();
        let mut group: Vec<Claims> = (0..members)
            .map(|member| {
                let partitions = holders.len() as u32;
                BTreeMap::from([("t".to_owned(), Claim { partitions, held: held(member) })])
            })
            .collect();
        let base = holders.len() / members;
        let extras = holders.len() % members;
        let counts: Vec<usize> = group.iter().map(|claims| claims["t"].held.len()).collect();
        let above = counts.iter().filter(|count| **count > base).count();
        let needed: usize = counts.iter().map(|count| count.saturating_sub(base)).sum::<usize>() - above.min(extras);
        let shares = compute(&group, 0);
        prop_assert_eq!(settle(&mut group, &shares), needed);
    }

    /// Members act on views that are behind: when all views are the same again, so are the shares, and nothing is owned
    /// twice on the way.
    #[test]
    fn members_that_see_each_other_late_come_to_rest(
        mut members in group(),
        schedule in prop::collection::vec((0..7usize, any::<bool>()), 0..60),
    ) {
        let mut views: Vec<Vec<Claims>> = vec![members.clone(); members.len()];
        let rounds = 4 * members.len();
        let quiet = (0..rounds).flat_map(|_| (0..7).flat_map(|member| [(member, true), (member, false)]));
        for (member, look) in schedule.into_iter().chain(quiet) {
            let me = member % members.len();
            if look {
                views[me] = members.clone();
                continue;
            }
            views[me][me] = members[me].clone();
            let shares = compute(&views[me], me);
            for (topic, owners) in shares {
                for (partition, owner) in (0u32..).zip(owners) {
                    let taken = members.iter().any(|claims| claims[&topic].held.contains(&partition));
                    let held = &mut members[me].get_mut(&topic).expect("all read it").held;
                    if owner != me {
                        held.retain(|p| *p != partition);
                    } else if !taken {
                        held.push(partition);
                        held.sort_unstable();
                    }
                }
            }
        }
        let shares = compute(&members, 0);
        prop_assert_eq!(settle(&mut members, &shares), 0, "at rest");
        for (topic, owners) in shares {
            let held: usize = members.iter().map(|claims| claims[&topic].held.len()).sum();
            prop_assert_eq!(held, owners.len(), "all are owned");
        }
    }
}
