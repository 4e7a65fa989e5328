//! What the broker has, held against what publishers and members were told. The oracle judges the rest.

use std::collections::{HashMap, HashSet};

use ebus_testkit::history::{Event, Kind};
use serde::{Deserialize, Serialize};

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
                _ => {}
            }
        }
        told
    }
}

/// Holds what was read back against the history.
pub(crate) fn judge(events: &[Event], back: &ReadBack) -> Back {
    let told = Told::by(events, &Names::default());
    let mut found = Back { stored: back.stored.len() as u64, ..Back::default() };
    topic(&told, back, &mut found);
    dead_letters(&told, back, &mut found);
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

fn dead_letters(told: &Told<'_>, back: &ReadBack, found: &mut Back) {
    let mut rejected = HashMap::new();
    for Stored { partition, offset, event } in &back.stored {
        if let Some(((key, version), Work::Reject)) = event {
            rejected.insert((key.as_str(), *version), (*partition, *offset));
        }
    }
    let mut there: HashMap<(&str, u64), u64> = HashMap::new();
    for Letter { id, from } in &back.dead_letters {
        let id = id.as_ref().map(|(key, version)| (key.as_str(), *version));
        match id.and_then(|id| Some((id, rejected.get(&id)?))) {
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
