//! A valid history with one thing changed is found, whatever it is that was changed.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::{Rules, Script, judge};
use crate::history::{Event, Kind, Outcome};

/// What a valid run of a few keys does: each step begins or ends a run of one key.
#[derive(Debug, Clone)]
struct Plan {
    /// The key of each message.
    keys: Vec<u8>,
    /// Which key goes on, and whether its run succeeds if it ends.
    steps: Vec<(Index, bool)>,
}

fn plan() -> impl Strategy<Value = Plan> {
    (
        prop::collection::vec(0..4u8, 4..24),
        prop::collection::vec((any::<Index>(), prop::bool::weighted(0.8)), 0..80),
    )
        .prop_map(|(keys, steps)| Plan { keys, steps })
}

/// A history that keeps all promises: key lanes that run beside each other, retries, one hand-over in the middle.
fn valid(plan: &Plan) -> Vec<Event> {
    let mut lanes: HashMap<String, Vec<u64>> = HashMap::new();
    let mut script = Script::new();
    for (offset, key) in plan.keys.iter().enumerate() {
        let key = format!("k{key}");
        script = script.stored(&key, offset as u64);
        lanes.entry(key).or_default().push(offset as u64);
    }
    let mut lanes: Vec<(String, Vec<u64>, bool)> =
        lanes.into_iter().map(|(key, offsets)| (key, offsets, false)).collect();
    lanes.sort();
    script = script.assigned("m", 1);
    let mut owner = ("m", 1);
    let half = plan.steps.len() / 2;
    // After the planned steps, everything succeeds until nothing is left.
    let rest = std::iter::repeat_with(|| (None, true));
    for (number, (which, succeeds)) in
        plan.steps.iter().map(|(which, succeeds)| (Some(which), *succeeds)).chain(rest).enumerate()
    {
        if number == half {
            for (key, offsets, open) in lanes.iter_mut().filter(|lane| lane.2) {
                script = script.end(owner.0, owner.1, key, offsets[0], Outcome::Cancelled);
                *open = false;
            }
            script = script.released("m", 1, Outcome::Accepted).assigned("n", 2);
            owner = ("n", 2);
        }
        if lanes.is_empty() {
            if number < half {
                continue;
            }
            break;
        }
        let at = which.map_or(0, |which| which.index(lanes.len()));
        let (key, offsets, open) = &mut lanes[at];
        if !*open {
            script = script.start(owner.0, owner.1, key, offsets[0]);
        } else {
            let outcome = if succeeds { Outcome::Ack } else { Outcome::Retry };
            script = script.end(owner.0, owner.1, key, offsets[0], outcome);
            if succeeds {
                script = script.settled(owner.0, owner.1, offsets[0]);
                offsets.remove(0);
            }
        }
        *open = !*open;
        lanes.retain(|(_, offsets, _)| !offsets.is_empty());
    }
    script.events
}

/// Ways to falsify a history, each of them a fault that a bus could have.
#[derive(Debug, Clone, Copy)]
enum Change {
    /// A run's end never happened.
    DropEnd,
    /// A run's start never happened.
    DropStart,
    /// Two starts of one key change places.
    SwapStarts,
    /// A run that had failed is said to have ended well, so what follows repeats it.
    RetryIsAck,
    /// A run that ended well is said to have failed, though it was settled.
    AckIsRetry,
    /// A finished message runs once more.
    RunAgain,
    /// A run begins earlier, before the one in front of it has ended.
    StartEarly,
    /// One is settled before its run has ended.
    SettleEarly,
    /// A stored message disappears from its consumers.
    NeverRun,
}

fn renumber(events: &mut [Event]) {
    for (at, event) in events.iter_mut().enumerate() {
        event.at_ns = at as u64 * 1_000_000;
    }
}

/// False when the history has no place for it.
fn apply(change: Change, which: Index, events: &mut Vec<Event>) -> bool {
    let pick = |events: &[Event], fits: &dyn Fn(usize, &Event) -> bool| -> Option<usize> {
        let all: Vec<usize> =
            events.iter().enumerate().filter(|(at, e)| fits(*at, e)).map(|(at, _)| at).collect();
        (!all.is_empty()).then(|| all[which.index(all.len())])
    };
    let done = (|| match change {
        Change::DropEnd => {
            let at = pick(events, &|_, e| e.kind == Kind::End)?;
            events.remove(at);
            Some(())
        }
        Change::DropStart => {
            let at = pick(events, &|_, e| e.kind == Kind::Start)?;
            events.remove(at);
            Some(())
        }
        Change::SwapStarts => {
            let later = |at: usize, e: &Event, events: &[Event]| {
                events[at + 1..]
                    .iter()
                    .position(|o| o.kind == Kind::Start && o.key == e.key && o.offset != e.offset)
            };
            let at = pick(events, &|at, e| e.kind == Kind::Start && later(at, e, events).is_some())?;
            let other = at + 1 + later(at, &events[at], events)?;
            events.swap(at, other);
            Some(())
        }
        Change::RetryIsAck => {
            let at = pick(events, &|_, e| e.outcome == Some(Outcome::Retry))?;
            events[at].outcome = Some(Outcome::Ack);
            Some(())
        }
        Change::AckIsRetry => {
            let at = pick(events, &|_, e| e.outcome == Some(Outcome::Ack))?;
            events[at].outcome = Some(Outcome::Retry);
            Some(())
        }
        Change::RunAgain => {
            let at = pick(events, &|_, e| e.outcome == Some(Outcome::Ack))?;
            let mut end = events[at].clone();
            end.attempt = end.attempt.map(|attempt| attempt + 1);
            let mut start = end.clone();
            start.kind = Kind::Start;
            start.outcome = None;
            events.splice(at + 1..=at, [start, end]);
            Some(())
        }
        Change::StartEarly => {
            let before = |at: usize, e: &Event, events: &[Event]| {
                events[..at]
                    .iter()
                    .rposition(|o| o.kind == Kind::End && o.key == e.key && o.outcome == Some(Outcome::Ack))
            };
            let at = pick(events, &|at, e| e.kind == Kind::Start && before(at, e, events).is_some())?;
            let to = before(at, &events[at], events)?;
            let start = events.remove(at);
            events.insert(to, start);
            Some(())
        }
        Change::SettleEarly => {
            let at = pick(events, &|_, e| e.kind == Kind::Settle)?;
            let settle = events.remove(at);
            let end =
                events.iter().rposition(|e| e.outcome == Some(Outcome::Ack) && e.offset == settle.offset)?;
            events.insert(end, settle);
            Some(())
        }
        Change::NeverRun => {
            let at = pick(events, &|_, e| e.kind == Kind::Stored)?;
            let offset = events[at].offset;
            events.retain(|e| e.offset != offset || matches!(e.kind, Kind::Stored | Kind::Call));
            Some(())
        }
    })();
    renumber(events);
    done.is_some()
}

fn change() -> impl Strategy<Value = Change> {
    prop::sample::select(vec![
        Change::DropEnd,
        Change::DropStart,
        Change::SwapStarts,
        Change::RetryIsAck,
        Change::AckIsRetry,
        Change::RunAgain,
        Change::StartEarly,
        Change::SettleEarly,
        Change::NeverRun,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_valid_history_passes_and_every_change_of_it_is_found(
        plan in plan(),
        change in change(),
        which in any::<Index>(),
    ) {
        let mut events = valid(&plan);
        let verdict = judge(&events, &Rules::new());
        prop_assert!(verdict.kept(), "valid: {verdict}");
        prop_assume!(apply(change, which, &mut events));
        let verdict = judge(&events, &Rules::new());
        prop_assert!(!verdict.kept(), "{change:?} was not found");
    }
}
