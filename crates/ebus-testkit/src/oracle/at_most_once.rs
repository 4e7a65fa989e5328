//! At most once: settled, then started, once or never (G1, G2, G6).

use std::collections::{HashMap, HashSet};

use super::facts::{At, Facts, Ownership, Run, Work, place, work};
use super::rules::nanos;
use super::{Promise, Rules, Verdict};
use crate::history::{Kind, Outcome};

pub(super) fn judge(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    if rules.at_most_once.is_empty() {
        return;
    }
    let settled = settled(facts, rules);
    verdict.cut_short = cut_short(facts, rules);
    twice(facts, rules, verdict);
    started_unsettled(facts, rules, &settled, verdict);
    never_started(facts, rules, &settled, verdict);
    committed_unsettled(facts, rules, &settled, verdict);
    goes_back(facts, rules, verdict);
}

/// When a message was settled as finished, and under which ownerships.
type Settled<'a> = HashMap<Work<'a>, Vec<(At, Ownership<'a>)>>;

fn settled<'a>(facts: &Facts<'a>, rules: &Rules) -> Settled<'a> {
    let mut settled = Settled::new();
    for (at, event) in facts.events.iter().enumerate() {
        if (event.kind, event.outcome) != (Kind::Settle, Some(Outcome::Finished)) {
            continue;
        }
        let (Some(work), Some(member), Some(epoch)) = (work(event), event.member.as_deref(), event.epoch)
        else {
            continue;
        };
        if rules.at_most_once.contains(work.0) {
            let (group, (topic, partition, _)) = work;
            settled.entry(work).or_default().push((at, (group, topic, partition, member, epoch)));
        }
    }
    settled
}

fn runs<'f, 'a>(facts: &'f Facts<'a>, rules: &'f Rules) -> impl Iterator<Item = &'f Run<'a>> {
    facts.runs.iter().filter(|run| rules.at_most_once.contains(run.work.0))
}

/// Runs whose process died: they have no end, or the one that was put in at its death.
fn cut_short(facts: &Facts<'_>, rules: &Rules) -> u64 {
    let killed = facts.events.iter().filter(|event| event.kind == Kind::Killed);
    let deaths: HashSet<_> = killed.map(|event| (event.member.as_deref(), event.at_ns)).collect();
    let is_put_in = |end: At| {
        let end = facts.event(end);
        deaths.contains(&(end.member.as_deref(), end.at_ns))
    };
    runs(facts, rules).filter(|run| run.end.is_none_or(is_put_in)).count() as u64
}

fn twice(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    for run in runs(facts, rules) {
        if let Some(before) = facts.runs_of(run.work).find(|other| other.start < run.start) {
            verdict.find(
                Promise::G6,
                || "a message of a group that is at most once started twice".into(),
                [facts.event(before.start), facts.event(run.start)],
            );
        }
    }
}

/// What starts was settled before, under the same ownership: else no commit can have covered it.
fn started_unsettled(facts: &Facts<'_>, rules: &Rules, settled: &Settled<'_>, verdict: &mut Verdict) {
    for run in runs(facts, rules) {
        let settled = settled.get(&run.work).into_iter().flatten();
        if !settled.clone().any(|(at, ownership)| *at < run.start && *ownership == run.ownership()) {
            verdict.find(
                Promise::G1,
                || "a message of a group that is at most once started before it was settled".into(),
                [facts.event(run.start)],
            );
        }
    }
}

/// What never started was settled by somebody who could not start it any more.
fn never_started(facts: &Facts<'_>, rules: &Rules, settled: &Settled<'_>, verdict: &mut Verdict) {
    let readers = facts.readers.iter().filter(|(group, _)| rules.at_most_once.contains(*group));
    for &(group, topic) in readers {
        for (&place, &at) in facts.messages.range((topic, 0, 0)..=(topic, u32::MAX, u64::MAX)) {
            let work = (group, place);
            if !rules.in_scope(group, topic, place.1, place.2) || facts.runs_of(work).next().is_some() {
                continue;
            }
            match settled.get(&work).map(Vec::as_slice).unwrap_or_default() {
                [] if rules.unfinished_ok.contains(group) => {}
                [] => verdict.find(
                    Promise::G1,
                    || {
                        format!(
                            "group {group} never started offset {} of {topic}/{}, nor settled it",
                            place.2, place.1
                        )
                    },
                    [facts.event(at)],
                ),
                [.., (_, last)] if facts.crashed_at(*last).is_some() => verdict.unstarted_at_crashes += 1,
                _ => verdict.unstarted += 1,
            }
        }
    }
}

/// What is committed was settled, or started, before.
fn committed_unsettled(facts: &Facts<'_>, rules: &Rules, settled: &Settled<'_>, verdict: &mut Verdict) {
    for (at, event) in facts.events.iter().enumerate().filter(|(_, event)| event.kind == Kind::Committed) {
        let (Some(group), Some((topic, partition, watermark))) = (event.group.as_deref(), place(event))
        else {
            continue;
        };
        if !rules.at_most_once.contains(group) {
            continue;
        }
        let above = event.finished.iter().flatten().copied();
        for (from, to) in std::iter::once((0, watermark)).chain(above) {
            for (&place, &stored) in facts.messages.range((topic, partition, from)..(topic, partition, to)) {
                let settled =
                    settled.get(&(group, place)).is_some_and(|all| all.iter().any(|(by, _)| *by < at));
                if !settled && rules.in_scope(group, topic, partition, place.2) {
                    verdict.find(
                        Promise::G1,
                        || format!("offset {} was committed before it was settled", place.2),
                        [facts.event(stored), event],
                    );
                }
            }
        }
    }
}

/// Nothing is replayed, so the starts of a key ascend under all ownerships together. A member that does not know yet that it lost its
/// partition may be late with what it had committed.
fn goes_back(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    let mut highest: HashMap<(&str, &str, &str), &Run<'_>> = HashMap::new();
    for run in runs(facts, rules) {
        let Some(key) = run.key else { continue };
        let (group, (topic, _, offset)) = run.work;
        let before = *highest.entry((group, topic, key)).or_insert(run);
        if before.work.1.2 <= offset {
            highest.insert((group, topic, key), run);
            continue;
        }
        let start = facts.event(run.start).at_ns;
        let unaware = run.epoch < before.epoch
            && facts.may_be_stale(rules, run.member, start)
            && facts.lost_at(run.ownership()).is_some_and(|lost| {
                start <= facts.faults.latest(run.member, lost, nanos(rules.cancel_within))
            });
        if !unaware && before.ownership() != run.ownership() {
            verdict.find(
                Promise::G2,
                || format!("key {key:?} went back from offset {} to {offset}", before.work.1.2),
                [facts.event(before.start), facts.event(run.start)],
            );
        }
    }
}
