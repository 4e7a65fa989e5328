//! G6: what is finished does not run again, but for a crash.

use std::collections::HashMap;

use super::facts::{At, Facts, Run, Work, place};
use super::rules::nanos;
use super::{Promise, Rules, Verdict};
use crate::history::Kind;

pub(super) fn judge(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    let committed = first_committed(facts);
    for run in &facts.runs {
        let Some(finished) = facts.finished.get(&run.work) else { continue };
        let Some(&before) = finished.iter().rev().find(|at| **at < run.start) else { continue };
        match not_excused(facts, rules, &committed, run, before) {
            None => verdict.replayed += 1,
            Some(why) => verdict.find(
                Promise::G6,
                || format!("a message ran again after it was finished, {why}"),
                [facts.event(before), facts.event(run.start)],
            ),
        }
    }
}

/// When the broker first said that a message is committed as finished.
type Commits<'a> = HashMap<(&'a str, &'a str, u32), Vec<(At, u64, &'a [(u64, u64)])>>;

fn first_committed<'a>(facts: &Facts<'a>) -> Commits<'a> {
    let mut commits = Commits::new();
    for (at, event) in facts.events.iter().enumerate().filter(|(_, event)| event.kind == Kind::Committed) {
        if let (Some(group), Some((topic, partition, watermark))) = (event.group.as_deref(), place(event)) {
            let finished = event.finished.as_deref().unwrap_or_default();
            commits.entry((group, topic, partition)).or_default().push((at, watermark, finished));
        }
    }
    commits
}

fn is_committed_before(commits: &Commits<'_>, work: Work<'_>, before: At) -> bool {
    let (group, (topic, partition, offset)) = work;
    let all = commits.get(&(group, topic, partition)).map(Vec::as_slice).unwrap_or_default();
    all.iter().take_while(|(at, ..)| *at < before).any(|(_, watermark, finished)| {
        offset < *watermark || finished.iter().any(|(from, to)| (*from..*to).contains(&offset))
    })
}

/// Why a crash does not excuse that `run` repeats what was finished at `before`.
fn not_excused(
    facts: &Facts<'_>,
    rules: &Rules,
    commits: &Commits<'_>,
    run: &Run<'_>,
    before: At,
) -> Option<&'static str> {
    let Some(former) = facts.finisher(run.work, before) else {
        return Some("and nobody knows who finished it");
    };
    if former.ownership() == run.ownership() {
        return Some("under the same ownership");
    }
    // A member that does not know yet that it lost its partition runs what the next owner may have finished.
    let stale = facts.lost_at(run.ownership()).map(|lost| lost.saturating_add(nanos(rules.cancel_within)));
    if run.epoch < former.epoch && stale.is_some_and(|latest| facts.event(run.start).at_ns <= latest) {
        return None;
    }
    let Some(crash) = facts.crashed_at(former.ownership()) else {
        return Some("and its owner had not crashed");
    };
    if is_committed_before(commits, run.work, run.start) {
        return Some("and that was committed");
    }
    // A loss may be noticed late; the next owner shows when it was at the latest.
    let next = facts.ownerships.get(&run.ownership()).and_then(|owned| owned.assigned).unwrap_or(crash);
    let lost_ns = facts.event(crash.min(next)).at_ns;
    let due = facts.event(before).at_ns.saturating_add(rules.commit_within.map_or(u64::MAX, nanos));
    (due < lost_ns).then_some("and it finished long before the crash")
}
