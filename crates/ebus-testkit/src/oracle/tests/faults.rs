//! Excuses that are bound to recorded faults: each is worth something for its own member and time, and nothing else.

use std::time::Duration;

use super::{Promise, Rules, Script, finds};
use crate::history::{Kind, Outcome};

const SECOND: Duration = Duration::from_secs(1);

/// Committed within a second, and recovered from a fault within two.
fn strict() -> Rules {
    Rules::new().commit_within(SECOND).only_faults_excuse(2 * SECOND)
}

/// `m` finishes a message and loses its partition, `n` runs it again.
fn again(between: impl FnOnce(Script) -> Script) -> Script {
    let script = Script::new().stored("k", 0).assigned("m", 1).run("m", 1, "k", 0, Outcome::Ack);
    between(script).assigned("n", 2).run("n", 2, "k", 0, Outcome::Ack)
}

#[test]
fn p6_a_loss_excuses_only_with_a_fault_of_that_member() {
    finds(&again(|script| script.lost("m", 1)), &strict(), &[(Promise::G6, 1)]);
    finds(&again(|script| script.released("m", 1, Outcome::Refused)), &strict(), &[(Promise::G6, 1)]);
    let killed = |who: &'static str| again(move |script| script.lost("m", 1).fault(Kind::Killed, who));
    finds(&killed("n"), &strict(), &[(Promise::G6, 1)]);
    // As `merge` puts it: the loss has the time of the kill.
    let mut script = killed("m");
    let at = script.events.iter().position(|event| event.kind == Kind::Killed).expect("is there");
    script.events[at - 1].at_ns = script.events[at].at_ns;
    finds(&script, &strict(), &[]);
    let cut = |who: &'static str| again(move |script| script.fault(Kind::Cut, who).lost("m", 1));
    finds(&cut("m"), &strict(), &[]);
    finds(&cut("n"), &strict(), &[(Promise::G6, 1)]);
    finds(&again(|script| script.fault(Kind::Down, "node-1").lost("m", 1)), &strict(), &[]);
}

#[test]
fn p6_a_fault_that_is_over_excuses_nothing() {
    let healed = |after: Duration| {
        again(move |script| {
            script.fault(Kind::Cut, "m").fault(Kind::Healed, "m").after(after).released(
                "m",
                1,
                Outcome::Refused,
            )
        })
    };
    finds(&healed(SECOND), &strict(), &[]);
    finds(&healed(3 * SECOND), &strict(), &[(Promise::G6, 1)]);
}

#[test]
fn p6_what_a_fault_kept_from_being_committed_may_run_again_after_a_kill() {
    let script = |before: Duration, healed: Duration| {
        let mut script = again(move |script| {
            script
                .after(before)
                .fault(Kind::Cut, "m")
                .after(10 * SECOND)
                .fault(Kind::Healed, "m")
                .after(healed)
                .lost("m", 1)
                .fault(Kind::Killed, "m")
        });
        let at = script.events.iter().position(|event| event.kind == Kind::Killed).expect("is there");
        script.events[at - 1].at_ns = script.events[at].at_ns;
        script
    };
    finds(&script(Duration::ZERO, SECOND), &strict(), &[]);
    // It was committed before the cut, or could be after it.
    finds(&script(2 * SECOND, SECOND), &strict(), &[(Promise::G6, 1)]);
    finds(&script(Duration::ZERO, 4 * SECOND), &strict(), &[(Promise::G6, 1)]);
}

/// `m` is in trouble while it has a run open, `n` takes over, and `m` learns of it later.
fn beside(begin: Kind, end: Kind, who: &str, late: Duration) -> Script {
    Script::new()
        .stored("k", 0)
        .assigned("m", 1)
        .start("m", 1, "k", 0)
        .fault(begin, who)
        .after(10 * SECOND)
        .assigned("n", 2)
        .start("n", 2, "k", 0)
        .after(SECOND)
        .fault(end, who)
        .after(late)
        .lost("m", 1)
        .end("m", 1, "k", 0, Outcome::Cancelled)
        .end("n", 2, "k", 0, Outcome::Ack)
}

#[test]
fn p3_only_a_member_in_trouble_may_be_unaware_of_its_loss() {
    let stopped = |who| beside(Kind::Stopped, Kind::Continued, who, SECOND);
    finds(&stopped("m"), &strict(), &[]);
    finds(&stopped("o"), &strict(), &[(Promise::G3, 1)]);
    let cut = |who| beside(Kind::Cut, Kind::Healed, who, SECOND);
    finds(&cut("m"), &strict(), &[]);
    finds(&cut("o"), &strict(), &[(Promise::G3, 1)]);
}

#[test]
fn p3_with_leases_only_a_stopped_member_is_unaware() {
    let rules = strict().leases();
    finds(&beside(Kind::Stopped, Kind::Continued, "m", SECOND), &rules, &[]);
    finds(&beside(Kind::Cut, Kind::Healed, "m", SECOND), &rules, &[(Promise::G3, 1)]);
    finds(&beside(Kind::Down, Kind::Up, "node-1", SECOND), &rules, &[(Promise::G3, 1)]);
}

#[test]
fn p3_an_overlap_long_after_the_fault_is_found() {
    let script = Script::new()
        .stored("k", 0)
        .assigned("m", 1)
        .start("m", 1, "k", 0)
        .fault(Kind::Stopped, "m")
        .fault(Kind::Continued, "m")
        .after(3 * SECOND)
        .assigned("n", 2)
        .start("n", 2, "k", 0)
        .lost("m", 1)
        .end("m", 1, "k", 0, Outcome::Cancelled)
        .end("n", 2, "k", 0, Outcome::Ack);
    finds(&script, &strict(), &[(Promise::G3, 1)]);
}

#[test]
fn p3_a_stopped_member_cannot_cancel() {
    let script = |who: &str| {
        Script::new()
            .stored("k", 0)
            .assigned("m", 1)
            .start("m", 1, "k", 0)
            .fault(Kind::Cut, "m")
            .lost("m", 1)
            .fault(Kind::Stopped, who)
            .after(10 * SECOND)
            .fault(Kind::Continued, who)
            .end("m", 1, "k", 0, Outcome::Cancelled)
            .assigned("m", 2)
            .run("m", 2, "k", 0, Outcome::Ack)
    };
    finds(&script("m"), &strict(), &[]);
    finds(&script("n"), &strict(), &[(Promise::G3, 1)]);
}

#[test]
fn a_fault_that_ends_and_never_began_is_malformed() {
    let script = Script::new().fault(Kind::Cut, "m").fault(Kind::Healed, "n");
    finds(&script, &strict(), &[(Promise::Malformed, 1)]);
}

#[test]
fn p6_a_group_that_waits_for_the_dead_holds_commits_up_and_excuses_no_loss() {
    // `o` is killed, `m` finishes something that cannot be committed, and is killed before the group goes on.
    let script = |after: Duration, fault: Option<&str>| {
        let mut script = Script::new()
            .stored("k", 0)
            .assigned("m", 1)
            .fault(Kind::Killed, "o")
            .after(after)
            .run("m", 1, "k", 0, Outcome::Ack)
            .after(3 * SECOND)
            .lost("m", 1);
        if let Some(fault) = fault {
            script = script.fault(Kind::Killed, fault);
            let killed = script.events.len() - 1;
            script.events[killed - 1].at_ns = script.events[killed].at_ns;
        }
        script.assigned("n", 2).run("n", 2, "k", 0, Outcome::Ack)
    };
    let rules = strict().group_waits(6 * SECOND);
    finds(&script(SECOND, Some("m")), &rules, &[]);
    finds(&script(SECOND, Some("m")), &strict(), &[(Promise::G6, 1)]);
    finds(&script(7 * SECOND, Some("m")), &rules, &[(Promise::G6, 1)]);
    finds(&script(SECOND, None), &rules, &[(Promise::G6, 1)]);
}

/// `m` finishes a message while commits are held up as `before` says, `between` happens, and `m` is killed seconds later.
fn held_up(before: impl FnOnce(Script) -> Script, between: impl FnOnce(Script) -> Script) -> Script {
    let script = before(Script::new().stored("k", 0).assigned("m", 1)).run("m", 1, "k", 0, Outcome::Ack);
    let mut script =
        between(script.after(3 * SECOND)).after(SECOND / 2).lost("m", 1).fault(Kind::Killed, "m");
    let killed = script.events.len() - 1;
    script.events[killed - 1].at_ns = script.events[killed].at_ns;
    script.assigned("n", 2).run("n", 2, "k", 0, Outcome::Ack)
}

#[test]
fn p6_a_publisher_in_trouble_holds_no_commits_up() {
    let rules = strict().group_waits(10 * SECOND);
    let killed = |who| held_up(|script| script.call("other", 9, 9).fault(Kind::Killed, who), |script| script);
    finds(&killed("p"), &rules, &[(Promise::G6, 1)]);
    finds(&killed("o"), &rules, &[]);
}

#[test]
fn p6_a_group_waits_when_one_comes_back_and_not_longer() {
    let back = |since: Duration| {
        let stopped = |script: Script| script.fault(Kind::Stopped, "o").after(20 * SECOND);
        held_up(|script| stopped(script).fault(Kind::Continued, "o").after(since), |script| script)
    };
    let rules = strict().group_waits(6 * SECOND);
    finds(&back(SECOND), &rules, &[]);
    finds(&back(SECOND), &strict(), &[(Promise::G6, 1)]);
    finds(&back(7 * SECOND), &rules, &[(Promise::G6, 1)]);
}

#[test]
fn p6_a_group_waits_while_a_revocation_is_held_and_not_longer() {
    let held = |released: Duration| {
        held_up(
            |script| {
                script
                    .in_partition(1, |script| script.assigned("o", 1).ownership(Kind::Revoking, "o", 1, None))
            },
            |script| {
                let script = script.in_partition(1, |script| script.released("o", 1, Outcome::Accepted));
                script.after(released)
            },
        )
    };
    let rules = strict().group_waits(SECOND);
    finds(&held(Duration::ZERO), &rules, &[]);
    finds(&held(2 * SECOND), &rules, &[(Promise::G6, 1)]);
    finds(&held(Duration::ZERO), &strict(), &[(Promise::G6, 1)]);
}

#[test]
fn p6_a_last_commit_is_refused_to_who_leaves_while_the_group_waits() {
    let script = |waited: Duration, last: Outcome| {
        let script = Script::new().stored("k", 0).assigned("m", 1).fault(Kind::Stopped, "o").after(waited);
        let script = script.run("m", 1, "k", 0, Outcome::Ack).after(2 * SECOND).released("m", 1, last);
        script.fault(Kind::Continued, "o").assigned("n", 2).run("n", 2, "k", 0, Outcome::Ack)
    };
    let rules = strict().group_waits(6 * SECOND);
    finds(&script(SECOND, Outcome::Refused), &rules, &[]);
    finds(&script(SECOND, Outcome::Refused), &strict(), &[(Promise::G6, 1)]);
    finds(&script(SECOND, Outcome::Accepted), &rules, &[(Promise::G6, 1)]);
    finds(&script(7 * SECOND, Outcome::Refused), &rules, &[(Promise::G6, 1)]);
}

#[test]
fn p6_nobody_waits_where_later_commits_are_accepted() {
    let rules = strict().group_waits(10 * SECOND);
    let with = |watermarks: &'static [u64], epoch| {
        held_up(
            |script| script.fault(Kind::Killed, "o"),
            move |script| {
                let seen = |script: Script, at: &u64| script.committed_by(epoch, 0, &[(5, *at)]);
                watermarks.iter().fold(script, seen)
            },
        )
    };
    // One may have been on its way since before; what another owner commits says nothing.
    for (seen, epoch, expected) in
        [(&[6, 6, 7][..], 1, 0), (&[6, 7, 7], 1, 0), (&[6, 7, 8], 2, 0), (&[6, 7, 8], 1, 1)]
    {
        let script = with(seen, epoch);
        let found = super::judge(&script.events, &rules.clone().unfinished_ok("g"));
        assert_eq!(found.duplicates, expected, "{seen:?} of epoch {epoch}: {found}");
    }
}
