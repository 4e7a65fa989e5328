//! A run in which every promise held, and what the verdict says when its history or the broker shows otherwise.

use ebus_testkit::history::{History as Recorder, Outcome};

use super::*;
use crate::demo::plan::tests::plan;
use crate::demo::read_back::DeadLetter;

const TOPIC: &str = "orders";
const GROUP: &str = "billing";

struct Script {
    plan: Plan,
    events: Vec<Event>,
    back: ReadBack,
}

impl Script {
    /// One partition, one member, everything in order; about a fifth is rejected.
    fn honest() -> Self {
        let plan = plan(&["--events", "40", "--aggregates", "4", "--slow-keys", "0", "--reject-rate", "0.2"]);
        let mut events = vec![event(Kind::Assigned, None, 0)];
        let mut back = ReadBack::default();
        for (offset, place) in (0..).zip(plan.places()) {
            let mut call = event(Kind::Call, Some(place), offset);
            call.partition = None;
            call.offset = None;
            events.push(call);
            events.push(event(Kind::Stored, Some(place), offset));
            back.stored.push((0, offset, Some(place)));
            let mut start = event(Kind::Start, Some(place), offset);
            start.attempt = Some(1);
            let mut end = start.clone();
            end.kind = Kind::End;
            let rejected = plan.fault(place) == Some(Fault::Reject);
            end.outcome = Some(if rejected { Outcome::Reject } else { Outcome::Ack });
            events.extend([start, end]);
            if rejected {
                events.push(event(Kind::DeadLetter, Some(place), offset));
                let origin = Some((GROUP.to_owned(), TOPIC.to_owned(), 0, offset));
                back.dead_letters.push(DeadLetter { place: Some(place), origin });
            }
            let mut settle = event(Kind::Settle, Some(place), offset);
            settle.outcome = Some(Outcome::Finished);
            events.push(settle);
        }
        back.committed = vec![(0, plan.events())];
        let mut released = event(Kind::Released, None, 0);
        released.outcome = Some(Outcome::Accepted);
        events.push(released);
        Self { plan, events, back }
    }

    fn judge(&self) -> Verdict {
        let recorder = Recorder::new();
        for event in &self.events {
            recorder.record(event.clone());
        }
        let case = Case { plan: &self.plan, topic: TOPIC, group: GROUP, max_in_flight: 10 };
        judge(&recorder.events(), &self.back, &case)
    }

    /// The index of the first event of this kind that `of` takes.
    fn find(&self, kind: Kind, of: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().position(|event| event.kind == kind && of(event)).expect("the script has one")
    }
}

fn event(kind: Kind, place: Option<Place>, offset: u64) -> Event {
    let mut event = Event::new(kind);
    event.topic = Some(TOPIC.into());
    event.partition = Some(0);
    event.member =
        Some(if matches!(kind, Kind::Call | Kind::Stored) { "publisher-1" } else { "member-1" }.into());
    match kind {
        Kind::Call | Kind::Stored => event.call = Some(offset),
        _ => {
            event.group = Some(GROUP.into());
            event.epoch = Some(1);
        }
    }
    if let Some(place) = place {
        event.offset = Some(offset);
        event.key = Some(Plan::key(place.aggregate).into());
        event.version = Some(place.version);
    }
    event
}

fn acked(event: &Event) -> bool {
    event.outcome == Some(Outcome::Ack)
}

#[test]
fn an_honest_run_is_kept() {
    let script = Script::honest();
    let verdict = script.judge();
    assert!(verdict.kept(), "{} {:?}", verdict.oracle, verdict.findings);
    assert!(verdict.dead_letters > 0, "the script rejects some");
    assert_eq!(verdict.oracle.handled + verdict.dead_letters, 40);
    assert_eq!(verdict.published, 40);
}

#[test]
fn p1_an_event_that_never_ran_is_lost() {
    let mut script = Script::honest();
    let offset = script.events[script.find(Kind::End, acked)].offset;
    script.events.retain(|event| {
        event.offset != offset || !matches!(event.kind, Kind::Start | Kind::End | Kind::Settle)
    });
    let verdict = script.judge();
    assert_eq!((verdict.lost, verdict.kept()), (1, false));
}

#[test]
fn p1_an_acknowledged_event_that_the_topic_lacks_is_lost() {
    let mut script = Script::honest();
    script.back.stored.remove(3);
    let verdict = script.judge();
    assert_eq!((verdict.lost, verdict.kept()), (1, false));
}

#[test]
fn what_retention_gave_up_is_counted_apart() {
    let mut script = Script::honest();
    script.back.stored.drain(..10);
    script.back.earliest = vec![(0, 10)];
    let verdict = script.judge();
    assert_eq!((verdict.trimmed, verdict.lost, verdict.kept()), (10, 0, true));
    script.back.earliest = vec![(0, 9)];
    assert_eq!(script.judge().lost, 1);
}

#[test]
fn p1_a_dead_letter_that_is_not_there_is_lost() {
    let mut script = Script::honest();
    script.back.dead_letters.pop();
    let verdict = script.judge();
    assert_eq!((verdict.lost, verdict.kept()), (1, false));
}

#[test]
fn p2_a_later_version_before_an_earlier_one_is_reordered() {
    let mut script = Script::honest();
    let first = script.find(Kind::Start, |event| event.version == Some(1));
    let second = script.find(Kind::Start, |event| event.version == Some(2));
    let (one, two) = (script.events[first].offset, script.events[second].offset);
    // Run and end of the second, moved in front of those of the first.
    let of =
        |offset| move |event: &Event| event.offset == offset && matches!(event.kind, Kind::Start | Kind::End);
    let moved: Vec<Event> = script.events.iter().filter(|event| of(two)(event)).cloned().collect();
    assert!(one < two && moved.len() == 2);
    script.events.retain(|event| !of(two)(event));
    script.events.splice(first..first, moved);
    let verdict = script.judge();
    assert!(verdict.reordered > 0 && !verdict.kept());
}

#[test]
fn p3_two_open_runs_of_a_key_overlap() {
    let mut script = Script::honest();
    let end = script.find(Kind::End, |event| event.version == Some(1));
    let start = script.find(Kind::Start, |event| event.version == Some(2));
    let late = script.events.remove(end);
    script.events.insert(start, late);
    let verdict = script.judge();
    assert!(verdict.oracle.overlapping > 0 && !verdict.kept());
}

#[test]
fn p6_a_second_run_after_success_is_a_duplicate() {
    let mut script = Script::honest();
    let end = script.find(Kind::End, acked);
    let (mut start, mut again) = (script.events[end - 1].clone(), script.events[end].clone());
    start.attempt = Some(2);
    again.attempt = Some(2);
    script.events.splice(end + 1..end + 1, [start, again]);
    let verdict = script.judge();
    assert_eq!((verdict.duplicates, verdict.kept()), (1, false));
}

#[test]
fn p6_a_dead_letter_that_is_there_twice_is_a_duplicate() {
    let mut script = Script::honest();
    let twice = script.back.dead_letters[0].clone();
    script.back.dead_letters.push(twice);
    let verdict = script.judge();
    assert_eq!((verdict.duplicates, verdict.kept()), (1, false));
}

#[test]
fn p6_an_event_that_is_stored_twice_is_a_duplicate() {
    let mut script = Script::honest();
    let (_, _, place) = script.back.stored[5];
    script.back.stored.push((0, 40, place));
    script.back.committed = vec![(0, 41)];
    let verdict = script.judge();
    assert_eq!((verdict.duplicates, verdict.kept()), (1, false));
}

#[test]
fn p7_versions_stored_in_another_order_are_found_by_reading_back() {
    let mut script = Script::honest();
    let places = (script.back.stored[2].2, script.back.stored[3].2);
    (script.back.stored[3].2, script.back.stored[2].2) = places;
    assert!(!script.judge().kept());
    assert!(script.judge().reordered > 0);
}

#[test]
fn a_dead_letter_that_nobody_rejected_is_unexpected() {
    let mut script = Script::honest();
    let innocent = script.plan.places().find(|place| script.plan.fault(*place) != Some(Fault::Reject));
    let offset = innocent.map_or(0, |place| script.plan.index(place) as u64);
    let origin = Some((GROUP.to_owned(), TOPIC.to_owned(), 0, offset));
    script.back.dead_letters.push(DeadLetter { place: innocent, origin });
    let foreign = DeadLetter { place: None, origin: None };
    script.back.dead_letters.push(foreign);
    let verdict = script.judge();
    assert_eq!((verdict.unexpected, verdict.kept()), (2, false));
}

#[test]
fn a_message_that_nobody_published_is_unexpected() {
    let mut script = Script::honest();
    script.back.stored.push((0, 40, None));
    script.back.committed = vec![(0, 41)];
    let verdict = script.judge();
    assert_eq!((verdict.unexpected, verdict.kept()), (1, false));
}

#[test]
fn e01_a_partition_that_is_not_committed_to_its_end_is_found() {
    for committed in [vec![], vec![(0, 39)]] {
        let mut script = Script::honest();
        script.back.committed = committed;
        let verdict = script.judge();
        assert_eq!((verdict.uncommitted, verdict.kept()), (1, false));
    }
}

#[test]
fn g8_a_run_that_did_not_publish_everything_is_not_kept() {
    let mut script = Script::honest();
    let last = script.plan.events() - 1;
    script.events.retain(|event| event.offset != Some(last) && event.call != Some(last));
    script.back.stored.pop();
    script.back.dead_letters.retain(|letter| letter.origin.as_ref().is_some_and(|origin| origin.3 != last));
    let verdict = script.judge();
    assert_eq!((verdict.unpublished, verdict.kept()), (1, false));
}

#[test]
fn an_empty_history_is_not_kept() {
    let mut script = Script::honest();
    script.events.clear();
    script.back = ReadBack::default();
    assert!(!script.judge().kept());
}
