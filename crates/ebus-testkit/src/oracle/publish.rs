//! G7: of the messages of a key given to one publisher, those that are stored are stored in the order of `call`.

use std::collections::HashMap;

use super::facts::Facts;
use super::{Promise, Verdict};
use crate::history::{Event, Kind};

pub(super) fn judge(facts: &Facts<'_>, verdict: &mut Verdict) {
    let calls = calls_by_version(facts);
    // The places of each publisher's key, ascending, with the call that each came from.
    let mut lanes: HashMap<_, Vec<(u64, &Event, &Event)>> = HashMap::new();
    let mut acknowledged: HashMap<_, &Event> = HashMap::new();
    for event in facts.events.iter().filter(|event| event.kind == Kind::Stored) {
        acknowledged.insert((event.member.as_deref(), event.call), event);
    }
    let mut receipts: HashMap<_, &Event> = HashMap::new();
    for event in acknowledged.values() {
        receipts.insert((event.topic.as_deref(), event.partition, event.offset), event);
    }
    for (&(topic, partition, offset), &at) in &facts.messages {
        let shown = facts.event(at);
        let Some(key) = shown.key.as_deref() else { continue };
        // A receipt says which call it was. What was stored without one is known by its version.
        let receipt = receipts.get(&(Some(topic), Some(partition), Some(offset))).copied();
        let call = receipt.or_else(|| calls.get(&(topic, key, shown.version?)).copied().flatten());
        if let Some((call, member)) = call.and_then(|call| Some((call, call.member.as_deref()?))) {
            lanes.entry((member, topic, key, partition)).or_default().push((offset, shown, call));
        }
    }
    for ((member, _, key, _), places) in lanes {
        for pair in places.windows(2) {
            let ((_, _, first), (_, _, second)) = (pair[0], pair[1]);
            if first.call > second.call {
                verdict.find(
                    Promise::G7,
                    || format!("publisher {member} has key {key:?} stored in another order than that of its calls"),
                    [first, second, pair[0].1, pair[1].1],
                );
            }
        }
    }
}

/// The one call of each version of a key; `None` where there were several.
fn calls_by_version<'a>(facts: &Facts<'a>) -> HashMap<(&'a str, &'a str, u64), Option<&'a Event>> {
    let mut calls = HashMap::new();
    for event in facts.events.iter().filter(|event| event.kind == Kind::Call) {
        if let (Some(topic), Some(key), Some(version)) =
            (event.topic.as_deref(), event.key.as_deref(), event.version)
        {
            calls.entry((topic, key, version)).and_modify(|call| *call = None).or_insert(Some(event));
        }
    }
    calls
}
