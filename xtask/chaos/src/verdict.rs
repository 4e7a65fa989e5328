//! What the broker has, held against what publishers and members were told. The oracle judges the rest.

use std::collections::{HashMap, HashSet};

use ebus_testkit::history::{Event, Kind, Outcome};
use serde::{Deserialize, Serialize};

use crate::options::Mode;
use crate::read_back::{Letter, ReadBack, Stored};
use crate::setting::Names;
use crate::work::Work;

/// Findings that are explained.
const EXPLAINED: usize = 40;

/// What was found by reading back.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Back {
    /// Messages in the topic.
    pub(crate) stored: u64,
    /// Of them, those whose publisher was never told: after a time-out, or because it had to stop.
    pub(crate) uncertain: u64,
    /// Dead letters.
    pub(crate) dead_letters: u64,
    /// Dead letters that are there again, because their receipt or their commit was lost.
    pub(crate) repeated_letters: u64,
    /// Acknowledged and not there, or rejected and no dead letter.
    pub(crate) lost: u64,
    /// Stored in another order than published.
    pub(crate) reordered: u64,
    /// Stored twice, or buried more often than tried.
    pub(crate) duplicates: u64,
    /// There, and nobody did it.
    pub(crate) unexpected: u64,
    /// Partitions that are not committed to their end.
    pub(crate) uncommitted: u64,
    pub(crate) findings: Vec<String>,
}

impl Back {
    pub(crate) fn broken(&self) -> u64 {
        self.lost + self.reordered + self.duplicates + self.unexpected + self.uncommitted
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        if self.findings.len() < EXPLAINED {
            self.findings.push(text());
        }
    }
}

/// What the history says was published.
#[derive(Debug, Default)]
struct Told<'a> {
    /// Where an event was acknowledged.
    stored: HashMap<(u32, u64), (&'a str, u64)>,
    /// Events that somebody published.
    called: HashSet<(&'a str, u64)>,
    acknowledged: HashSet<(&'a str, u64)>,
    /// How often an event was given up, tried or not.
    buried: HashMap<(&'a str, u64), u64>,
    /// Events whose dead letter was acknowledged.
    letters: HashSet<(&'a str, u64)>,
    /// Places whose messages were handled to success.
    handled: HashSet<(u32, u64)>,
}

impl<'a> Told<'a> {
    fn by(events: &'a [Event], names: &Names) -> Self {
        let mut told = Self::default();
        for event in events {
            let Some(id) = event.key.as_deref().zip(event.version) else { continue };
            let topic = event.topic.as_deref();
            let (is_topic, is_letter) = (topic == Some(&names.topic), topic == Some(&names.dead_letters));
            match event.kind {
                Kind::Call if is_topic => {
                    told.called.insert(id);
                }
                Kind::Call if is_letter => *told.buried.entry(id).or_default() += 1,
                Kind::Stored if is_topic => {
                    told.acknowledged.insert(id);
                    if let Some(at) = event.partition.zip(event.offset) {
                        told.stored.insert(at, id);
                    }
                }
                Kind::Stored if is_letter => {
                    told.letters.insert(id);
                }
                Kind::End if is_topic && event.outcome == Some(Outcome::Ack) => {
                    told.handled.extend(event.partition.zip(event.offset));
                }
                _ => {}
            }
        }
        told
    }
}

/// Holds what was read back against the history. Where keys are parked, what follows a dead letter is one too, and all of them were
/// redriven in the end. At most once, what is rejected is dropped.
pub(crate) fn judge(events: &[Event], back: &ReadBack, mode: Mode) -> Back {
    let told = Told::by(events, &Names::default());
    let mut found = Back { stored: back.stored.len() as u64, ..Back::default() };
    topic(&told, back, &mut found);
    dead_letters(&told, back, mode, &mut found);
    committed(back, &mut found);
    found
}

fn topic(told: &Told<'_>, back: &ReadBack, found: &mut Back) {
    let mut there = HashMap::new();
    let mut last: HashMap<&str, (u32, u64)> = HashMap::new();
    for Stored { partition, offset, event } in &back.stored {
        let Some(((key, version), _)) = event else {
            found.unexpected += 1;
            found.say(|| format!("{partition}/{offset} holds a message that is no event of this run"));
            continue;
        };
        let id = (key.as_str(), *version);
        if let Some(first) = there.insert(id, (*partition, *offset)) {
            found.duplicates += 1;
            found.say(|| format!("{id:?} is stored at {first:?} and again at {partition}/{offset}"));
            continue;
        }
        if !told.called.contains(&id) {
            found.unexpected += 1;
            found.say(|| format!("{id:?} is at {partition}/{offset}, and nobody published it"));
        } else if !told.acknowledged.contains(&id) {
            found.uncertain += 1;
        } else if told.stored.get(&(*partition, *offset)) != Some(&id) {
            found.unexpected += 1;
            found.say(|| format!("{id:?} is at {partition}/{offset}, where nobody was told"));
        }
        let before = last.insert(key, (*partition, *version));
        if before.is_some_and(|(home, earlier)| home != *partition || earlier > *version) {
            found.reordered += 1;
            found.say(|| format!("{id:?} at {partition}/{offset} is stored after {before:?}"));
        }
    }
    for (at, id) in &told.stored {
        if there.get(id) != Some(at) {
            found.lost += 1;
            found.say(|| format!("{id:?} was acknowledged at {at:?}, and is not there"));
        }
    }
}

fn dead_letters(told: &Told<'_>, back: &ReadBack, Mode { parks, at_most_once, .. }: Mode, found: &mut Back) {
    let (mut rejected, mut may_be) = (HashMap::new(), HashMap::new());
    for Stored { partition, offset, event } in &back.stored {
        let Some(((key, version), work)) = event else { continue };
        let (id, at) = ((key.as_str(), *version), (*partition, *offset));
        if *work == Work::Reject && !at_most_once {
            rejected.insert(id, at);
        }
        if *work == Work::Reject && !at_most_once || parks {
            may_be.insert(id, at);
        }
    }
    let mut there: HashMap<(&str, u64), u64> = HashMap::new();
    for Letter { id, from } in &back.dead_letters {
        let id = id.as_ref().map(|(key, version)| (key.as_str(), *version));
        match id.and_then(|id| Some((id, may_be.get(&id)?))) {
            Some((id, at)) if from.as_ref() == Some(at) => *there.entry(id).or_default() += 1,
            _ => {
                found.unexpected += 1;
                found.say(|| format!("a dead letter of {id:?}, from {from:?}, that nobody rejected there"));
            }
        }
    }
    found.dead_letters = there.len() as u64;
    for (id, at) in &rejected {
        if !there.contains_key(id) {
            found.lost += 1;
            found.say(|| format!("{id:?} at {at:?} was rejected, and is no dead letter"));
        }
    }
    for (id, at) in may_be.iter().filter(|(id, _)| parks && there.contains_key(*id)) {
        if !told.handled.contains(at) {
            found.lost += 1;
            found.say(|| {
                format!("{id:?} at {at:?} is a dead letter, and was not handled when its key was redriven")
            });
        }
    }
    for (id, count) in &there {
        found.repeated_letters += count - 1;
        let tried = told.buried.get(id).copied().unwrap_or(0);
        if *count > tried {
            found.duplicates += 1;
            found.say(|| format!("{id:?} is a dead letter {count} times, and was published {tried} times"));
        }
    }
    for id in &told.letters {
        if !there.contains_key(id) {
            found.lost += 1;
            found.say(|| format!("the dead letter of {id:?} was acknowledged, and is not there"));
        }
    }
}

fn committed(back: &ReadBack, found: &mut Back) {
    let mut last: HashMap<u32, u64> = HashMap::new();
    for Stored { partition, offset, .. } in &back.stored {
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
mod tests {
    use super::*;

    const PARKS: Mode = Mode { batches: false, parks: true, at_most_once: false };

    fn event(kind: Kind, topic: &str, version: u64) -> Event {
        let mut event = Event::new(kind);
        (event.topic, event.key, event.version) = (Some(topic.into()), Some("k".into()), Some(version));
        (event.partition, event.offset) = (Some(0), Some(version - 1));
        event
    }

    /// Version 1 of a key is rejected, 2 and 3 follow it; all are dead letters. Handled are the versions in `handled`.
    fn judged(handled: &[u64], mode: Mode) -> Back {
        let names = Names::default();
        let (mut events, mut back) = (Vec::new(), ReadBack::default());
        for version in 1..=3 {
            for topic in [&names.topic, &names.dead_letters] {
                events.extend([Kind::Call, Kind::Stored].map(|kind| event(kind, topic, version)));
            }
            let (id, work) =
                (("k".to_owned(), version), if version == 1 { Work::Reject } else { Work::Quick });
            back.stored.push(Stored { partition: 0, offset: version - 1, event: Some((id.clone(), work)) });
            back.dead_letters.push(Letter { id: Some(id), from: Some((0, version - 1)) });
        }
        for version in handled {
            let mut end = event(Kind::End, &names.topic, *version);
            end.outcome = Some(Outcome::Ack);
            events.push(end);
        }
        back.committed = vec![(0, 3)];
        judge(&events, &back, mode)
    }

    #[test]
    fn what_follows_a_dead_letter_is_one_too_where_keys_are_parked_and_only_there() {
        let back = judged(&[1, 2, 3], PARKS);
        assert_eq!((back.broken(), back.dead_letters), (0, 3), "{back:?}");
        assert_eq!(judged(&[1, 2, 3], Mode::default()).unexpected, 2);
    }

    #[test]
    fn at_most_once_there_is_no_dead_letter() {
        let back = judged(&[1, 2, 3], Mode { at_most_once: true, ..Mode::default() });
        assert_eq!(back.unexpected, 3, "{back:?}");
    }

    #[test]
    fn a_dead_letter_that_was_never_handled_is_lost_where_keys_are_parked() {
        let back = judged(&[1, 3], PARKS);
        assert_eq!((back.broken(), back.lost), (1, 1), "{back:?}");
    }
}
