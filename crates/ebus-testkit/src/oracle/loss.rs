//! G1: what was acknowledged is, for every group, handled to success or a dead letter; and never called finished before.

use std::collections::HashMap;

use super::facts::{Facts, place, work};
use super::{Promise, Rules, Verdict};
use crate::history::{Kind, Outcome};

pub(super) fn judge(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    never_finished(facts, rules, verdict);
    settled_unfinished(facts, verdict);
    committed_unfinished(facts, rules, verdict);
}

fn never_finished(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    for &(group, topic) in &facts.readers {
        if rules.unfinished_ok.contains(group) {
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

fn settled_unfinished(facts: &Facts<'_>, verdict: &mut Verdict) {
    for (at, event) in facts.events.iter().enumerate() {
        if event.kind != Kind::Settle || event.outcome != Some(Outcome::Finished) {
            continue;
        }
        let Some(work) = work(event) else { continue };
        if !facts.is_finished_before(work, at) {
            verdict.find(Promise::G1, || "settled as finished before it was".into(), [event]);
        }
    }
}

/// Each message once, at the first commit that covers it: what was finished then is finished ever after.
fn committed_unfinished(facts: &Facts<'_>, rules: &Rules, verdict: &mut Verdict) {
    let mut covered: HashMap<(&str, &str, u32), u64> = HashMap::new();
    for (at, event) in facts.events.iter().enumerate().filter(|(_, event)| event.kind == Kind::Committed) {
        let (Some(group), Some((topic, partition, watermark))) = (event.group.as_deref(), place(event))
        else {
            continue;
        };
        let below = covered.entry((group, topic, partition)).or_default();
        let above = event.finished.iter().flatten().copied();
        for (from, to) in std::iter::once((0, watermark)).chain(above) {
            let from = from.max(*below);
            if from >= to {
                continue;
            }
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
        *below = watermark.max(*below);
    }
}
