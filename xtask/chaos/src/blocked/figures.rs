//! What ran again after each end of an owner of the blocked key, and what stood above the watermark that did not.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use ebus_testkit::history::{Event, Kind, Outcome};
use serde::Serialize;

use super::KEY;
use crate::report::{Done, RunFile};
use crate::setting::{Names, PARTITIONS};
use crate::times::Times;
use crate::world::{COMMIT_WITHIN, Nature};

/// Beside the lease, after a kill.
const RUNS_AGAIN: Duration = Duration::from_secs(5);
/// Owners that end.
const ENDS: usize = 3;

#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    ends: Vec<End>,
    /// What was not as it must be.
    broken: Vec<String>,
}

/// The end of one owner. Messages are counted that it had started, and that somebody started again.
#[derive(Debug, Default, Serialize)]
struct End {
    what: String,
    member: String,
    clean: bool,
    at_ns: u64,
    /// Finished above the watermark of the blocked partition.
    above: u64,
    /// Unfinished at the end: their run was open, or they waited for their retry.
    unfinished: u64,
    /// Finished in the last commit interval and its round trip.
    recent: u64,
    /// Finished before.
    older: u64,
    /// How long before the end the oldest of these two was finished.
    oldest_ms: f64,
}

impl Figures {
    pub(crate) fn of(events: &[Event], run: &RunFile, nature: &Nature, times: &Times) -> Self {
        let mut ends: Vec<_> = run.done.iter().filter_map(|done| End::of(done, events)).collect();
        count(events, &mut ends);
        above(events, &mut ends);
        let mut figures = Self { ends, broken: Vec::new() };
        figures.judge(run, nature, times);
        figures
    }

    pub(crate) fn kept(&self) -> bool {
        self.broken.is_empty()
    }

    fn judge(&mut self, run: &RunFile, nature: &Nature, times: &Times) {
        if self.ends.len() != ENDS {
            self.broken.push(format!("{} owners of the blocked key ended, and not {ENDS}", self.ends.len()));
        }
        // Keys are spread unevenly; less than half of an even share is no watermark that stands still.
        let share = run.minutes * 60.0 * f64::from(run.events_per_second) / f64::from(PARTITIONS);
        for end in &self.ends {
            let what = &end.what;
            if end.above < (share / 2.0) as u64 {
                self.broken.push(format!("{what}: only {} messages above the watermark", end.above));
            }
            if end.clean && end.recent + end.older > 0 {
                self.broken.push(format!("{what}: {} finished ones ran again", end.recent + end.older));
            }
            if !end.clean && end.older > 0 {
                self.broken.push(format!("{what}: {} ran again that were finished long before", end.older));
            }
        }
        let after_kill = nature.lease + RUNS_AGAIN;
        for (kind, within) in [("kill", after_kill), ("leave", nature.left_within.unwrap_or(after_kill))] {
            let took = times.take_overs.get(kind).map(|take_over| &take_over.alone);
            match took.filter(|took| took.count > 0) {
                None => self.broken.push(format!("no take-over after a {kind} was seen by itself")),
                Some(took) if took.max_ms > within.as_secs_f64() * 1e3 => {
                    self.broken.push(format!("{:.0} ms after a {kind}, {within:?} allowed", took.max_ms));
                }
                Some(_) => {}
            }
        }
    }
}

impl End {
    fn of(done: &Done, events: &[Event]) -> Option<Self> {
        let clean = match done.kind.as_deref()? {
            "kill" => false,
            "leave" => true,
            _ => return None,
        };
        let member = done.member.clone()?;
        let killed = |event: &&Event| event.kind == Kind::Killed && event.member.as_deref() == Some(&member);
        // What it did between the decision and its death counts too.
        let at_ns = events.iter().find(killed).map_or(done.at_ns, |event| event.at_ns);
        Some(Self { what: done.text.clone(), member, clean, at_ns, ..Self::default() })
    }

    fn again(&mut self, finished: Option<u64>) {
        let Some(finished) = finished else {
            self.unfinished += 1;
            return;
        };
        let before = self.at_ns.saturating_sub(finished);
        *if u128::from(before) <= COMMIT_WITHIN.as_nanos() { &mut self.recent } else { &mut self.older } += 1;
        self.oldest_ms = self.oldest_ms.max(before as f64 / 1e6);
    }
}

/// Events of the group in its topic, with partition and offset.
fn of_group(events: &[Event]) -> impl Iterator<Item = (&Event, (u32, u64))> {
    let names = Names::default();
    let ours = move |event: &&Event| {
        event.topic.as_deref() == Some(&names.topic) && event.group.as_deref() == Some(&names.group)
    };
    events.iter().filter(ours).filter_map(|event| Some((event, event.partition.zip(event.offset)?)))
}

fn is_finish(event: &Event) -> bool {
    event.kind == Kind::DeadLetter || event.kind == Kind::End && event.outcome == Some(Outcome::Ack)
}

/// The last run of a message.
#[derive(Debug)]
struct Last<'a> {
    member: &'a str,
    epoch: u64,
    finished: Option<u64>,
}

fn count(events: &[Event], ends: &mut [End]) {
    let mut last: HashMap<(u32, u64), Last<'_>> = HashMap::new();
    for (event, place) in of_group(events) {
        if is_finish(event) {
            last.entry(place).and_modify(|run| run.finished = Some(event.at_ns));
        }
        let (Kind::Start, Some(member), Some(epoch)) = (event.kind, event.member.as_deref(), event.epoch)
        else {
            continue;
        };
        let before = last.insert(place, Last { member, epoch, finished: None });
        // A retry runs again under the same epoch.
        let Some(before) = before.filter(|before| before.epoch != epoch) else { continue };
        if let Some(end) = ends.iter_mut().find(|end| end.member == before.member) {
            end.again(before.finished);
        }
    }
}

fn above(events: &[Event], ends: &mut [End]) {
    let mut blocked = of_group(events).filter(|(event, _)| event.key.as_deref() == Some(KEY));
    let Some((_, (partition, watermark))) = blocked.next() else { return };
    let mut finished: HashMap<u64, u64> = HashMap::new();
    for (event, (of, offset)) in of_group(events) {
        if of == partition && offset > watermark && is_finish(event) {
            finished.entry(offset).or_insert(event.at_ns);
        }
    }
    for end in ends {
        end.above = finished.values().filter(|at| **at < end.at_ns).count() as u64;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for End { what, above, unfinished, recent, older, oldest_ms, .. } in &self.ends {
            writeln!(
                f,
                "blocked           {what}: {above} finished above the watermark; again {}: {unfinished} unfinished, {recent} finished in \
                 the last {} ms (the oldest {oldest_ms:.0} ms before), {older} more",
                unfinished + recent + older,
                COMMIT_WITHIN.as_millis()
            )?;
        }
        self.broken.iter().try_for_each(|broken| writeln!(f, "blocked           NOT KEPT: {broken}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, offset: u64, member: &str, epoch: u64, at_ms: u64) -> Event {
        let names = Names::default();
        let mut event = Event::new(kind);
        event.group = Some(names.group.into());
        event.topic = Some(names.topic.into());
        event.partition = Some(0);
        event.offset = Some(offset);
        event.key = Some(if offset == 0 { KEY } else { "other" }.into());
        event.member = Some(member.into());
        event.epoch = Some(epoch);
        event.outcome = (kind == Kind::End).then_some(Outcome::Ack);
        event.at_ns = at_ms * 1_000_000;
        event
    }

    fn end(member: &str, at_ms: u64) -> End {
        End { member: member.into(), at_ns: at_ms * 1_000_000, ..End::default() }
    }

    #[test]
    fn what_runs_again_is_counted_with_the_end_of_who_ran_it_last() {
        use Kind::{End as Ended, Start};
        let first = [
            (Start, 0, 1),
            (Start, 1, 2),
            (Ended, 1, 3),
            (Start, 2, 4),
            (Ended, 2, 5_000),
            (Start, 3, 5_000),
        ];
        let first = first.map(|(kind, offset, at)| event(kind, offset, "a", 1, at));
        // 0 and 3 were open, 2 had just finished, 1 had long before; 4 is new.
        let second = [(0, 8_000), (1, 8_001), (2, 8_002), (3, 8_003), (4, 8_004)];
        let second = second.map(|(offset, at)| event(Start, offset, "b", 2, at));
        // All of these were open, and end with the second.
        let third = (0..5).map(|offset| event(Start, offset, "c", 3, 12_000));
        let events: Vec<_> = first.into_iter().chain(second).chain(third).collect();
        let mut ends = [end("a", 5_100), end("b", 9_000)];
        count(&events, &mut ends);
        above(&events, &mut ends);
        assert_eq!((ends[0].unfinished, ends[0].recent, ends[0].older, ends[0].above), (2, 1, 1, 2));
        assert!((ends[0].oldest_ms - 5_097.0).abs() < 1.0, "{}", ends[0].oldest_ms);
        assert_eq!((ends[1].unfinished, ends[1].recent, ends[1].older, ends[1].above), (5, 0, 0, 2));
    }
}
