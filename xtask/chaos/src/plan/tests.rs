//! Schedules are the seed's, and sensible.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const SHORTLY: Duration = Duration::from_millis(301);

fn terms(seed: u64, secs: u64) -> Terms {
    let cards = [&Card::PROCESSES[..], &Card::LINKS, &Card::BROKER].concat();
    Terms {
        seed,
        time: Duration::from_secs(secs),
        members: 3,
        publishers: 2,
        nodes: 1,
        lease: Duration::from_secs(6),
        cards,
    }
}

#[test]
fn the_same_seed_gives_the_same_schedule_and_another_another() {
    assert_eq!(plan(&terms(7, 600)), plan(&terms(7, 600)));
    assert_ne!(plan(&terms(7, 600)), plan(&terms(8, 600)));
}

#[test]
fn a_member_is_there_before_anything_is_done_to_it_and_one_is_always_left() {
    for seed in 0..50 {
        let mut members: BTreeSet<u32> = (1..=3).collect();
        for step in plan(&terms(seed, 600)) {
            match step.act {
                Act::Join(member) => assert!(members.insert(member), "seed {seed}"),
                Act::Leave(member) | Act::Kill(member) => {
                    assert!(members.remove(&member), "seed {seed}: {step:?}")
                }
                Act::Stop(member) | Act::Cut(Link::Member(member)) | Act::Stall(Link::Member(member)) => {
                    assert!(members.contains(&member), "seed {seed}: {step:?}");
                }
                _ => {}
            }
            assert!(!members.is_empty() && members.len() <= 6, "seed {seed}: {members:?}");
        }
    }
}

#[test]
fn a_publisher_begins_before_it_is_killed_and_all_but_one_are_there() {
    for seed in 0..50 {
        let mut publishers: BTreeSet<u32> = (1..=2).collect();
        for step in plan(&terms(seed, 600)) {
            match step.act {
                Act::Publish(number) => assert!(publishers.insert(number), "seed {seed}"),
                Act::KillPublisher(number) => assert!(publishers.remove(&number), "seed {seed}: {step:?}"),
                Act::Cut(Link::Publisher(number)) | Act::Stall(Link::Publisher(number)) => {
                    assert!(publishers.contains(&number), "seed {seed}: {step:?}");
                }
                _ => {}
            }
            assert!((1..=2).contains(&publishers.len()), "seed {seed}: {publishers:?}");
        }
    }
}

#[test]
fn now_and_then_a_fault_comes_on_top_of_another() {
    for seed in 0..20 {
        let steps = plan(&terms(seed, 600));
        let begins: Vec<_> = steps.iter().filter(|step| step.act.kind().is_some()).collect();
        let at_once = begins.windows(2).filter(|two| two[1].at - two[0].at < SHORTLY).count();
        assert!(at_once >= 3, "seed {seed}: {at_once} of {}", begins.len());
    }
}

#[test]
fn every_kind_comes_again_and_again() {
    for seed in 0..20 {
        let mut kinds: BTreeMap<_, u32> = BTreeMap::new();
        for kind in plan(&terms(seed, 600)).into_iter().filter_map(|step| step.act.kind()) {
            *kinds.entry(kind).or_default() += 1;
        }
        for kind in [
            "join",
            "leave",
            "kill",
            "kill publisher",
            "stop",
            "cut member",
            "stall member",
            "broker kill",
            "broker freeze",
        ] {
            assert!(kinds.get(kind).is_some_and(|count| *count > 1), "seed {seed}: {kind} of {kinds:?}");
        }
    }
}
