//! G2: the messages of a key start in order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::facts::{Facts, work};
use super::{Promise, Rules, Verdict};
use crate::history::Kind;

pub(super) fn judge(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    one_partition(facts, verdict);
    lower_unfinished(facts, rules, verdict);
    goes_back(facts, verdict);
}

/// Order holds within a partition: a key that is in two of them has none.
fn one_partition(facts: &Facts<'_>, verdict: &mut Verdict) {
    let mut home: HashMap<(&str, &str), (u32, usize)> = HashMap::new();
    let mut strays = BTreeSet::new();
    for (&(topic, partition, _), &at) in &facts.messages {
        let Some(key) = facts.event(at).key.as_deref() else { continue };
        let (first, shown) = *home.entry((topic, key)).or_insert((partition, at));
        if first != partition && strays.insert((topic, key, partition)) {
            verdict.find(
                Promise::G2,
                || format!("key {key:?} is in partitions {first} and {partition}"),
                [facts.event(shown), facts.event(at)],
            );
        }
    }
}

/// Nothing starts while a lower message of its key is unfinished.
fn lower_unfinished(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    // What of each key is unfinished yet, for each group that reads it.
    let mut unfinished: HashMap<(&str, &str, u32, &str), BTreeMap<u64, usize>> = HashMap::new();
    for &(group, topic) in &facts.readers {
        for (&(_, partition, offset), &at) in
            facts.messages.range((topic, 0, 0)..=(topic, u32::MAX, u64::MAX))
        {
            let Some(key) = facts.event(at).key.as_deref() else { continue };
            // What is lost at most once stays unfinished for ever: there the starts of a key never go back, under no ownership.
            if rules.in_scope(group, topic, partition, offset) && !rules.at_most_once.contains(group) {
                unfinished.entry((group, topic, partition, key)).or_default().insert(offset, at);
            }
        }
    }
    for (at, event) in facts.events.iter().enumerate() {
        let Some((group, place)) = work(event) else { continue };
        let (topic, partition, offset) = place;
        let Some(key) = facts.messages.get(&place).and_then(|at| facts.event(*at).key.as_deref()) else {
            continue;
        };
        let Some(lane) = unfinished.get_mut(&(group, topic, partition, key)) else { continue };
        if event.kind == Kind::Start {
            if let Some((lower, stored)) = lane.first_key_value().filter(|(lower, _)| **lower < offset) {
                verdict.find(
                    Promise::G2,
                    || format!("offset {offset} of key {key:?} started while {lower} was unfinished"),
                    [facts.event(*stored), event],
                );
            }
        } else if facts.finished.get(&(group, place)).is_some_and(|all| all.contains(&at)) {
            // A parked key waits for its dead letters.
            if !(facts.is_dead_letter(at) && rules.parks.contains(group)) {
                lane.remove(&offset);
            }
        }
    }
}

/// A replay goes in order too: under one ownership the starts of a key never go back.
fn goes_back(facts: &Facts<'_>, verdict: &mut Verdict) {
    let mut last: HashMap<_, &super::facts::Run<'_>> = HashMap::new();
    for run in &facts.runs {
        let Some(key) = run.key else { continue };
        let before = last.insert((run.ownership(), key), run);
        if let Some(before) = before.filter(|before| before.work.1.2 > run.work.1.2) {
            verdict.find(
                Promise::G2,
                || format!("key {key:?} went back from offset {} to {}", before.work.1.2, run.work.1.2),
                [facts.event(before.start), facts.event(run.start)],
            );
        }
    }
}
