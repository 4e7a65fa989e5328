//! How long take-overs and hand-overs took, and the longest time in which a partition stood still; from the history alone.

mod lives;

use std::collections::BTreeMap;

use ebus_testkit::history::{Event, Kind};
use serde::{Deserialize, Serialize};

use crate::report::Done;
use lives::Lives;

/// After a join or a leave, so long the partitions that stay are looked at.
const HAND_OVER_NS: u64 = 8_000_000_000;
/// A hand-over that is disturbed sooner than this says nothing.
const SHORTEST_NS: u64 = 2_000_000_000;
/// What happened so much before may still disturb.
const BEFORE_NS: u64 = 2_000_000_000;

/// Times in milliseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) count: usize,
    pub(crate) p50_ms: f64,
    pub(crate) max_ms: f64,
}

impl Spread {
    fn of(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        let ms = |ns: Option<&u64>| ns.map_or(0.0, |ns| *ns as f64 / 1e6);
        Self { count: times.len(), p50_ms: ms(times.get(times.len() / 2)), max_ms: ms(times.last()) }
    }
}

/// From the end of a member to the first run of the next owner, for each of its partitions.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct TakeOver {
    pub(crate) all: Spread,
    /// Those during which nothing else happened.
    pub(crate) alone: Spread,
}

/// The longest time without a start in a partition, while there was something to do.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Stall {
    pub(crate) ms: f64,
    pub(crate) partition: u32,
    /// From the start of the run.
    pub(crate) at_s: f64,
    /// What was done then and shortly before.
    pub(crate) beside: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Times {
    /// By what happened to the member.
    pub(crate) take_overs: BTreeMap<String, TakeOver>,
    /// The longest gap between starts in each partition that stayed with its owner while a member joined or left, and nothing
    /// else happened.
    pub(crate) staying: Spread,
    pub(crate) stall: Stall,
}

impl Times {
    pub(crate) fn of(events: &[Event], done: &[Done], topic: &str) -> Self {
        let lives = Lives::of(events, topic);
        Self {
            take_overs: take_overs(&lives, done),
            staying: staying(&lives, done),
            stall: stall(&lives, events, done, topic),
        }
    }
}

/// Whether anything but `one` was done between these times.
fn disturbed(done: &[Done], one: usize, from: u64, to: u64) -> bool {
    let others = done.iter().enumerate().filter(|(index, other)| *index != one && other.kind.is_some());
    others.map(|(_, other)| other.at_ns).any(|at| at > from.saturating_sub(BEFORE_NS) && at < to)
}

fn take_overs(lives: &Lives<'_>, done: &[Done]) -> BTreeMap<String, TakeOver> {
    let mut times: BTreeMap<&str, (Vec<u64>, Vec<u64>)> = BTreeMap::new();
    for (index, act) in done.iter().enumerate() {
        let (Some(kind), Some(member)) = (act.kind.as_deref(), act.member.as_deref()) else { continue };
        if kind == "join" {
            continue;
        }
        // A member that comes back in time keeps its partitions.
        let until = match kind {
            "kill" | "leave" | "crash" => u64::MAX,
            _ => lives.back(member, act.at_ns),
        };
        for owned in lives.owned_at(member, act.at_ns) {
            let Some(next) = lives.next_owner(owned).filter(|next| next.assigned <= until) else { continue };
            let Some(first) = lives.first_start(owned.partition, next.epoch, act.at_ns) else { continue };
            let (all, alone) = times.entry(kind).or_default();
            all.push(first - act.at_ns);
            if !disturbed(done, index, act.at_ns, first) {
                alone.push(first - act.at_ns);
            }
        }
    }
    let spreads = times.into_iter().map(|(kind, (all, alone))| {
        (kind.to_owned(), TakeOver { all: Spread::of(all), alone: Spread::of(alone) })
    });
    spreads.collect()
}

fn staying(lives: &Lives<'_>, done: &[Done]) -> Spread {
    let mut gaps = Vec::new();
    for (index, act) in done.iter().enumerate() {
        if !matches!(act.kind.as_deref(), Some("join" | "leave")) {
            continue;
        }
        let next = done.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, other)| other.at_ns);
        let next = next.filter(|at| *at >= act.at_ns).min().unwrap_or(u64::MAX);
        let to = next.min(act.at_ns + HAND_OVER_NS);
        if to - act.at_ns < SHORTEST_NS || disturbed(done, index, act.at_ns, act.at_ns) {
            continue;
        }
        for owned in lives.owned_through(act.at_ns, to) {
            gaps.extend(lives.longest_gap(owned.partition, act.at_ns, to).map(|(gap, _)| gap));
        }
    }
    Spread::of(gaps)
}

fn stall(lives: &Lives<'_>, events: &[Event], done: &[Done], topic: &str) -> Stall {
    let calls =
        events.iter().filter(|event| event.kind == Kind::Call && event.topic.as_deref() == Some(topic));
    let last_call = calls.map(|event| event.at_ns).next_back().unwrap_or(0);
    let begin = done.first().map_or(0, |first| first.at_ns);
    let longest = lives
        .partitions()
        .filter_map(|partition| {
            let from = lives.first_start(partition, 0, 0)?;
            lives.longest_gap(partition, from, last_call).map(|(gap, at)| (gap, at, partition))
        })
        .max();
    let Some((gap, at, partition)) = longest else { return Stall::default() };
    let near = |act: &&Done| act.at_ns + 5_000_000_000 > at && act.at_ns < at + gap;
    Stall {
        ms: gap as f64 / 1e6,
        partition,
        at_s: at.saturating_sub(begin) as f64 / 1e9,
        beside: done.iter().filter(near).map(|act| act.text.clone()).collect(),
    }
}
