use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{Epoch, LogMark};

fn ledger(watermark: u64) -> Ledger {
    Ledger::new(&Position::at(NextOffset(watermark)), LedgerLimits::default())
}

#[test]
fn the_watermark_moves_over_the_finished_prefix_only() {
    let mut ledger = ledger(0);
    for offset in 0..4 {
        assert_eq!(ledger.track(offset), Ok(Tracked::Deliver));
    }
    assert!(ledger.finish(2));
    assert!(ledger.finish(1));
    assert_eq!(ledger.watermark(), NextOffset(0));
    assert_eq!(ledger.position().finished.runs(), [(1, 3)]);
    assert!(ledger.finish(0));
    assert_eq!(ledger.watermark(), NextOffset(3));
    assert!(ledger.position().finished.is_empty());
    assert!(ledger.finish(3));
    assert_eq!(ledger.watermark(), NextOffset(4));
}

#[test]
fn gaps_of_any_size_do_not_stop_it() {
    let mut ledger = ledger(5);
    for offset in [1_000_000, 1_000_002, 9_000_000_000] {
        assert_eq!(ledger.track(offset), Ok(Tracked::Deliver));
    }
    assert!(!ledger.finish(1_000_001), "never arrived");
    assert!(ledger.finish(1_000_000));
    assert_eq!(ledger.watermark(), NextOffset(1_000_002));
    assert!(ledger.finish(9_000_000_000));
    assert!(ledger.finish(1_000_002));
    assert_eq!(ledger.watermark(), NextOffset(9_000_000_001));
}

#[test]
fn an_offset_is_tracked_once_and_finished_once() {
    let mut ledger = ledger(3);
    assert_eq!(ledger.track(2), Err(Refused { offset: 2 }));
    assert_eq!(ledger.track(3), Ok(Tracked::Deliver));
    assert_eq!(ledger.track(3), Err(Refused { offset: 3 }));
    assert!(ledger.finish(3));
    assert!(!ledger.finish(3));
    assert_eq!(ledger.track(3), Err(Refused { offset: 3 }));
}

#[test]
fn what_former_owners_finished_is_skipped_and_stays_in_every_position() {
    let mut finished = OffsetSet::new();
    finished.push(12, 14);
    finished.push(20, 21);
    let mut ledger = Ledger::new(&Position { watermark: NextOffset(10), finished }, LedgerLimits::default());
    assert_eq!(ledger.track(10), Ok(Tracked::Deliver));
    assert_eq!(ledger.position().finished.runs(), [(12, 14), (20, 21)]);
    assert_eq!(ledger.track(11), Ok(Tracked::Deliver));
    assert_eq!(ledger.track(12), Ok(Tracked::FinishedBefore));
    assert_eq!(ledger.position().finished.runs(), [(12, 14), (20, 21)]);
    assert!(ledger.finish(11));
    assert_eq!(ledger.position().finished.runs(), [(11, 14), (20, 21)]);
    assert!(ledger.finish(10));
    assert_eq!(ledger.watermark(), NextOffset(13), "13 was not read yet");
    assert_eq!(ledger.track(13), Ok(Tracked::FinishedBefore));
    assert_eq!(ledger.watermark(), NextOffset(14));
}

#[test]
fn the_span_is_bounded() {
    let mut ledger = Ledger::new(&Position::default(), LedgerLimits::default().with_max_span(3));
    for offset in 0..3 {
        assert!(ledger.has_room(offset));
        assert_eq!(ledger.track(offset), Ok(Tracked::Deliver));
    }
    assert!(!ledger.has_room(3));
    ledger.finish(1);
    assert!(!ledger.has_room(3));
    ledger.finish(0);
    assert!(ledger.has_room(3));
}

#[test]
fn the_default_span_fits_the_default_position_however_it_finishes() {
    let limits = LedgerLimits::default();
    let mut ledger = Ledger::new(&Position::at(NextOffset(1 << 40)), limits);
    for offset in 1 << 40..(1 << 40) + 16_384 {
        assert!(ledger.has_room(offset));
        ledger.track(offset).expect("ascending");
    }
    for offset in ((1u64 << 40) + 1..(1 << 40) + 16_384).step_by(2) {
        ledger.finish(offset);
    }
    let text = ledger.position().encode(LogMark(u128::MAX), Epoch(u64::MAX));
    assert!(text.len() <= LEAST_POSITION_LEN, "{}", text.len());
}

/// Reads as far as there is room, `gap` from offset to offset, and finishes every second message behind a head that is stuck.
fn read_behind_a_stuck_head(base: u64, gap: u64, limits: LedgerLimits) -> (Ledger, Vec<u64>) {
    let mut ledger = Ledger::new(&Position::at(NextOffset(base)), limits);
    let mut offsets = Vec::new();
    let mut at = base;
    while ledger.has_room(at) {
        assert!(offsets.len() <= limits.max_span, "it is never full");
        ledger.track(at).expect("ascending");
        offsets.push(at);
        at += gap;
    }
    for offset in offsets.iter().skip(2).step_by(2) {
        assert!(ledger.finish(*offset));
    }
    (ledger, offsets)
}

/// What former owners finished was charged by its absolute offset: a hand-over behind one slow key stopped its partition.
#[test]
fn p4_a_new_owner_has_room_for_all_that_the_former_one_had_read() {
    for (base, gap) in
        [(0u64, 16u64), (1 << 20, 16), (1 << 30, 16), (1 << 40, 16), (1 << 40, 3), (7, 100_000)]
    {
        let limits = LedgerLimits::default();
        let (former, offsets) = read_behind_a_stuck_head(base, gap, limits);
        let text = former.position().encode(LogMark(u128::MAX), Epoch(u64::MAX));
        assert!(text.len() <= LEAST_POSITION_LEN, "{}", text.len());
        let (position, _) = Position::decode(text.as_bytes(), LogMark(u128::MAX), None).expect("ours");
        let mut next = Ledger::new(&position, limits);
        for (read, offset) in offsets.iter().enumerate() {
            assert!(next.has_room(*offset), "base {base}, gap {gap}: re-read {read} of {}", offsets.len());
            next.track(*offset).expect("ascending");
        }
    }
}

#[test]
fn p5_the_whole_span_fits_64_kib_of_text_with_gaps_too() {
    for gap in [1, 2, 16, 127, 128, 4_096, 16_383] {
        let limits = LedgerLimits::default().or_max_position_len(64 << 10);
        let (ledger, offsets) = read_behind_a_stuck_head(1 << 40, gap, limits);
        assert_eq!(offsets.len(), limits.max_span, "gap {gap}");
        assert_eq!(ledger.full(u64::MAX - 1), Some(Full::Span));
        let text = ledger.position().encode(LogMark(u128::MAX), Epoch(u64::MAX));
        assert!(text.len() <= 64 << 10, "{}", text.len());
    }
}

#[test]
fn p8_it_says_whether_the_text_or_the_span_stops_the_intake() {
    let (ledger, offsets) = read_behind_a_stuck_head(0, 100, LedgerLimits::default());
    assert!((1_650..1_750).contains(&offsets.len()), "what the documentation says: {}", offsets.len());
    assert_eq!(ledger.full(ledger.read_to().0 + 99), Some(Full::Text));
    let (ledger, offsets) = read_behind_a_stuck_head(0, 16_000, LedgerLimits::default());
    assert!((1_000..1_050).contains(&offsets.len()), "what the documentation says: {}", offsets.len());
    assert_eq!(ledger.full(ledger.read_to().0 + 15_999), Some(Full::Text));
}

#[test]
fn what_the_user_says_of_the_text_goes_before_what_the_backend_says() {
    let limits = LedgerLimits::default().or_max_position_len(5_000);
    assert_eq!(limits.max_position_len, Some(5_000));
    let limits = LedgerLimits::default().with_max_position_len(300).or_max_position_len(5_000);
    assert_eq!(limits.max_position_len, Some(300));
}

#[test]
fn p9_the_last_offset_that_there_could_be_is_refused() {
    let mut ledger = ledger(u64::MAX - 1);
    assert_eq!(ledger.track(u64::MAX), Err(Refused { offset: u64::MAX }));
    assert_eq!(ledger.track(u64::MAX - 1), Ok(Tracked::Deliver));
}

#[test]
fn a_span_of_no_message_is_one_of_one() {
    assert_eq!(LedgerLimits::default().with_max_span(0).max_span, 1);
}

/// Bytes of the runs of a position, as they are encoded.
fn run_bytes(position: &Position) -> usize {
    let (mut bytes, mut at) = (0, position.watermark.0);
    for (start, end) in position.finished.runs() {
        bytes += varint_len(start - at) + varint_len(end - start);
        at = *end;
    }
    bytes
}

/// Gaps where every second finished makes the longest text (two distances of one byte become one number of two), and any.
fn gaps() -> impl Strategy<Value = (bool, Vec<u64>)> {
    let any = prop_oneof![Just(0u64), 1u64..200, 10_000u64..30_000];
    prop_oneof![
        prop::collection::vec(70u64..120, 2..9).prop_map(|gaps| (true, gaps)),
        prop::collection::vec(any, 2..9).prop_map(|gaps| (false, gaps)),
    ]
}

proptest! {
    /// The bound that intake goes by, beside every outcome that there can be: never below the longest, and hardly above it.
    #[test]
    fn p5_the_bound_of_the_text_is_that_of_the_worst_outcome(
        done in 0usize..4,
        (worst_gaps, gaps) in gaps(),
        before in prop::collection::vec((1u64..300, 1u64..300), 0..4),
    ) {
        let mut finished = OffsetSet::new();
        let mut at = 1_000_000;
        for (gap, len) in before {
            finished.push(at + gap, at + gap + len);
            at += gap + len;
        }
        let mut ledger = Ledger::new(&Position { watermark: NextOffset(0), finished }, LedgerLimits::default());
        for offset in 0..done as u64 {
            // It leaves, and what it took in the bound with it.
            prop_assert_eq!(ledger.track(offset), Ok(Tracked::Deliver));
            prop_assert!(ledger.finish(offset));
        }
        let (mut offsets, mut next, mut bound) = (Vec::new(), done as u64, 0);
        for gap in std::iter::once(0).chain(gaps) {
            next += gap;
            bound = ledger.most_run_bytes(next);
            prop_assert_eq!(ledger.track(next), Ok(Tracked::Deliver));
            offsets.push(next);
            next += 1;
        }
        let worst = (0u32..1 << offsets.len()).map(|outcome| {
            let mut ledger = ledger.clone();
            for (_, offset) in offsets.iter().enumerate().filter(|(index, _)| outcome & (1 << index) != 0) {
                ledger.finish(*offset);
            }
            run_bytes(&ledger.position())
        });
        let worst = worst.max().unwrap_or_default();
        prop_assert!(worst <= bound, "{worst} bytes, the bound is {bound}");
        prop_assert!(!worst_gaps || bound <= worst + 4, "the bound is {bound} for {worst} bytes");
    }
}

/// What was not read before leaves room for what a former owner had read, and nothing else does.
#[test]
fn p4_only_what_is_new_leaves_room_for_a_re_read() {
    let mut finished = OffsetSet::new();
    for run in 1..40u64 {
        finished.push(run * 1_000, run * 1_000 + 500);
    }
    let position = Position { watermark: NextOffset(0), finished };
    let least_len = |offset| {
        let room = |len: &usize| {
            let mut ledger = Ledger::new(&position, LedgerLimits::default().with_max_position_len(*len));
            ledger.track(0).expect("the first");
            ledger.has_room(offset)
        };
        (0..1_000).find(room).expect("some length is enough")
    };
    // Twelve bytes are sixteen characters.
    assert_eq!(least_len(39_500) - least_len(39_499), 16);
}

/// The same by brute force: everything that arrived, and what of it is finished.
#[derive(Default)]
struct Naive {
    arrived: BTreeMap<u64, bool>,
    before: BTreeSet<u64>,
}

impl Naive {
    fn watermark(&self, read_to: u64) -> u64 {
        self.arrived.iter().find(|(_, finished)| !**finished).map_or(read_to, |(offset, _)| *offset)
    }

    fn finished_above(&self, watermark: u64) -> BTreeSet<u64> {
        let arrived = self.arrived.iter().filter(|(_, finished)| **finished).map(|(offset, _)| *offset);
        arrived.chain(self.before.iter().copied()).filter(|offset| *offset >= watermark).collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Read { gap: u64 },
    Finish { pick: usize },
    HandOver,
}

/// Dense logs with a jump now and then, and logs of which every read has a gap.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let dense = prop_oneof![4 => Just(0u64), 1 => 1u64..4, 1 => 1000u64..2_000_000];
    prop_oneof![steps_with(dense), steps_with(1u64..40), steps_with(100u64..1 << 40)]
}

fn steps_with(gap: impl Strategy<Value = u64> + 'static) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => gap.prop_map(|gap| Step::Read { gap }),
        3 => any::<prop::sample::Index>().prop_map(|i| Step::Finish { pick: i.index(64) }),
        1 => Just(Step::HandOver),
    ];
    prop::collection::vec(step, 0..300)
}

proptest! {
    /// Whatever arrives and finishes in whatever order, over any number of owners: the watermark never passes an
    /// unfinished message and never moves back, nothing finished is delivered again, the text never outgrows its limit, and
    /// there is room for all that a former owner had read.
    #[test]
    fn agrees_with_the_naive_model(
        steps in steps(), max_len in 110usize..300, base in prop_oneof![Just(0u64), Just(1 << 40)],
    ) {
        let limits = LedgerLimits::default().with_max_position_len(max_len).with_max_span(64);
        let mut log: Vec<u64> = Vec::new();
        let mut next = base;
        let mut ledger = Ledger::new(&Position::at(NextOffset(base)), limits);
        let mut naive = Naive::default();
        let mut cursor = 0usize;
        let mut read_before = 0usize;
        let mut open: Vec<u64> = Vec::new();
        let mut done: BTreeSet<u64> = BTreeSet::new();
        let mut floor = 0u64;
        for step in steps {
            match step {
                Step::Read { gap } => {
                    if cursor == log.len() {
                        log.push(next + gap);
                        next += gap + 1;
                    }
                    let offset = log[cursor];
                    if !ledger.has_room(offset) {
                        prop_assert!(
                            cursor >= read_before,
                            "a former owner had read {offset}, this one has no room for it"
                        );
                        continue;
                    }
                    cursor += 1;
                    read_before = read_before.max(cursor);
                    match ledger.track(offset).expect("ascending") {
                        Tracked::Deliver => {
                            prop_assert!(!done.contains(&offset), "{offset} was finished and comes again");
                            open.push(offset);
                            naive.arrived.insert(offset, false);
                        }
                        Tracked::FinishedBefore => {
                            prop_assert!(done.contains(&offset), "{offset} is skipped and was never finished");
                            naive.arrived.insert(offset, true);
                            naive.before.remove(&offset);
                        }
                    }
                }
                Step::Finish { pick } => {
                    if open.is_empty() {
                        continue;
                    }
                    let offset = open.swap_remove(pick % open.len());
                    prop_assert!(ledger.finish(offset));
                    naive.arrived.insert(offset, true);
                    done.insert(offset);
                }
                Step::HandOver => {
                    let text = ledger.position().encode(LogMark(1), Epoch(1));
                    let (position, _) = Position::decode(text.as_bytes(), LogMark(1), None).expect("ours");
                    naive = Naive::default();
                    naive.before = done.iter().copied().filter(|o| *o >= position.watermark.0).collect();
                    cursor = log.partition_point(|offset| *offset < position.watermark.0);
                    open.clear();
                    ledger = Ledger::new(&position, limits);
                    // The worst case: nothing else finishes meanwhile. What does is among the steps.
                    let mut reader = ledger.clone();
                    for offset in &log[cursor..read_before] {
                        prop_assert!(
                            reader.has_room(*offset),
                            "a former owner had read {offset}, this one has no room for it"
                        );
                        reader.track(*offset).expect("ascending");
                    }
                }
            }
            prop_assert_eq!(ledger.unfinished(), open.len());
            let watermark = naive.watermark(ledger.read_to().0);
            prop_assert_eq!(ledger.span(), naive.arrived.range(watermark..).count());
            prop_assert_eq!(ledger.watermark().0, watermark);
            prop_assert!(watermark >= floor, "the watermark moved back");
            floor = watermark;
            prop_assert!(log.iter().filter(|o| **o < watermark).all(|o| done.contains(o)), "a message was passed unfinished");
            let position = ledger.position();
            for offset in naive.finished_above(watermark) {
                prop_assert!(position.finished.contains(offset), "{offset} is finished and not in the position");
            }
            for offset in log.iter().filter(|offset| position.finished.contains(**offset)) {
                prop_assert!(done.contains(offset), "{offset} is in the position and not finished");
            }
            let text = position.encode(LogMark(u128::MAX), Epoch(u64::MAX));
            prop_assert!(text.len() <= max_len, "{} > {max_len}", text.len());
        }
    }
}
