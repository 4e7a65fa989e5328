//! Hand-made histories: one for every way to break a promise, and those that only look like one.

use std::time::Duration;

use super::{Promise, Rules, Verdict, judge};
use crate::history::{Event, Kind, Outcome, name};

mod at_most_once;
mod faults;
mod letters;
mod mutations;
mod parked;
mod script;

use script::Script;

fn broken(verdict: &Verdict) -> Vec<(Promise, u64)> {
    use Promise::{G1, G2, G3, G4, G5, G6, G7, Malformed};
    let all = [G1, G2, G3, G4, G5, G6, G7, Malformed].into_iter();
    all.map(|promise| (promise, verdict.count(promise))).filter(|(_, count)| *count > 0).collect()
}

#[track_caller]
fn finds(script: &Script, rules: &Rules, expected: &[(Promise, u64)]) {
    let verdict = judge(&script.events, rules);
    assert_eq!(broken(&verdict), expected, "{verdict}");
}

#[track_caller]
fn passes(script: &Script) {
    finds(script, &Rules::new(), &[]);
}

/// Two versions of one key are stored and handled by member `m` under epoch 1.
fn clean() -> Script {
    Script::new()
        .stored("k", 0)
        .stored("k", 1)
        .assigned("m", 1)
        .run("m", 1, "k", 0, Outcome::Ack)
        .run("m", 1, "k", 1, Outcome::Ack)
        .released("m", 1, Outcome::Accepted)
}

#[test]
fn a_clean_history_passes_and_is_counted() {
    let verdict = judge(&clean().events, &Rules::new());
    assert!(verdict.kept(), "{verdict}");
    assert_eq!((verdict.published, verdict.stored, verdict.runs, verdict.handled), (2, 2, 2, 2));
}

#[test]
fn a_retry_and_a_dead_letter_are_clean() {
    let script = Script::new()
        .stored("k", 0)
        .stored("k", 1)
        .assigned("m", 1)
        .run("m", 1, "k", 0, Outcome::Retry)
        .run("m", 1, "k", 0, Outcome::Panic)
        .run("m", 1, "k", 0, Outcome::Reject)
        .dead_letter("k", 0)
        .settled("m", 1, 0)
        .run("m", 1, "k", 1, Outcome::Ack)
        .settled("m", 1, 1);
    passes(&script);
    let verdict = judge(&script.events, &Rules::new());
    assert_eq!((verdict.retries, verdict.dead_letters, verdict.handled), (2, 1, 1));
}

#[test]
fn p1_what_is_never_finished_is_lost_for_every_group_that_reads_it() {
    let script = Script::new().stored("k", 0).assigned("m", 1).run("m", 1, "k", 0, Outcome::Retry);
    finds(&script, &Rules::new(), &[(Promise::G1, 1)]);
    finds(&script, &Rules::new().unfinished_ok("g"), &[]);
    finds(&clean(), &Rules::new().reads("other", "t"), &[(Promise::G1, 2)]);
}

#[test]
fn p1_what_is_below_the_beginning_of_a_group_is_not_its_business() {
    let script =
        Script::new().stored("k", 0).stored("k", 1).assigned("m", 1).run("m", 1, "k", 1, Outcome::Ack);
    finds(&script, &Rules::new(), &[(Promise::G1, 1), (Promise::G2, 1)]);
    finds(&script, &Rules::new().begins_at("g", "t", 0, 1), &[]);
}

#[test]
fn p1_a_reject_finishes_only_where_the_user_asked_for_drops() {
    let script = Script::new().stored("k", 0).assigned("m", 1).run("m", 1, "k", 0, Outcome::Reject);
    finds(&script, &Rules::new(), &[(Promise::G1, 1)]);
    finds(&script, &Rules::new().drop_rejected("g"), &[]);
}

#[test]
fn p1_a_settlement_before_the_receipt_of_the_dead_letter_is_found() {
    let script = Script::new()
        .stored("k", 0)
        .assigned("m", 1)
        .run("m", 1, "k", 0, Outcome::Reject)
        .settled("m", 1, 0)
        .dead_letter("k", 0);
    finds(&script, &Rules::new(), &[(Promise::G1, 1)]);
}

#[test]
fn p1_a_commit_past_an_unfinished_message_is_found() {
    let start = Script::new().stored("k", 0).stored("l", 1).stored("m", 2).assigned("m", 1).run(
        "m",
        1,
        "l",
        1,
        Outcome::Ack,
    );
    let end = |script: Script| script.run("m", 1, "k", 0, Outcome::Ack).run("m", 1, "m", 2, Outcome::Ack);
    finds(&end(start.clone().committed(2, &[])), &Rules::new(), &[(Promise::G1, 1)]);
    finds(&end(start.clone().committed(0, &[(1, 3)])), &Rules::new(), &[(Promise::G1, 1)]);
    passes(&end(start.committed(0, &[(1, 2)])));
}

#[test]
fn p1_one_place_with_two_messages_is_found() {
    finds(&clean().receipt("k", 9, 9, 1), &Rules::new(), &[(Promise::G1, 1)]);
}

#[test]
fn p2_a_start_past_an_unfinished_one_of_its_key_is_found() {
    let script = Script::new()
        .stored("k", 0)
        .stored("k", 1)
        .assigned("m", 1)
        .run("m", 1, "k", 0, Outcome::Retry)
        .run("m", 1, "k", 1, Outcome::Ack)
        .run("m", 1, "k", 0, Outcome::Ack);
    // Past it, and back to it.
    finds(&script, &Rules::new(), &[(Promise::G2, 2)]);
}

#[test]
fn p2_keys_pass_each_other() {
    passes(
        &Script::new().stored("k", 0).stored("l", 1).assigned("m", 1).run("m", 1, "l", 1, Outcome::Ack).run(
            "m",
            1,
            "k",
            0,
            Outcome::Ack,
        ),
    );
}

#[test]
fn p2_a_receipt_that_comes_late_still_orders() {
    let mut script =
        Script::new().assigned("m", 1).run("m", 1, "k", 1, Outcome::Ack).run("m", 1, "k", 0, Outcome::Ack);
    script = script.stored("k", 0).stored("k", 1);
    finds(&script, &Rules::new(), &[(Promise::G2, 2)]);
}

#[test]
fn p2_a_key_in_two_partitions_is_found() {
    let mut script = clean().stored("k", 2).assigned_in("m", 1, 1);
    let stored = script.events.iter_mut().rfind(|event| event.kind == Kind::Stored).expect("is there");
    stored.partition = Some(1);
    script = script.in_partition(1, |script| script.run("m", 1, "k", 2, Outcome::Ack));
    finds(&script, &Rules::new(), &[(Promise::G2, 1)]);
}

#[test]
fn p2_a_replay_out_of_order_is_found() {
    let replay = |first, second| {
        Script::new()
            .stored("k", 0)
            .stored("k", 1)
            .assigned("m", 1)
            .run("m", 1, "k", 0, Outcome::Ack)
            .run("m", 1, "k", 1, Outcome::Ack)
            .lost("m", 1)
            .assigned("n", 2)
            .run("n", 2, "k", first, Outcome::Ack)
            .run("n", 2, "k", second, Outcome::Ack)
    };
    passes(&replay(0, 1));
    finds(&replay(1, 0), &Rules::new(), &[(Promise::G2, 1)]);
}

#[test]
fn p3_two_runs_of_a_key_at_once_are_found() {
    let script = Script::new()
        .stored("k", 0)
        .stored("k", 1)
        .assigned("m", 1)
        .start("m", 1, "k", 0)
        .start("m", 1, "k", 1)
        .end("m", 1, "k", 0, Outcome::Ack)
        .end("m", 1, "k", 1, Outcome::Ack);
    finds(&script, &Rules::new(), &[(Promise::G2, 1), (Promise::G3, 1)]);
}

#[test]
fn p3_two_runs_of_one_message_without_a_key_are_found() {
    let script = Script::new()
        .stored("", 0)
        .stored("", 1)
        .assigned("m", 1)
        .start("m", 1, "", 0)
        .start("m", 1, "", 1)
        .start("m", 1, "", 0)
        .end("m", 1, "", 0, Outcome::Retry)
        .end("m", 1, "", 1, Outcome::Ack)
        .end("m", 1, "", 0, Outcome::Ack);
    finds(&script, &Rules::new(), &[(Promise::G3, 1)]);
}

#[test]
fn p3_a_release_before_the_runs_have_ended_is_found() {
    let script = Script::new()
        .stored("k", 0)
        .assigned("m", 1)
        .start("m", 1, "k", 0)
        .released("m", 1, Outcome::Accepted)
        .assigned("n", 2)
        .run("n", 2, "k", 0, Outcome::Ack)
        .end("m", 1, "k", 0, Outcome::Cancelled);
    // Open beside another, and open after the release.
    finds(&script, &Rules::new(), &[(Promise::G3, 2)]);
}

#[test]
fn p3_a_member_that_lost_its_partition_may_overlap_until_it_knows() {
    let script = |late: Duration, other: &str| {
        Script::new()
            .stored("k", 0)
            .assigned("m", 1)
            .start("m", 1, "k", 0)
            .assigned(other, 2)
            .start(other, 2, "k", 0)
            .lost("m", 1)
            .after(late)
            .end("m", 1, "k", 0, Outcome::Cancelled)
            .end(other, 2, "k", 0, Outcome::Ack)
    };
    passes(&script(Duration::from_millis(500), "n"));
    // Beside another, and on after the loss.
    finds(&script(Duration::from_millis(1_500), "n"), &Rules::new(), &[(Promise::G3, 2)]);
    // In one process it knows at once.
    finds(&script(Duration::from_millis(500), "m"), &Rules::new(), &[(Promise::G3, 1)]);
}

#[test]
fn p6_a_member_that_lost_its_partition_may_repeat_the_next_until_it_knows() {
    let script = |late: Duration, other: &str| {
        Script::new()
            .stored("k", 0)
            .assigned("m", 1)
            .assigned(other, 2)
            .start(other, 2, "k", 0)
            .lost("m", 1)
            .after(late)
            .start("m", 1, "k", 0)
            .end(other, 2, "k", 0, Outcome::Ack)
            .end("m", 1, "k", 0, Outcome::Ack)
            .released(other, 2, Outcome::Accepted)
    };
    passes(&script(Duration::from_millis(500), "n"));
    finds(&script(Duration::from_millis(1_500), "n"), &Rules::new(), &[(Promise::G3, 2)]);
    finds(&script(Duration::from_millis(500), "m"), &Rules::new(), &[(Promise::G3, 1)]);
    let repeat = |late: Duration| {
        Script::new()
            .stored("k", 0)
            .assigned("m", 1)
            .assigned("n", 2)
            .run("n", 2, "k", 0, Outcome::Ack)
            .lost("m", 1)
            .after(late)
            .run("m", 1, "k", 0, Outcome::Ack)
    };
    passes(&repeat(Duration::from_millis(500)));
    finds(&repeat(Duration::from_millis(1_500)), &Rules::new(), &[(Promise::G3, 1), (Promise::G6, 1)]);
}

#[test]
fn p3_a_run_without_ownership_is_found() {
    let script = Script::new().stored("k", 0).run("m", 1, "k", 0, Outcome::Ack);
    finds(&script, &Rules::new(), &[(Promise::G3, 1)]);
    let script = clean().stored("k", 2).run("m", 1, "k", 2, Outcome::Ack);
    finds(&script, &Rules::new(), &[(Promise::G3, 1)]);
}

#[test]
fn p3_an_epoch_of_two_members_is_found() {
    finds(&clean().assigned("n", 1), &Rules::new(), &[(Promise::G3, 1)]);
}

#[test]
fn p4_a_message_that_waits_for_another_key_is_found() {
    let script = |waits: u64| {
        Script::new()
            .stored("k", 0)
            .stored("k", 1)
            .stored("l", 2)
            .assigned("m", 1)
            .start("m", 1, "k", 0)
            .after(Duration::from_millis(waits))
            .run("m", 1, "l", 2, Outcome::Ack)
            .after(Duration::from_secs(9))
            .end("m", 1, "k", 0, Outcome::Ack)
            .run("m", 1, "k", 1, Outcome::Ack)
    };
    let rules = Rules::new().starts_within(Duration::from_secs(1));
    finds(&script(900), &rules, &[]);
    finds(&script(1_100), &rules, &[(Promise::G4, 1)]);
}

#[test]
fn p5_more_runs_than_allowed_are_found() {
    let script = Script::new()
        .stored("k", 0)
        .stored("l", 1)
        .assigned("m", 1)
        .start("m", 1, "k", 0)
        .start("m", 1, "l", 1)
        .end("m", 1, "l", 1, Outcome::Ack)
        .end("m", 1, "k", 0, Outcome::Ack);
    finds(&script, &Rules::new().max_in_flight(2), &[]);
    finds(&script, &Rules::new().max_in_flight(1), &[(Promise::G5, 1)]);
}

#[test]
fn p6_a_second_run_without_a_crash_is_found() {
    let again = |how: fn(Script) -> Script| {
        how(Script::new().stored("k", 0).assigned("m", 1).run("m", 1, "k", 0, Outcome::Ack))
            .assigned("n", 2)
            .run("n", 2, "k", 0, Outcome::Ack)
    };
    finds(&again(|script| script), &Rules::new(), &[(Promise::G6, 1)]);
    finds(&again(|script| script.released("m", 1, Outcome::Accepted)), &Rules::new(), &[(Promise::G6, 1)]);
    passes(&again(|script| script.released("m", 1, Outcome::Refused)));
    passes(&again(|script| script.lost("m", 1)));
    let same = Script::new()
        .stored("k", 0)
        .assigned("m", 1)
        .run("m", 1, "k", 0, Outcome::Ack)
        .run("m", 1, "k", 0, Outcome::Ack)
        .lost("m", 1);
    finds(&same, &Rules::new(), &[(Promise::G6, 1)]);
}

#[test]
fn p6_a_second_run_after_the_dead_letter_is_found() {
    let script = Script::new()
        .stored("k", 0)
        .assigned("m", 1)
        .run("m", 1, "k", 0, Outcome::Reject)
        .dead_letter("k", 0)
        .run("m", 1, "k", 0, Outcome::Reject);
    finds(&script, &Rules::new(), &[(Promise::G6, 1)]);
}

#[test]
fn p6_a_crash_excuses_only_what_was_not_committed() {
    let crash = |watermark: u64, finished: &[(u64, u64)]| {
        Script::new()
            .stored("k", 0)
            .stored("l", 1)
            .assigned("m", 1)
            .run("m", 1, "k", 0, Outcome::Ack)
            .run("m", 1, "l", 1, Outcome::Ack)
            .lost("m", 1)
            .committed(watermark, finished)
            .assigned("n", 2)
            .run("n", 2, "l", 1, Outcome::Ack)
    };
    passes(&crash(1, &[]));
    let verdict = judge(&crash(1, &[]).events, &Rules::new());
    assert_eq!(verdict.replayed, 1);
    finds(&crash(2, &[]), &Rules::new(), &[(Promise::G6, 1)]);
    finds(&crash(0, &[(1, 2)]), &Rules::new(), &[(Promise::G6, 1)]);
}

#[test]
fn p6_a_crash_excuses_only_the_last_commit_interval_where_one_is_given() {
    let script = Script::new()
        .stored("k", 0)
        .assigned("m", 1)
        .run("m", 1, "k", 0, Outcome::Ack)
        .after(Duration::from_secs(2))
        .lost("m", 1)
        .assigned("n", 2)
        .run("n", 2, "k", 0, Outcome::Ack);
    finds(&script, &Rules::new().commit_within(Duration::from_secs(3)), &[]);
    finds(&script, &Rules::new().commit_within(Duration::from_secs(1)), &[(Promise::G6, 1)]);
}

#[test]
fn p7_another_order_than_that_of_the_calls_is_found() {
    let script = Script::new()
        .call("k", 1, 0)
        .call("k", 2, 1)
        .receipt("k", 2, 1, 0)
        .receipt("k", 1, 0, 1)
        .assigned("m", 1)
        .run_of("m", 1, "k", 2, 0, Outcome::Ack)
        .run_of("m", 1, "k", 1, 1, Outcome::Ack);
    finds(&script, &Rules::new(), &[(Promise::G7, 1)]);
}

#[test]
fn p7_a_failed_call_that_was_stored_behind_a_later_one_is_found() {
    let script = |first: u64, second: u64| {
        Script::new()
            .call("k", 1, 0)
            .call("k", 2, 1)
            .failed("k", 1, 0)
            .receipt("k", 2, 1, second)
            .assigned("m", 1)
            .run_of("m", 1, "k", if first < second { 1 } else { 2 }, 0, Outcome::Ack)
            .run_of("m", 1, "k", if first < second { 2 } else { 1 }, 1, Outcome::Ack)
    };
    passes(&script(0, 1));
    finds(&script(1, 0), &Rules::new(), &[(Promise::G7, 1)]);
}

#[test]
fn p7_a_call_sent_again_behind_a_later_one_is_found() {
    let script = Script::new()
        .call("k", 1, 0)
        .call("k", 2, 1)
        .receipt("k", 1, 0, 0)
        .receipt("k", 2, 1, 1)
        .assigned("m", 1)
        .run_of("m", 1, "k", 1, 0, Outcome::Ack)
        .run_of("m", 1, "k", 2, 1, Outcome::Ack)
        .run_of("m", 1, "k", 1, 2, Outcome::Ack);
    finds(&script, &Rules::new(), &[(Promise::G7, 1)]);
}

#[test]
fn a_history_that_cannot_be_true_is_malformed() {
    let mut script = clean();
    script.events.retain(|event| event.kind != Kind::Start || event.offset != Some(1));
    finds(&script, &Rules::new(), &[(Promise::G1, 1), (Promise::Malformed, 1)]);
    let mut script = clean();
    script.events.last_mut().expect("is not empty").at_ns = 0;
    finds(&script, &Rules::new(), &[(Promise::Malformed, 1)]);
    let mut lone = Event::new(Kind::Start);
    lone.group = Some(name("g"));
    let mut script = Script::new();
    script.events = vec![lone];
    finds(&script, &Rules::new(), &[(Promise::Malformed, 1)]);
}

#[test]
fn findings_are_cut_and_counted() {
    let script = (0..30).fold(Script::new().assigned("m", 1), |script, offset| script.stored("k", offset));
    let verdict = judge(&script.events, &Rules::new().findings(3));
    assert_eq!((verdict.lost, verdict.findings.len()), (30, 3));
    assert!(verdict.to_string().ends_with("... and 27 more"), "{verdict}");
}
