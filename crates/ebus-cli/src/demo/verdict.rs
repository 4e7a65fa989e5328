//! The verdict: from the oracle over the history, and from what the broker has. Nobody else is asked.

use std::collections::{HashMap, HashSet};

use ebus_testkit::history::{Event, Kind};
use ebus_testkit::oracle::{self, Rules};

use super::plan::{Fault, Place, Plan};
use super::read_back::ReadBack;

/// Findings that are explained; all are counted.
const EXPLAINED: usize = 20;

/// What was run, as far as the verdict has to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) topic: &'a str,
    pub(crate) group: &'a str,
    pub(crate) max_in_flight: usize,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// What the oracle found in the history.
    pub(crate) oracle: oracle::Verdict,
    /// Events that were acknowledged to their publisher.
    pub(crate) published: u64,
    /// Acknowledged, and at the end neither handled to success nor in the dead-letter topic; or gone from the topic.
    pub(crate) lost: u64,
    /// Started out of order, or stored out of order.
    pub(crate) reordered: u64,
    /// Ran again after they were finished; dead letters and stored events that are there twice.
    pub(crate) duplicates: u64,
    /// Rejected events that are in the dead-letter topic.
    pub(crate) dead_letters: u64,
    /// Dead letters that nobody rejected, messages that nobody published.
    pub(crate) unexpected: u64,
    /// Partitions whose last event is not committed as finished.
    pub(crate) uncommitted: u64,
    /// Acknowledged events that the topic's retention has given up: they could not be read back.
    pub(crate) trimmed: u64,
    /// Events of the plan without an acknowledgement.
    pub(crate) unpublished: u64,
    /// What the broker has that it should not, and the other way round, in words.
    pub(crate) findings: Vec<String>,
}

impl Verdict {
    /// Whether every promise held and all that was planned was done.
    pub(crate) fn kept(&self) -> bool {
        let more = self.lost
            + self.reordered
            + self.duplicates
            + self.unexpected
            + self.uncommitted
            + self.unpublished;
        self.oracle.kept() && more == 0
    }
}

/// Judges a run by its history, and by what the broker has.
pub(crate) fn judge(events: &[Event], back: &ReadBack, case: &Case<'_>) -> Verdict {
    let rules =
        Rules::new().findings(EXPLAINED).reads(case.group, case.topic).max_in_flight(case.max_in_flight);
    let oracle = oracle::judge(events, &rules);
    let mut found = Found::default();
    let history = History::of(events, case);
    topic(&history, back, &mut found);
    dead_letters(&history, back, case, &mut found);
    committed(back, &mut found);
    let published = history.stored.len() as u64;
    Verdict {
        published,
        lost: oracle.lost + found.lost,
        // The oracle knows the order of what ran and of what was acknowledged; the topic shows the rest too.
        reordered: oracle.reordered + oracle.misplaced.max(found.reordered),
        duplicates: oracle.duplicates + found.duplicates,
        dead_letters: found.dead_letters,
        unexpected: found.unexpected,
        uncommitted: found.uncommitted,
        unpublished: case.plan.events().saturating_sub(published),
        trimmed: found.trimmed,
        findings: found.texts,
        oracle,
    }
}

#[derive(Default)]
struct Found {
    lost: u64,
    reordered: u64,
    duplicates: u64,
    dead_letters: u64,
    unexpected: u64,
    uncommitted: u64,
    trimmed: u64,
    texts: Vec<String>,
}

impl Found {
    fn say(&mut self, text: impl FnOnce() -> String) {
        if self.texts.len() < EXPLAINED {
            self.texts.push(text());
        }
    }
}

/// What the history says about the topic of the run.
struct History {
    /// Acknowledged events and where they are.
    stored: HashMap<(u32, u64), Option<Place>>,
    /// Calls that have no acknowledgement: what they published may be there or not.
    open: HashSet<Place>,
    /// Where the group finished something, by success or by a dead letter that was acknowledged.
    finished: HashSet<(u32, u64)>,
    /// Where dead letters were acknowledged for.
    buried: HashSet<(u32, u64)>,
}

impl History {
    fn of(events: &[Event], case: &Case<'_>) -> Self {
        let mut history = Self {
            stored: HashMap::new(),
            open: HashSet::new(),
            finished: HashSet::new(),
            buried: HashSet::new(),
        };
        for event in events.iter().filter(|event| event.topic.as_deref() == Some(case.topic)) {
            let named = event.key.as_deref().zip(event.version);
            let place = named.and_then(|(key, version)| case.plan.place(key, version));
            let at = event.partition.zip(event.offset);
            match (event.kind, at) {
                (Kind::Call, _) => history.open.extend(place),
                (Kind::Stored, Some(at)) => {
                    history.stored.insert(at, place);
                    place.map(|place| history.open.remove(&place));
                }
                (Kind::End, Some(at)) if event.outcome == Some(ebus_testkit::history::Outcome::Ack) => {
                    history.finished.insert(at);
                }
                (Kind::DeadLetter, Some(at)) => {
                    history.finished.insert(at);
                    history.buried.insert(at);
                }
                _ => {}
            }
        }
        history
    }
}

/// What was acknowledged is there, once and in order, and nothing else is.
fn topic(history: &History, back: &ReadBack, found: &mut Found) {
    let there: HashMap<(u32, u64), Option<Place>> =
        back.stored.iter().map(|(partition, offset, place)| ((*partition, *offset), *place)).collect();
    let earliest: HashMap<u32, u64> = back.earliest.iter().copied().collect();
    for (at, place) in &history.stored {
        if at.1 < earliest.get(&at.0).copied().unwrap_or(0) {
            found.trimmed += 1;
        } else if there.get(at) != Some(place) {
            // What was never finished is counted by the oracle.
            found.lost += u64::from(history.finished.contains(at));
            found.say(|| format!("{place:?} was acknowledged at {at:?}, where {:?} is", there.get(at)));
        }
    }
    let mut seen = HashSet::new();
    let mut last: HashMap<u32, (u32, u64)> = HashMap::new();
    for (partition, offset, place) in &back.stored {
        let Some(place) = *place else {
            found.unexpected += 1;
            found.say(|| format!("{partition}/{offset} holds a message that is no event of this run"));
            continue;
        };
        if !seen.insert(place) {
            found.duplicates += 1;
            found.say(|| format!("{place:?} is stored twice, the second time at {partition}/{offset}"));
            continue;
        }
        if !history.stored.contains_key(&(*partition, *offset)) && !history.open.contains(&place) {
            found.unexpected += 1;
            found.say(|| format!("{place:?} is at {partition}/{offset}, where nobody was told"));
        }
        let before = last.insert(place.aggregate, (*partition, place.version));
        if before.is_some_and(|(in_partition, version)| in_partition != *partition || version > place.version)
        {
            found.reordered += 1;
            found.say(|| format!("{place:?} at {partition}/{offset} is stored after {before:?}"));
        }
    }
}

/// Every event that was rejected is a dead letter once, and no other is.
fn dead_letters(history: &History, back: &ReadBack, case: &Case<'_>, found: &mut Found) {
    let mut there = HashSet::new();
    for letter in &back.dead_letters {
        let at =
            letter.origin.as_ref().filter(|(group, topic, ..)| group == case.group && topic == case.topic);
        let at = at.map(|(_, _, partition, offset)| (*partition, *offset));
        let (Some(at), Some(place)) = (at, letter.place) else {
            found.unexpected += 1;
            found.say(|| format!("a dead letter that is not of this run: {letter:?}"));
            continue;
        };
        if !there.insert(at) {
            found.duplicates += 1;
            found.say(|| format!("{place:?} is a dead letter twice"));
        } else if case.plan.fault(place) != Some(Fault::Reject) {
            found.unexpected += 1;
            found.say(|| format!("{place:?} is a dead letter, and nobody rejected it"));
        } else if history.stored.get(&at).is_some_and(|stored| *stored != Some(place)) {
            found.unexpected += 1;
            found.say(|| {
                format!("the dead letter {place:?} says that it came from {at:?}, where another event is")
            });
        } else {
            found.dead_letters += 1;
        }
    }
    for at in history.buried.difference(&there) {
        found.lost += 1;
        found.say(|| format!("the dead letter of {at:?} was acknowledged and is not there"));
    }
    for (at, place) in &history.stored {
        let rejected = place.is_some_and(|place| case.plan.fault(place) == Some(Fault::Reject));
        // Without any end it is lost, and counted by the oracle.
        if rejected && !there.contains(at) && history.finished.contains(at) && !history.buried.contains(at) {
            found.unexpected += 1;
            found.say(|| format!("{place:?} was rejected, is no dead letter, and counts as handled"));
        }
    }
}

/// Who joins the group next gets nothing again.
fn committed(back: &ReadBack, found: &mut Found) {
    let mut last: HashMap<u32, u64> = HashMap::new();
    for (partition, offset, _) in &back.stored {
        last.entry(*partition).and_modify(|last| *last = (*last).max(*offset)).or_insert(*offset);
    }
    let committed: HashMap<u32, u64> = back.committed.iter().copied().collect();
    for (partition, offset) in last {
        let up_to = committed.get(&partition).copied().unwrap_or(0);
        if up_to <= offset {
            found.uncommitted += 1;
            found.say(|| format!("partition {partition} is committed up to {up_to}, and ends at {offset}"));
        }
    }
}

#[cfg(test)]
mod tests;
