use super::*;

fn batch(anchored: Option<u64>, members: std::ops::Range<u64>) -> Batch {
    let mut batch = Batch::new("_INBOX.me", "Ab", 7, 0, 9, 90);
    batch.anchored = anchored;
    for number in members {
        batch.add(number);
    }
    batch
}

#[test]
fn replies_say_what_the_server_needs_and_are_read_again() {
    let mut batch = batch(None, 0..0);
    assert_eq!(batch.add(10), "_INBOX.me.Ab7.500.fail.1.0.$FI");
    assert_eq!(batch.add(12), "_INBOX.me.Ab7.500.fail.2.1.$FI");
    assert_eq!(batch.end(), "_INBOX.me.Ab7.500.fail.3.3.$FI");
    assert_eq!(read_reply("Ab7.500.fail.3.3.$FI", "Ab"), Some((7, 3)));
    assert_eq!(
        (batch.member(0), batch.member(1), batch.member(2), batch.member(3)),
        (None, Some(10), Some(12), None)
    );
    for other in ["17", "Cd7.500.fail.3.3.$FI", "Abx.500.fail.3.3.$FI", "Ab7.$FI", ".$FI", ""] {
        assert_eq!(read_reply(other, "Ab"), None, "{other}");
    }
}

#[test]
fn p1_offsets_are_certain_only_when_nobody_else_fits_between() {
    let batch = batch(Some(100), 10..13);
    let known = [(10, Some(101)), (11, Some(102)), (12, Some(103))];
    assert_eq!(
        batch.outcome(103, 3),
        Outcome { stored: known.to_vec(), missing: vec![], was_refused: false }
    );
    let unknown = [(10, None), (11, None), (12, None)];
    for last in [104, 102, 99, 0] {
        assert_eq!(batch.outcome(last, 3).stored, unknown, "{last}");
    }
    assert_eq!(self::batch(None, 10..13).outcome(103, 3).stored, unknown, "without an anchor");
}

#[test]
fn p1_what_is_behind_the_end_is_not_stored() {
    let outcome = batch(Some(100), 10..15).outcome(102, 2);
    assert_eq!(outcome.stored, [(10, Some(101)), (11, Some(102))]);
    assert_eq!((outcome.missing, outcome.was_refused), (vec![12, 13, 14], false));
    // A count beyond what was sent is no reason to panic.
    assert_eq!(batch(Some(100), 10..12).outcome(102, 9).missing, Vec::<u64>::new());
}

#[test]
fn p1_what_was_refused_has_no_offset_whatever_the_count_says() {
    let mut batch = batch(Some(100), 10..14);
    batch.refuse(2);
    batch.refuse(2);
    let outcome = batch.outcome(103, 4);
    assert!(outcome.was_refused);
    assert_eq!(outcome.stored, [(10, Some(101)), (12, Some(102)), (13, Some(103))]);
    assert_eq!(batch.outcome(104, 4).stored[0], (10, None), "one more than there should be");
    assert_eq!(batch.outcome(101, 1).missing, [12, 13], "the refused one was told before");
}

#[test]
fn every_word_of_the_server_is_told_apart() {
    let ended = Said::Ended { stream: "s".into(), last: 7, count: 3 };
    assert_eq!(Said::read(br#"{"stream":"s","seq":7,"batch":"Ab7","count":3}"#), ended);
    assert_eq!(Said::read(br#"{"type":"ack","seq":0,"msgs":500}"#), Said::Alive);
    assert_eq!(Said::read(br#"{"type":"gap","last_seq":3,"seq":5}"#), Said::Broken);
    let refused = Said::read(
        br#"{"type":"err","seq":4,"error":{"code":400,"err_code":10054,"description":"too large"}}"#,
    );
    let expected = Said::Refused { position: 4, code: 10_054, status: 400, description: "too large".into() };
    assert_eq!(refused, expected);
    for single in [&br#"{"error":{"code":400,"err_code":10208},"stream":"s","seq":0}"#[..], b"+OK", b""] {
        assert_eq!(Said::read(single), Said::Single);
    }
}

#[test]
fn being_alone_is_earned_and_lost() {
    let mut alone = Alone::default();
    (1..=256).for_each(|offset| alone.stored(offset));
    assert!(alone.is_likely() && alone.last() == 256);
    alone.stored(258);
    assert!(!alone.is_likely(), "somebody else took 257");
    (259..=514).for_each(|offset| alone.stored(offset));
    assert!(alone.is_likely());
    alone.disturbed(700);
    assert_eq!(alone.last(), 700);
    (701..=1_500).for_each(|offset| alone.stored(offset));
    assert!(!alone.is_likely(), "once disturbed it takes longer");
    (1_501..=1_800).for_each(|offset| alone.stored(offset));
    assert!(alone.is_likely());
    (1..=1_100).for_each(|offset| alone.stored(offset));
    assert!(alone.is_likely() && alone.last() == 1_100, "the stream was made anew");
    alone.stored_batch(3_000, 1_200);
    assert!(alone.is_likely() && alone.last() == 3_000);
}
