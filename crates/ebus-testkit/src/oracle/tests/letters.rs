//! No dead letter after a success: a message is handled or a dead letter, and both only where a crash excuses it (G6).

use std::time::Duration;

use super::{Script, broken, finds, passes};
use crate::history::{Kind, Outcome};
use crate::oracle::{Promise, Rules, judge};

/// Handled by `m` under epoch 1.
fn handled() -> Script {
    Script::new().stored("k", 0).assigned("m", 1).run("m", 1, "k", 0, Outcome::Ack)
}

#[test]
fn p6_a_dead_letter_of_what_its_own_owner_handled_is_found() {
    finds(&handled().dead_letter("k", 0), &Rules::new(), &[(Promise::G6, 1)]);
    let verdict = judge(&handled().dead_letter("k", 0).events, &Rules::new());
    assert!(
        verdict.to_string().contains("became a dead letter after it was handled, under the same ownership"),
        "{verdict}"
    );
    // Not for an earlier failure either.
    let retried = Script::new()
        .stored("k", 0)
        .assigned("m", 1)
        .run("m", 1, "k", 0, Outcome::Reject)
        .run("m", 1, "k", 0, Outcome::Ack)
        .dead_letter("k", 0);
    finds(&retried, &Rules::new(), &[(Promise::G6, 1)]);
}

#[test]
fn p6_a_dead_letter_after_a_clean_hand_over_is_found_and_after_a_crash_it_is_not() {
    let next = |script: Script| script.assigned("n", 2).dead_letter_by("n", 2, "k", 0);
    finds(&next(handled().released("m", 1, Outcome::Accepted)), &Rules::new(), &[(Promise::G6, 1)]);
    passes(&next(handled().released("m", 1, Outcome::Refused)));
    passes(&next(handled().lost("m", 1)));
}

#[test]
fn p6_a_crash_excuses_no_dead_letter_of_what_was_committed_or_handled_long_before() {
    let next = |script: Script| script.lost("m", 1).assigned("n", 2).dead_letter_by("n", 2, "k", 0);
    passes(&next(handled().committed(0, &[])));
    finds(&next(handled().committed(1, &[])), &Rules::new(), &[(Promise::G6, 1)]);
    finds(&next(handled().committed(0, &[(0, 1)])), &Rules::new(), &[(Promise::G6, 1)]);
    let within = Rules::new().commit_within(Duration::from_secs(1));
    finds(&next(handled()), &within, &[]);
    finds(&next(handled().after(Duration::from_secs(2))), &within, &[(Promise::G6, 1)]);
}

#[test]
fn p6_only_a_fault_that_was_recorded_excuses_it_where_that_is_asked_for() {
    let rules = Rules::new().only_faults_excuse(Duration::from_secs(1));
    let next = |script: Script| script.assigned("n", 2).dead_letter_by("n", 2, "k", 0);
    finds(&next(handled().lost("m", 1)), &rules, &[(Promise::G6, 1)]);
    finds(&next(handled().fault(Kind::Killed, "m").lost("m", 1)), &rules, &[]);
}

/// It did not know that another had taken over and handled it.
#[test]
fn p6_a_former_owner_may_write_one_until_it_learns_that_it_is_one() {
    let taken = |late: Duration, learns: bool| {
        let script = Script::new().stored("k", 0).assigned("m", 1).run("m", 1, "k", 0, Outcome::Reject);
        let script = script.assigned("n", 2).run("n", 2, "k", 0, Outcome::Ack);
        let script = if learns { script.lost("m", 1) } else { script };
        let script = script.after(late).dead_letter("k", 0);
        if learns { script } else { script.lost("m", 1) }
    };
    passes(&taken(Duration::ZERO, false));
    passes(&taken(Duration::ZERO, true));
    finds(&taken(Duration::from_secs(2), true), &Rules::new(), &[(Promise::G6, 1)]);
}

/// The run is the duplicate, or is excused; its dead letter is no second one.
#[test]
fn p6_a_dead_letter_of_a_second_run_is_judged_by_that_run() {
    let again = |script: Script| script.run("n", 2, "k", 0, Outcome::Reject).dead_letter_by("n", 2, "k", 0);
    passes(&again(handled().lost("m", 1).assigned("n", 2)));
    let handed = again(handled().released("m", 1, Outcome::Accepted).assigned("n", 2));
    let verdict = judge(&handed.events, &Rules::new());
    assert_eq!(broken(&verdict), [(Promise::G6, 1)], "{verdict}");
    assert!(verdict.to_string().contains("ran again"), "{verdict}");
}

/// Parked: 0 was redriven, and comes again from the source.
#[test]
fn p6_a_dead_letter_of_what_was_redriven_is_found_but_for_a_crash() {
    let rules = Rules::new().parks("g");
    let redriven = Script::new()
        .stored("k", 0)
        .assigned("m", 1)
        .run("m", 1, "k", 0, Outcome::Reject)
        .dead_letter("k", 0)
        .settled("m", 1, 0)
        .committed(1, &[])
        .redriven("m", 1, "k", 0, Outcome::Ack);
    finds(&redriven, &rules, &[]);
    finds(&redriven.clone().dead_letter("k", 0), &rules, &[(Promise::G6, 1)]);
    let next = |script: Script| script.assigned("n", 2).dead_letter_by("n", 2, "k", 0);
    // That it was handled is kept apart from the position.
    finds(&next(redriven.clone().lost("m", 1)), &rules, &[]);
    finds(&next(redriven.released("m", 1, Outcome::Accepted)), &rules, &[(Promise::G6, 1)]);
}

/// Each letter by itself: a copy of one that was there before is no news of a success.
#[test]
fn a_dead_letter_before_the_success_is_none_after_it() {
    let script = Script::new()
        .stored("k", 0)
        .assigned("m", 1)
        .run("m", 1, "k", 0, Outcome::Reject)
        .dead_letter("k", 0)
        .dead_letter("k", 0);
    passes(&script);
    finds(&script.clone().dead_letter_by("m", 1, "k", 9), &Rules::new(), &[]);
    let mut without = script;
    without
        .events
        .iter_mut()
        .filter(|event| event.kind == Kind::DeadLetter)
        .for_each(|event| event.epoch = None);
    assert_eq!(judge(&without.events, &Rules::new()).malformed, 2, "it says by whom it was written");
}
