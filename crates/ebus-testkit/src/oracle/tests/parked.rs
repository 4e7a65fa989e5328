//! Parked keys: a dead letter ends its message, and not its place in the order.

use super::{Script, broken, finds};
use crate::history::Outcome;
use crate::oracle::{Promise, Rules, judge};

/// 0 is a dead letter, 1 follows it.
fn parked() -> Script {
    Script::new()
        .stored("k", 0)
        .stored("k", 1)
        .stored("k", 2)
        .assigned("m", 1)
        .run("m", 1, "k", 0, Outcome::Reject)
        .dead_letter("k", 0)
        .settled("m", 1, 0)
        .dead_letter("k", 1)
        .settled("m", 1, 1)
}

fn rules() -> Rules {
    Rules::new().parks("g").unfinished_ok("g")
}

#[test]
fn p2_redriven_in_order_and_then_on_is_clean() {
    let script = parked()
        .redriven("m", 1, "k", 0, Outcome::Retry)
        .redriven("m", 1, "k", 0, Outcome::Ack)
        .redriven("m", 1, "k", 1, Outcome::Ack)
        .run("m", 1, "k", 2, Outcome::Ack);
    finds(&script, &rules(), &[]);
    let verdict = judge(&script.events, &rules());
    assert_eq!((verdict.dead_letters, verdict.redriven, verdict.handled), (2, 2, 1));
}

#[test]
fn p2_a_start_past_a_dead_letter_of_its_key_is_found_where_keys_are_parked() {
    let script = parked().run("m", 1, "k", 2, Outcome::Ack);
    finds(&script, &rules(), &[(Promise::G2, 1)]);
    assert_eq!(broken(&judge(&script.events, &Rules::new())), [], "elsewhere a dead letter ends it");
}

#[test]
fn p2_redriven_out_of_order_is_found() {
    let script = parked().redriven("m", 1, "k", 1, Outcome::Ack).redriven("m", 1, "k", 0, Outcome::Ack);
    finds(&script, &rules(), &[(Promise::G2, 2)]);
}

#[test]
fn p2_on_before_all_are_redriven_is_found() {
    let script = parked().redriven("m", 1, "k", 0, Outcome::Ack).run("m", 1, "k", 2, Outcome::Ack);
    finds(&script, &rules(), &[(Promise::G2, 1)]);
}

#[test]
fn p6_redriven_twice_is_a_duplicate_but_for_a_crash() {
    let redriven = parked().redriven("m", 1, "k", 0, Outcome::Ack);
    let twice = redriven.clone().redriven("m", 1, "k", 0, Outcome::Ack);
    finds(&twice, &rules(), &[(Promise::G6, 1)]);
    let committed = redriven.committed(2, &[]);
    let crashed = committed.clone().lost("m", 1).assigned("n", 2).redriven("n", 2, "k", 0, Outcome::Ack);
    finds(&crashed, &rules(), &[]);
    let handed_over = committed.released("m", 1, Outcome::Accepted).assigned("n", 2);
    finds(&handed_over.redriven("n", 2, "k", 0, Outcome::Ack), &rules(), &[(Promise::G6, 1)]);
}

/// Drained while the list could not be written: the next owner cannot know.
#[test]
fn p6_what_was_redriven_and_could_not_be_kept_may_run_again_at_the_next_owner() {
    let next = |script: Script| script.released("m", 1, Outcome::Accepted).assigned("n", 2);
    let again = |script: Script| next(script).redriven("n", 2, "k", 0, Outcome::Ack);
    let before = parked().kept("m", 1, Outcome::Accepted).kept("m", 1, Outcome::Refused);
    let redriven = before.redriven("m", 1, "k", 0, Outcome::Ack);
    let refused = redriven.clone().kept("m", 1, Outcome::Refused).kept("m", 1, Outcome::Refused);
    finds(&again(refused.clone()), &rules(), &[]);
    finds(&next(refused.clone()).dead_letter_by("n", 2, "k", 0), &rules(), &[]);
    let found = [(Promise::G6, 1)];
    finds(&refused.clone().redriven("m", 1, "k", 0, Outcome::Ack), &rules(), &found);
    finds(&again(refused.kept("m", 1, Outcome::Accepted)), &rules(), &found);
    finds(&again(redriven.clone().kept("m", 1, Outcome::Accepted)), &rules(), &found);
    finds(&again(redriven.clone()), &rules(), &found);
    finds(&again(redriven.kept("m", 9, Outcome::Refused)), &rules(), &found);
}

/// It is no excuse for what was not redriven: that is committed, and the list has no part in it.
#[test]
fn p6_a_list_that_could_not_be_kept_excuses_no_other_run() {
    let script = Script::new().stored("k", 0).assigned("m", 1).run("m", 1, "k", 0, Outcome::Ack);
    let script = script.kept("m", 1, Outcome::Refused).released("m", 1, Outcome::Accepted);
    let script = script.assigned("n", 2).run("n", 2, "k", 0, Outcome::Ack);
    finds(&script, &rules(), &[(Promise::G6, 1)]);
}

/// Its dead letter was stored, and its owner let go before the list said so.
#[test]
fn p6_a_dead_letter_ends_its_message_when_it_is_settled() {
    let letter = Script::new()
        .stored("k", 0)
        .assigned("m", 1)
        .run("m", 1, "k", 0, Outcome::Reject)
        .dead_letter("k", 0);
    let next = |script: Script| {
        script.released("m", 1, Outcome::Accepted).assigned("n", 2).run("n", 2, "k", 0, Outcome::Ack)
    };
    finds(&next(letter.clone()), &rules(), &[]);
    finds(&next(letter.clone()), &Rules::new(), &[(Promise::G6, 1)]);
    finds(&next(letter.settled("m", 1, 0)), &rules(), &[(Promise::G6, 1)]);
}

#[test]
fn a_run_that_says_it_is_redriven_has_a_dead_letter() {
    let script = Script::new().stored("k", 0).assigned("m", 1).redriven("m", 1, "k", 0, Outcome::Ack);
    let verdict = judge(&script.events, &rules());
    assert!(verdict.count(Promise::Malformed) > 0, "{verdict}");
}

/// Killed after it was stored, and before anybody was told.
#[test]
fn p2_a_dead_letter_whose_owner_got_no_receipt_is_redriven_by_the_next_one() {
    let script =
        Script::new().stored("k", 0).stored("k", 1).assigned("m", 1).run("m", 1, "k", 0, Outcome::Reject);
    let script = script.dead_letter("k", 0).settled("m", 1, 0).lost("m", 1).assigned("n", 2);
    let script = script.redriven("n", 2, "k", 0, Outcome::Ack).redriven("n", 2, "k", 1, Outcome::Ack);
    finds(&script, &Rules::new().parks("g"), &[]);
}
