//! G3: one run of a key at a time, and none without ownership.

use std::collections::HashMap;

use super::facts::{Facts, Run};
use super::rules::nanos;
use super::{Promise, Rules, Verdict};
use crate::history::Kind;

pub(super) fn judge(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    two_at_once(facts, rules, verdict);
    without_ownership(facts, rules, verdict);
    shared_epoch(facts, verdict);
}

/// What may have only one run at a time: a key, or a single message where there is no key.
#[derive(PartialEq, Eq, Hash)]
enum Lane<'a> {
    Key(&'a str, &'a str, &'a str),
    Message(super::facts::Work<'a>),
}

fn two_at_once(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    let mut open: HashMap<Lane<'_>, Vec<&Run<'_>>> = HashMap::new();
    for run in &facts.runs {
        let (group, place) = run.work;
        let lane = run.key.map_or(Lane::Message(run.work), |key| Lane::Key(group, place.0, key));
        let others = open.entry(lane).or_default();
        others.retain(|other| other.is_open_at(run.start));
        for other in others.iter() {
            if may_overlap(facts, rules, other, run) {
                verdict.excused_overlaps += 1;
                continue;
            }
            let end = other.end.map(|end| facts.event(end));
            verdict.find(
                Promise::G3,
                || "a run started while another of its key was open".into(),
                [facts.event(other.start), facts.event(run.start)].into_iter().chain(end),
            );
        }
        others.push(run);
    }
}

/// A member that lost its partition without notice learns of it late: until then both run, whoever began first.
fn may_overlap(facts: &Facts<'_>, rules: &Rules, one: &Run<'_>, other: &Run<'_>) -> bool {
    let from = facts.event(one.start.max(other.start)).at_ns;
    one.member != other.member && (is_stale(facts, rules, one, from) || is_stale(facts, rules, other, from))
}

/// Whether the partition of a run was lost, the member could not know it at `from`, and the run has ended soon after it did.
fn is_stale(facts: &Facts<'_>, rules: &Rules, run: &Run<'_>, from: u64) -> bool {
    let Some(lost) = facts.lost_at(run.ownership()) else { return false };
    let latest = facts.faults.latest(run.member, lost, nanos(rules.cancel_within));
    run.end.is_some_and(|end| facts.event(end).at_ns <= latest) && facts.may_be_stale(rules, run.member, from)
}

/// Runs belong to an ownership that has begun; at its release they have ended, and after its loss they end soon.
fn without_ownership(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    for run in &facts.runs {
        let start = facts.event(run.start);
        let owned = facts.ownerships.get(&run.ownership()).copied().unwrap_or_default();
        if owned.assigned.is_none_or(|assigned| assigned > run.start) {
            verdict.find(Promise::G3, || "a run started before its partition was owned".into(), [start]);
        }
        let Some(ended) = owned.ended else { continue };
        let (at, end) = (facts.event(ended), run.end.map(|end| facts.event(end)));
        let shown = || [start, at].into_iter().chain(end);
        if at.kind == Kind::Released {
            if run.end.is_none_or(|end| end > ended) {
                verdict.find(
                    Promise::G3,
                    || "a run was open after its partition was released".into(),
                    shown(),
                );
            }
        } else {
            let latest = facts.faults.latest(run.member, at.at_ns, nanos(rules.cancel_within));
            if end.is_none_or(|end| end.at_ns > latest) {
                verdict.find(Promise::G3, || "a run went on after its partition was lost".into(), shown());
            }
        }
    }
}

/// An epoch is a fencing token only while no two ownerships of a partition share one.
fn shared_epoch(facts: &Facts<'_>, verdict: &mut Verdict) {
    let mut owners: HashMap<_, usize> = HashMap::new();
    let mut assigned: Vec<_> = facts
        .ownerships
        .iter()
        .filter_map(|(ownership, owned)| Some((owned.assigned?, *ownership)))
        .collect();
    assigned.sort_unstable();
    for (at, (group, topic, partition, _, epoch)) in assigned {
        if let Some(other) = owners.insert((group, topic, partition, epoch), at) {
            verdict.find(
                Promise::G3,
                || format!("two members own {topic}/{partition} under epoch {epoch}"),
                [facts.event(other), facts.event(at)],
            );
        }
    }
}
