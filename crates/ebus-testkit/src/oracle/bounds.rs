//! G4 and G5, where a scenario says what is allowed: nobody waits for another key, and runs are bounded.

use std::collections::HashMap;

use super::facts::Facts;
use super::rules::nanos;
use super::{Promise, Rules, Verdict};
use crate::history::Kind;

pub(super) fn judge(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    if let Some(most) = rules.max_in_flight {
        in_flight(facts, most, verdict);
    }
    if let Some(within) = rules.starts_within {
        starts(facts, nanos(within), verdict);
    }
}

fn in_flight(facts: &Facts<'_>, most: usize, verdict: &mut Verdict) {
    let mut open: HashMap<(&str, &str), usize> = HashMap::new();
    let ends: std::collections::HashSet<usize> = facts.runs.iter().filter_map(|run| run.end).collect();
    for (at, event) in facts.events.iter().enumerate() {
        let (Some(group), Some(member)) = (event.group.as_deref(), event.member.as_deref()) else { continue };
        let count = open.entry((group, member)).or_default();
        if event.kind == Kind::Start {
            *count += 1;
            if *count > most {
                let open = *count;
                verdict.find(
                    Promise::G5,
                    || format!("{open} runs open in a member, {most} allowed"),
                    [event],
                );
            }
        } else if ends.contains(&at) {
            *count -= 1;
        }
    }
}

/// A message's turn has come when it is stored, its partition is owned, and what is lower of its key is finished.
fn starts(facts: &Facts<'_>, within: u64, verdict: &mut Verdict) {
    let mut free: HashMap<_, u64> = HashMap::new();
    let mut started = std::collections::HashSet::new();
    for (at, event) in facts.events.iter().enumerate() {
        let Some((group, place)) = super::facts::work(event) else { continue };
        let lane = event.key.as_deref().map(|key| (group, place.0, place.1, key));
        if event.is_success() || event.kind == Kind::DeadLetter {
            lane.map(|lane| free.insert(lane, event.at_ns));
        }
        let Some(run) = facts.run_of.get(&at).map(|run| &facts.runs[*run]) else { continue };
        if !started.insert(run.work) {
            continue;
        }
        let stored = facts.messages.get(&place).map_or(0, |at| facts.event(*at).at_ns);
        let owned = facts.ownerships.get(&run.ownership()).and_then(|owned| owned.assigned);
        let owned = owned.map_or(0, |at| facts.event(at).at_ns);
        let before = lane.and_then(|lane| free.get(&lane)).copied().unwrap_or(0);
        let turn = stored.max(owned).max(before);
        let late = event.at_ns.saturating_sub(turn);
        if late > within {
            verdict.find(Promise::G4, || format!("started {} ms after its turn", late / 1_000_000), [event]);
        }
    }
}
