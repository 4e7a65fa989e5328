//! G1: what was acknowledged is, for every group, handled to success or a dead letter; and never called finished before.

use std::collections::HashMap;

use super::facts::{Facts, place, work};
use super::{Promise, Rules, Verdict};
use crate::history::{Kind, Outcome};

pub(super) fn judge(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    never_finished(facts, rules, verdict);
    settled_unfinished(facts, rules, verdict);
    committed_unfinished(facts, rules, verdict);
}

fn never_finished(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    for &(group, topic) in &facts.readers {
        if rules.unfinished_ok.contains(group) || rules.at_most_once.contains(group) {
            continue;
        }
        for (&place, &at) in facts.messages.range((topic, 0, 0)..=(topic, u32::MAX, u64::MAX)) {
            let stored = facts.event(at);
            if rules.in_scope(group, topic, place.1, place.2) && !facts.finished.contains_key(&(group, place))
            {
                verdict.find(
                    Promise::G1,
                    || format!("group {group} never finished offset {} of {topic}/{}", place.2, place.1),
                    [stored],
                );
            }
        }
    }
}

fn settled_unfinished(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    for (at, event) in facts.events.iter().enumerate() {
        if event.kind != Kind::Settle || event.outcome != Some(Outcome::Finished) {
            continue;
        }
        let Some(work) = work(event) else { continue };
        if !rules.at_most_once.contains(work.0) && !facts.is_finished_before(work, at) {
            verdict.find(Promise::G1, || "settled as finished before it was".into(), [event]);
        }
    }
}

/// Each message once, at the first commit that covers it: what was finished then is finished ever after.
fn committed_unfinished(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    // The runs of the commit before are not looked at again: a key that is blocked keeps thousands above the watermark.
    let mut covered: HashMap<_, Vec<(u64, u64)>> = HashMap::new();
    for (at, event) in facts.events.iter().enumerate().filter(|(_, event)| event.kind == Kind::Committed) {
        let (Some(group), Some((topic, partition, watermark))) = (event.group.as_deref(), place(event))
        else {
            continue;
        };
        if rules.at_most_once.contains(group) {
            continue;
        }
        let above = event.finished.iter().flatten().copied();
        let now: Vec<(u64, u64)> = std::iter::once((0, watermark)).chain(above).collect();
        let before = covered.entry((group, topic, partition)).or_default();
        for (from, to) in now.iter().flat_map(|run| without(*run, before)) {
            let new = facts.messages.range((topic, partition, from)..(topic, partition, to));
            for (&place, &stored) in new {
                let in_scope = rules.in_scope(group, topic, partition, place.2);
                if in_scope && !facts.is_finished_before((group, place), at) {
                    verdict.find(
                        Promise::G1,
                        || format!("offset {} was committed as finished before it was", place.2),
                        [facts.event(stored), event],
                    );
                }
            }
        }
        *before = now;
    }
}

/// What of a run is in none of these, which ascend.
fn without(run: (u64, u64), others: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let (mut from, to) = run;
    let mut left = Vec::new();
    for &(begin, end) in &others[others.partition_point(|(_, end)| *end <= from)..] {
        if begin >= to {
            break;
        }
        if from < begin {
            left.push((from, begin));
        }
        from = from.max(end);
    }
    if from < to {
        left.push((from, to));
    }
    left
}

#[cfg(test)]
mod tests {
    use super::without;

    #[test]
    fn only_what_is_new_is_left_of_a_run() {
        let others = [(0, 10), (12, 14), (20, 30)];
        assert_eq!(without((0, 10), &others), []);
        assert_eq!(without((5, 22), &others), [(10, 12), (14, 20)]);
        assert_eq!(without((0, 35), &others), [(10, 12), (14, 20), (30, 35)]);
        assert_eq!(without((40, 41), &others), [(40, 41)]);
        assert_eq!(without((3, 3), &[]), []);
    }
}
