//! D. Ownership: one owner after the other.

use std::time::Duration;

use ebus_core::{Delivery, LedgerLimits, Outcome};

use super::super::ctx::{Ctx, keys};
use super::super::failure::Checked;
use super::super::faulty::{Down, Faulty};
use super::super::handler::{fails, rejects};
use super::super::wait::Gate;
use crate::history::Kind;

fn begins(delivery: &Delivery, with: &str) -> bool {
    delivery.key().and_then(|key| key.as_str()).is_some_and(|key| key.starts_with(with))
}

/// d02: a member leaves cleanly: zero duplicates, also while one slow key holds the watermark back.
pub(super) async fn d02_leaves_cleanly_with_a_slow_key(ctx: &Ctx) -> Checked {
    const KEYS: usize = 50;
    let topic = ctx.topic("left", 4).await?;
    let group = ctx.group("g");
    // First in its partition, so that it holds back all the others of it.
    ctx.publish(&topic, &["slow"], 1..=3).await?;
    ctx.publish(&topic, &keys("k", KEYS), 1..=10).await?;
    let first = ctx
        .member("first", &group, &[&topic])
        .handler(
            |delivery| async move { if begins(&delivery, "slow") { fails("not yet") } else { Outcome::Ack } },
        )
        .start()
        .await?;
    ctx.until_handled(KEYS * 10).await?;
    let report = first.drain(ctx.patience()).await;
    assert!(report.committed.is_ok(), "{report:?}");
    let failing: usize = report.left.iter().map(|left| left.failing).sum();
    assert_eq!(failing, 1, "{report:?}");
    let _second = ctx.member("second", &group, &[&topic]).start().await?;
    // What the first had finished is not excused by anything.
    ctx.until_handled(KEYS * 10 + 3).await
}

/// d03: a member is killed: again only what ran or finished since the last commit.
pub(super) async fn d03_killed_runs_again_since_the_last_commit(ctx: &Ctx) -> Checked {
    const KEYS: usize = 30;
    let topic = ctx.topic("killed", 4).await?;
    let group = ctx.group("g");
    ctx.publish(&topic, &["slow"], 1..=3).await?;
    ctx.publish(&topic, &keys("k", KEYS), 1..=20).await?;
    let first = ctx
        .member("first", &group, &[&topic])
        .mortal()
        .handler(|delivery| async move {
            if begins(&delivery, "slow") {
                std::future::pending::<()>().await;
            }
            Outcome::Ack
        })
        .start()
        .await?;
    ctx.until_handled(KEYS * 20).await?;
    // Recorded: from here on none of these may run again, though a slow key holds the watermark back.
    ctx.until_some("all that finished is committed", || async {
        Ok((ctx.finished(&group, &topic).await? >= KEYS * 20).then_some(()))
    })
    .await?;
    let more = ctx.publish(&topic, &keys("k", KEYS), 21..=30).await?.len();
    ctx.until_handled(KEYS * 20 + more / 4).await?;
    first.kill().await?;
    let _second = ctx.member("second", &group, &[&topic]).start().await?;
    ctx.until_handled(KEYS * 30 + 3).await
}

/// A run that takes a moment to be cancelled.
struct SlowToCancel;

impl Drop for SlowToCancel {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// d03: a consumer that is dropped without a drain, in a process that lives on: what it ran is over before the next owner
/// begins.
pub(super) async fn d03_dropped_here_overlaps_nothing(ctx: &Ctx) -> Checked {
    const KEYS: usize = 30;
    let topic = ctx.topic("dropped", 2).await?;
    let group = ctx.group("g");
    ctx.publish(&topic, &keys("k", KEYS), 1..=3).await?;
    let first = ctx
        .member("m", &group, &[&topic])
        .handler(|_| async {
            let _slow = SlowToCancel;
            std::future::pending::<()>().await;
            Outcome::Ack
        })
        .start()
        .await?;
    ctx.until_some("every key runs", || async { Ok((first.state().await.in_flight == KEYS).then_some(())) })
        .await?;
    let name = first.name().to_owned();
    drop(first.forget());
    // The same process: the oracle does not excuse that it runs a key twice at once.
    let _second = ctx.member("m", &group, &[&topic]).again(&name).start().await?;
    ctx.until_handled(KEYS * 3).await
}

/// d13: take over, kill within one second, take over again: nothing that the first owner had finished runs again.
pub(super) async fn d13_take_over_kill_take_over(ctx: &Ctx) -> Checked {
    const KEYS: usize = 40;
    let topic = ctx.topic("twice", 2).await?;
    let group = ctx.group("g");
    let slow = ctx.publish(&topic, &keys("slow", 8), 1..=2).await?;
    ctx.publish(&topic, &keys("k", KEYS), 1..=10).await?;
    let slow_fails = |delivery: Delivery| async move {
        if begins(&delivery, "slow") { fails("not yet") } else { Outcome::Ack }
    };
    let first = ctx.member("first", &group, &[&topic]).handler(slow_fails).start().await?;
    ctx.until_handled(KEYS * 10).await?;
    let report = first.drain(ctx.patience()).await;
    assert!(report.committed.is_ok(), "{report:?}");
    let before = ctx.finished(&group, &topic).await?;
    let seconds: Vec<(u32, u64)> = (0..2)
        .filter_map(|partition| slow.iter().filter(|receipt| receipt.partition == partition).nth(1))
        .map(|receipt| (receipt.partition, receipt.offset))
        .collect();
    // The second owner finishes and commits one message behind one that fails, and is not allowed to read past what it
    // inherited: its commit must not forget that.
    let second = ctx
        .member("second", &group, &[&topic])
        .mortal()
        .options(|options| {
            let limits = LedgerLimits::default().with_max_span(3);
            options.with_limits(limits).with_commit_interval(Duration::from_millis(20))
        })
        .handler(move |delivery| {
            let place = (delivery.partition().partition, delivery.offset());
            let outcome = if seconds.contains(&place) { Outcome::Ack } else { fails("not yet") };
            async { outcome }
        })
        .start()
        .await?;
    ctx.until_some("the second owner has committed", || async {
        Ok((ctx.finished(&group, &topic).await? != before).then_some(()))
    })
    .await?;
    second.kill().await?;
    let _third = ctx.member("third", &group, &[&topic]).start().await?;
    ctx.until_handled(KEYS * 10 + 16).await
}

/// Nothing of what is given up starts again: neither what failed meanwhile, nor what is behind it. `since` is when all of it
/// was known to be given up.
fn starts_nothing_while_revoked(ctx: &Ctx, member: &str, since: u64) {
    let events = ctx.history.events();
    let released: Vec<_> = events
        .iter()
        .filter(|event| event.kind == Kind::Released && event.member.as_deref() == Some(member))
        .map(|event| (&event.topic, event.partition, event.epoch))
        .collect();
    assert!(!released.is_empty(), "nothing was released");
    for event in events.iter().filter(|event| event.kind == Kind::Start && event.at_ns > since) {
        let ownership = (&event.topic, event.partition, event.epoch);
        let is_its = event.member.as_deref() == Some(member) && released.contains(&ownership);
        assert!(!is_its, "started while its partition was being given up: {event:?}");
    }
}

/// d14: a message that waits for its retry, one whose dead letter is being published, and one that fails while its
/// partition is revoked: each runs or is dead-lettered at the next owner, in order.
pub(super) async fn d14_what_waits_at_a_hand_over_runs_at_the_next(ctx: &Ctx) -> Checked {
    const EACH: usize = 12;
    let within = Duration::from_secs(2);
    let topic = ctx.topic("waiting", 2).await?;
    let dead = ctx.topic("waiting.dead", 1).await?;
    let group = ctx.group("g");
    for label in ["waits", "dies", "runs"] {
        ctx.publish(&topic, &keys(label, EACH), 1..=2).await?;
    }
    let revoked = Gate::closed();
    let (gate, hangs) = (revoked.clone(), Faulty::new(ctx.publisher(), Down::Hangs));
    let first = ctx
        .member("first", &group, &[&topic])
        .options(|options| options.with_revoke_within(within))
        .pool(|pool| pool.with_dead_letter(dead.clone(), hangs.publisher()))
        .handler(move |delivery| {
            let gate = gate.clone();
            async move {
                if begins(&delivery, "dies") {
                    return rejects("for good");
                }
                if begins(&delivery, "waits") {
                    let Outcome::Retry { error, .. } = fails("in an hour") else { return Outcome::Ack };
                    return Outcome::Retry { after: Some(Duration::from_secs(3_600)), error };
                }
                gate.pass().await;
                fails("while it is revoked")
            }
        })
        .start()
        .await?;
    ctx.until("retries wait", || ctx.log.count(|ran| ran.key.starts_with("waits")) >= EACH).await?;
    ctx.until("dead letters are on their way", || hangs.refused() >= EACH as u64).await?;
    ctx.until_some("runs are open", || async { Ok((first.state().await.in_flight >= EACH).then_some(())) })
        .await?;
    let second = ctx.member("second", &group, &[&topic]).dead_letter(&dead).handler(|delivery| async move {
        let dies = begins(&delivery, "dies") && delivery.headers().first_str("ebus-version") == Some("1");
        if dies { rejects("for good") } else { Outcome::Ack }
    });
    if ctx.several() {
        // Half of the partitions go by a rebalance, the other half when the first leaves.
        let second = second.start().await?;
        ctx.until_some("a partition is being revoked", || async {
            Ok(first.state().await.partitions.iter().any(|partition| partition.ending).then_some(()))
        })
        .await?;
        let since = ctx.history.now_ns();
        revoked.open();
        second.until_it_owns(1).await?;
        starts_nothing_while_revoked(ctx, first.name(), since);
        let report = first.drain(within).await;
        assert!(report.committed.is_ok(), "{report:?}");
        second.until_it_owns(2).await?;
    } else {
        let pool = first.pool();
        let draining = tokio::spawn(async move { pool.drain(within).await });
        // Answered behind the drain: it has begun.
        let _ = first.state().await;
        let since = ctx.history.now_ns();
        revoked.open();
        let report = draining.await?;
        starts_nothing_while_revoked(ctx, first.name(), since);
        assert!(report.committed.is_ok(), "{report:?}");
        let _ = first.drain(within).await;
        let _ = second.start().await?;
    }
    ctx.until_handled(5 * EACH).await?;
    ctx.until_some("every dead letter is there", || async {
        Ok((ctx.count(&dead).await? >= EACH).then_some(()))
    })
    .await
}
