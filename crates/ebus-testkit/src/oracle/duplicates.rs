//! G6: what is finished does not run again, nor become a dead letter, but for a crash.

use std::collections::HashMap;
use std::time::Duration;

use super::facts::{At, Facts, Run, Work, place, work};
use super::rules::nanos;
use super::{Promise, Rules, Verdict};
use crate::history::{Kind, Outcome};

pub(super) fn judge(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    let committed = commits(facts);
    let settled = settled(facts);
    for run in &facts.runs {
        let Some(finished) = facts.finished.get(&run.work) else { continue };
        if rules.at_most_once.contains(run.work.0) {
            continue;
        }
        // A dead letter that is redriven runs again because it is one. Where keys are parked, it ends its message only once that is
        // kept too, which the settlement shows: cancelled before, the message runs again.
        let parks = rules.parks.contains(run.work.0);
        let is_settled = |at: At| {
            settled.get(&run.work).is_some_and(|all| all.iter().any(|s| (at..run.start).contains(s)))
        };
        let ends = |at: At| !facts.is_dead_letter(at) || !run.redriven && (!parks || is_settled(at));
        let counts = |at: &&At| **at < run.start && ends(**at);
        let Some(&before) = finished.iter().rev().find(counts) else { continue };
        match excuse(facts, rules, &committed, run, before) {
            Ok(excuse) => {
                verdict.replayed += 1;
                match excuse {
                    Excuse::Uncommitted(age) => verdict.oldest_replayed = verdict.oldest_replayed.max(age),
                    Excuse::HeldUp(age) => {
                        verdict.held_up += 1;
                        verdict.oldest_held_up = verdict.oldest_held_up.max(age);
                    }
                    Excuse::Unaware | Excuse::Unkept => {}
                }
            }
            Err(why) => verdict.find(
                Promise::G6,
                || format!("a message ran again after it was finished, {why}"),
                [facts.event(before), facts.event(run.start)],
            ),
        }
    }
    letters(facts, rules, &committed, verdict);
}

/// A message that was handled to success is no dead letter after that. What a crash excuses is what it excuses of a run.
fn letters(facts: &Facts<'_>, rules: &Rules, committed: &Commits<'_>, verdict: &mut Verdict) {
    for letter in &facts.letters {
        let successes = facts.finished.get(&letter.work).into_iter().flatten();
        let Some(&success) = successes.rev().find(|at| **at < letter.start && !facts.is_dead_letter(**at))
        else {
            continue;
        };
        // It ran again before it was given up: then that run was judged.
        let again = |run: &Run<'_>| {
            run.ownership() == letter.ownership() && (success..letter.start).contains(&run.start)
        };
        if facts.runs_of(letter.work).any(again) {
            continue;
        }
        // Of what was redriven, the place was committed before, with its first dead letter.
        let redriven = facts.finisher(letter.work, success).is_some_and(|run| run.redriven);
        let letter = Run { redriven, ..*letter };
        if let Err(why) = excuse(facts, rules, committed, &letter, success) {
            verdict.find(
                Promise::G6,
                || format!("a message became a dead letter after it was handled, {why}"),
                [facts.event(success), facts.event(letter.start)],
            );
        }
    }
}

/// When a message was settled as finished.
fn settled<'a>(facts: &Facts<'a>) -> HashMap<Work<'a>, Vec<At>> {
    let mut settled: HashMap<_, Vec<At>> = HashMap::new();
    for (at, event) in facts.events.iter().enumerate() {
        if (event.kind, event.outcome) == (Kind::Settle, Some(Outcome::Finished))
            && let Some(work) = work(event)
        {
            settled.entry(work).or_default().push(at);
        }
    }
    settled
}

/// What the broker said that is committed, for each partition of a group.
type Commits<'a> = HashMap<(&'a str, &'a str, u32), Vec<Seen<'a>>>;

/// One answer of the broker.
struct Seen<'a> {
    at: At,
    epoch: Option<u64>,
    position: (u64, &'a [(u64, u64)]),
}

fn commits<'a>(facts: &Facts<'a>) -> Commits<'a> {
    let mut commits = Commits::new();
    for (at, event) in facts.events.iter().enumerate().filter(|(_, event)| event.kind == Kind::Committed) {
        if let (Some(group), Some((topic, partition, watermark))) = (event.group.as_deref(), place(event)) {
            let finished = event.finished.as_deref().unwrap_or_default();
            let seen = Seen { at, epoch: event.epoch, position: (watermark, finished) };
            commits.entry((group, topic, partition)).or_default().push(seen);
        }
    }
    commits
}

fn of_partition<'c>(commits: &'c Commits<'c>, work: Work<'c>) -> &'c [Seen<'c>] {
    let (group, (topic, partition, _)) = work;
    commits.get(&(group, topic, partition)).map(Vec::as_slice).unwrap_or_default()
}

fn is_committed_before<'c>(commits: &'c Commits<'c>, work: Work<'c>, before: At) -> bool {
    let offset = work.1.2;
    of_partition(commits, work).iter().take_while(|seen| seen.at < before).any(|seen| {
        let (watermark, finished) = seen.position;
        // The runs ascend.
        let run = finished.partition_point(|(_, to)| *to <= offset);
        offset < watermark || finished.get(run).is_some_and(|(from, _)| *from <= offset)
    })
}

/// Whether the broker accepted commits of an ownership that were made between these times. The first change that is seen may be
/// of a commit that was on its way before; there is one on its way at a time, so the second is not.
fn went_on<'c>(facts: &Facts<'_>, commits: &'c Commits<'c>, former: &Run<'c>, from: u64, to: u64) -> bool {
    let seen = of_partition(commits, former.work).iter().filter(|seen| seen.epoch == Some(former.epoch));
    let between: Vec<_> = seen.filter(|seen| (from..to).contains(&facts.event(seen.at).at_ns)).collect();
    between.windows(2).filter(|two| two[0].position != two[1].position).count() >= 2
}

/// Why a message may run again.
enum Excuse {
    /// It finished so long before the crash, and was not committed yet.
    Uncommitted(Duration),
    /// It finished so long before, and another fault kept it from being committed.
    HeldUp(Duration),
    /// The member did not know that it owned nothing any more.
    Unaware,
    /// It was redriven, and its owner let go before the list of parked keys could say so.
    Unkept,
}

/// Why `run` may repeat what was finished at `before`; an error says why it may not.
fn excuse(
    facts: &Facts<'_>,
    rules: &Rules,
    commits: &Commits<'_>,
    run: &Run<'_>,
    before: At,
) -> Result<Excuse, &'static str> {
    let Some(former) = facts.finisher(run.work, before) else {
        return Err("and nobody knows who finished it");
    };
    if former.ownership() == run.ownership() {
        return Err("under the same ownership");
    }
    // A member that does not know yet that it lost its partition runs what the next owner may have finished.
    let cancel_within = nanos(rules.cancel_within);
    let lost = facts.lost_at(run.ownership());
    let stale = lost.map(|lost| facts.faults.latest(run.member, lost, cancel_within));
    let start = facts.event(run.start).at_ns;
    if run.epoch < former.epoch
        && stale.is_some_and(|latest| start <= latest)
        && facts.may_be_stale(rules, run.member, start)
    {
        return Ok(Excuse::Unaware);
    }
    if former.redriven && facts.could_not_keep(former.ownership(), before) {
        return Ok(Excuse::Unkept);
    }
    let Some(crash) = facts.crashed_at(former.ownership()) else {
        return Err("and its owner had not crashed");
    };
    // Of what is redriven, the place is committed since it became a dead letter; its success is kept apart.
    if !run.redriven && is_committed_before(commits, run.work, run.start) {
        return Err("and that was committed");
    }
    let crash_ns = facts.event(crash).at_ns;
    let aftermath = rules.aftermath();
    let refused = facts.event(crash).kind == Kind::Released;
    let explained = facts.faults.explain_loss(former.member, crash_ns, aftermath)
        || refused && facts.faults.keep_group_waiting(crash_ns, rules);
    if rules.recovers_within.is_some() && !explained {
        return Err("and no fault of its owner was recorded");
    }
    // A loss may be noticed late; the next owner shows when it was at the latest.
    let next = facts.ownerships.get(&run.ownership()).and_then(|owned| owned.assigned).unwrap_or(crash);
    let lost_ns = facts.event(crash.min(next)).at_ns;
    let finished_ns = facts.event(before).at_ns;
    let within = rules.commit_within.map_or(u64::MAX, nanos);
    let age = Duration::from_nanos(lost_ns.saturating_sub(finished_ns));
    let late = finished_ns.saturating_add(within);
    if late >= lost_ns {
        return Ok(Excuse::Uncommitted(age));
    }
    if facts.faults.commit_due(former.member, finished_ns, within, rules) < lost_ns {
        return Err("and it finished long before the crash");
    }
    if went_on(facts, commits, former, late, lost_ns) {
        return Err("and later commits were accepted before the crash");
    }
    Ok(Excuse::HeldUp(age))
}
