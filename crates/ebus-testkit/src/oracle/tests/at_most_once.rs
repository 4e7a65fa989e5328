//! Groups that are at most once, and those that drop what fails.

use super::script::Script;
use super::{Promise, Rules, finds, judge};
use crate::history::{Kind, Outcome};

fn once() -> Rules {
    Rules::new().at_most_once("g")
}

/// Two versions of one key; the first is settled, and run.
fn begun() -> Script {
    Script::new().stored("k", 0).stored("k", 1).assigned("m", 1).settled("m", 1, 0).run(
        "m",
        1,
        "k",
        0,
        Outcome::Ack,
    )
}

#[test]
fn settled_started_once_and_dropped_for_whatever_is_clean() {
    for outcome in [Outcome::Ack, Outcome::Retry, Outcome::Reject, Outcome::Panic, Outcome::Cancelled] {
        let script =
            begun().settled("m", 1, 1).run("m", 1, "k", 1, outcome).released("m", 1, Outcome::Accepted);
        finds(&script, &once(), &[]);
    }
}

#[test]
fn p6_a_second_start_is_found_whatever_crashed() {
    let script = begun().settled("m", 1, 1).run("m", 1, "k", 1, Outcome::Panic).lost("m", 1).assigned("n", 2);
    let again = script.clone().settled("n", 2, 1).run("n", 2, "k", 1, Outcome::Ack);
    finds(&again, &once(), &[(Promise::G6, 1)]);
    finds(&script.run("m", 1, "k", 1, Outcome::Ack), &once(), &[(Promise::G6, 1)]);
}

#[test]
fn p1_a_start_before_it_was_settled_is_found() {
    let script = begun().run("m", 1, "k", 1, Outcome::Ack).settled("m", 1, 1);
    finds(&script, &once(), &[(Promise::G1, 1)]);
    // By somebody else is not by its owner.
    let script = begun().settled("m", 1, 1).lost("m", 1).assigned("n", 2).run("n", 2, "k", 1, Outcome::Ack);
    finds(&script, &once(), &[(Promise::G1, 1)]);
}

#[test]
fn p1_what_is_never_settled_is_lost_and_what_is_never_started_only_by_a_crash() {
    finds(&begun().released("m", 1, Outcome::Accepted), &once(), &[(Promise::G1, 1)]);
    finds(&begun(), &once().unfinished_ok("g"), &[]);
    let settled = begun().settled("m", 1, 1);
    for (script, expected) in [
        (settled.clone().lost("m", 1), (1, 0)),
        (settled.clone().released("m", 1, Outcome::Refused), (1, 0)),
        (settled.clone().released("m", 1, Outcome::Accepted), (0, 1)),
        (
            settled.lost("m", 1).assigned("n", 2).settled("n", 2, 1).released("n", 2, Outcome::Accepted),
            (0, 1),
        ),
    ] {
        let verdict = judge(&script.events, &once());
        assert!(verdict.kept(), "{verdict}");
        assert_eq!((verdict.unstarted_at_crashes, verdict.unstarted), expected);
    }
}

#[test]
fn what_began_and_ended_with_its_process_is_counted_and_no_promise_is_broken() {
    let script = begun().settled("m", 1, 1).start("m", 1, "k", 1);
    let mut put_in = script.clone().end("m", 1, "k", 1, Outcome::Cancelled).fault(Kind::Killed, "m");
    // As merging puts it in: at the death.
    if let [.., end, death] = &mut put_in.events[..] {
        end.at_ns = death.at_ns;
    }
    for script in [script.fault(Kind::Killed, "m"), put_in] {
        let verdict = judge(&script.events, &once());
        assert!(verdict.kept(), "{verdict}");
        assert_eq!((verdict.cut_short, verdict.unstarted_at_crashes), (1, 0));
    }
    let verdict = judge(&begun().fault(Kind::Killed, "m").events, &once());
    assert_eq!(verdict.cut_short, 0);
}

#[test]
fn p1_a_commit_of_what_was_not_settled_is_found() {
    finds(&begun().committed(2, &[]).lost("m", 1), &once().unfinished_ok("g"), &[(Promise::G1, 1)]);
    finds(&begun().committed(1, &[]).lost("m", 1), &once().unfinished_ok("g"), &[]);
}

#[test]
fn p2_a_key_that_goes_back_is_found_under_another_owner_too() {
    let script = Script::new().stored("k", 0).stored("k", 1).assigned("m", 1).settled("m", 1, 1);
    let script = script.run("m", 1, "k", 1, Outcome::Ack).released("m", 1, Outcome::Accepted);
    let script = script.assigned("n", 2).settled("n", 2, 0).run("n", 2, "k", 0, Outcome::Ack);
    finds(&script, &once(), &[(Promise::G2, 1)]);
}

#[test]
fn p1_what_failed_is_finished_only_where_the_user_asked_for_it() {
    for outcome in [Outcome::Retry, Outcome::Reject, Outcome::Panic] {
        let script =
            Script::new().stored("k", 0).assigned("m", 1).run("m", 1, "k", 0, outcome).settled("m", 1, 0);
        finds(&script, &Rules::new().drop_on_failure("g"), &[]);
        finds(&script, &Rules::new(), &[(Promise::G1, 2)]);
        let again = script.run("m", 1, "k", 0, Outcome::Ack);
        finds(&again, &Rules::new().drop_on_failure("g"), &[(Promise::G6, 1)]);
    }
    let cancelled = Script::new().stored("k", 0).assigned("m", 1).run("m", 1, "k", 0, Outcome::Cancelled);
    finds(&cancelled, &Rules::new().drop_on_failure("g"), &[(Promise::G1, 1)]);
}
