//! Answers that come too late: what was looked up before an ownership ended says nothing about the next one (G1, G3).
//!
//! Without a broker: what it would say is said here, in the order that is wanted.

use ebus_core::{Epoch, Group, NextOffset, Position};

use super::*;
use crate::member::MemberEvent;
use crate::positions::TakeOver;

const MARK: LogMark = LogMark(7);

fn source() -> KafkaSource {
    // What asks the broker all the same is soon done.
    let config = KafkaConfig::new("127.0.0.1:1").with_request_timeout(Duration::from_millis(100));
    let control = Control::new(Arc::new(config.clone())).expect("control");
    let options = SourceOptions::new(Group::new("g").expect("legal"), Vec::new());
    KafkaSource::join(&config, control, options).expect("joins without a broker")
}

fn partition(number: u32) -> PartitionId {
    PartitionId::new(Topic::new("orders").expect("legal"), number)
}

fn places(numbers: &[u32]) -> Vec<Place> {
    numbers.iter().map(|number| place(&partition(*number))).collect()
}

fn found(look_up: u64, numbers: &[u32], at: u64) -> Found {
    let taken = numbers.iter().map(|number| TakeOver {
        partition: partition(*number),
        position: Position::at(NextOffset(at)),
        epoch: Epoch(1),
        mark: MARK,
        trouble: None,
        starts: Vec::new(),
    });
    Found::TakeOver { look_up, result: Ok(Positions { taken: taken.collect(), undecided: Vec::new() }) }
}

/// Which partitions are claimed or owned, and where each is read on.
fn owned(source: &KafkaSource) -> Vec<(u32, u64)> {
    let read_to = |part: &Part| source.ownership.ledger(part.owned).map_or(0, |ledger| ledger.read_to().0);
    source.parts.iter().map(|part| (part.id.partition, read_to(part))).collect()
}

/// Owns a partition, and reads it from an offset.
fn reads(source: &mut KafkaSource, number: u32, at: u64) -> Owned {
    source.member_said(MemberEvent::Assigned(places(&[number]), None));
    source.found(found(source.look_ups, &[number], at));
    let part = source.parts.iter().find(|part| part.id == partition(number)).expect("it is claimed");
    let owned = part.owned;
    source.claimed(owned);
    source.out.clear();
    owned
}

fn range(earliest: u64, end: u64) -> Result<(LogMark, PartitionInfo), Error> {
    Ok((MARK, PartitionInfo { earliest, end: NextOffset(end) }))
}

#[test]
fn places_and_partitions_are_the_same() {
    let id = partition(3);
    assert_eq!(partition_id(&place(&id)), Some(id));
    assert_eq!(partition_id(&("orders".into(), -1)), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_a_look_up_that_is_answered_after_a_revocation_claims_nothing_of_it() {
    let mut source = source();
    source.member_said(MemberEvent::Assigned(places(&[0, 1, 2]), None));
    source.member_said(MemberEvent::Revoking(places(&[0])));
    source.member_said(MemberEvent::Lost(places(&[1])));
    source.found(found(1, &[0, 1, 2], 5));
    assert_eq!(owned(&source), [(2, 5)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_look_up_from_before_somebody_elses_turn_is_not_where_to_go_on() {
    let mut source = source();
    source.member_said(MemberEvent::Assigned(places(&[0]), None));
    source.member_said(MemberEvent::Revoking(places(&[0])));
    source.member_said(MemberEvent::Assigned(places(&[0]), None));
    source.found(found(1, &[0], 5));
    assert_eq!(owned(&source), [], "what was looked up before the revocation");
    source.found(found(2, &[0], 9));
    assert_eq!(owned(&source), [(0, 9)]);
    source.found(found(2, &[0], 9));
    assert_eq!(owned(&source).len(), 1, "an answer counts once");
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_a_range_that_is_answered_while_the_partition_is_revoked_reads_nothing_on() {
    let mut source = source();
    let owned = reads(&mut source, 0, 5);
    source.look_up_range(0, Duration::from_secs(3_600));
    source.member_said(MemberEvent::Revoking(places(&[0])));
    source.out.clear();
    for answer in [range(100, 200), range(0, 3), Err(Error::new(ErrorKind::Unavailable, "gone"))] {
        source.found(Found::Range { owned, result: answer });
        assert!(source.queues.is_empty(), "it is fetched again");
        assert!(source.out.is_empty(), "{:?}", source.out);
        assert!(matches!(source.parts[0].phase, Phase::Revoking { .. }));
        assert!(!source.parts[0].resetting, "no other question is asked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_range_of_a_former_ownership_does_not_move_the_present_one() {
    let mut source = source();
    let before = reads(&mut source, 0, 5);
    source.look_up_range(0, Duration::from_secs(3_600));
    source.member_said(MemberEvent::Lost(places(&[0])));
    let now = reads(&mut source, 0, 9);
    assert_ne!(before, now);
    source.found(Found::Range { owned: before, result: range(100, 200) });
    assert_eq!(owned(&source), [(0, 9)]);
    assert!(source.out.is_empty(), "{:?}", source.out);
}

/// Found by a chaos run: lost by our own clock while the broker was away, the partitions were looked up in front of the commit
/// that was still on its way, and all that it said ran again.
#[tokio::test(flavor = "multi_thread")]
async fn g6_the_last_commit_of_a_former_ownership_is_answered_before_the_next_is_looked_up() {
    let mut source = source();
    let before = reads(&mut source, 0, 5);
    source.next_marks = None;
    source.in_flight = Some(InFlight { owned: vec![before], holding: false, sent: Instant::now() });
    // Of a session that is over.
    source.session.accepted(Instant::now() - Duration::from_secs(3_600));
    let look_ups = source.look_ups;
    source.serve();
    assert!(source.parts.is_empty(), "it is lost by our own clock");
    assert!(source.pending.iter().any(|pending| pending.places == places(&[0])), "it is taken over again");
    source.serve();
    assert_eq!(source.look_ups, look_ups, "looked up in front of the commit");
    assert!(source.next_time() > Instant::now(), "it turns in circles until then");
    source.member_said(MemberEvent::Committed(Ok(HashMap::from([(places(&[0]).remove(0), None)]))));
    source.serve();
    assert_eq!(source.look_ups, look_ups + 1);
    source.found(found(source.look_ups, &[0], 9));
    assert_eq!(owned(&source), [(0, 9)]);
}
