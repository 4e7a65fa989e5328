//! C. Failure of a handler: at most once, and dropped on failure (c10).

use std::sync::Arc;
use std::time::Duration;

use ebus_core::{Delivery, Outcome};
use ebus_pool::Doing;
use parking_lot::Mutex;

use super::super::ctx::{Ctx, keys};
use super::super::failure::Checked;
use super::super::handler::{fails, rejects};
use super::super::wait::Gate;

const KEYS: usize = 10;
const VERSIONS: u64 = 10;

/// Fails in its own way in the middle of three keys.
fn troubled(delivery: &Delivery) -> Outcome {
    let version = crate::record::version_from_header(delivery.message()).unwrap_or_default();
    match delivery.key().and_then(|key| key.as_str()) {
        Some("k1") if version == 5 => fails("on purpose"),
        Some("k2") if version == 5 => rejects("on purpose"),
        Some("k3") if version == 5 => panic!("on purpose"),
        _ => Outcome::Ack,
    }
}

/// c10: nothing starts before the broker says that it is committed; nothing runs twice, failed or not.
pub(super) async fn c10_at_most_once_is_committed_before_it_starts(ctx: &Ctx) -> Checked {
    let (topic, group) = (ctx.topic("once", 2).await?, ctx.group("g"));
    let all = ctx.publish(&topic, &keys("k", KEYS), 1..=VERSIONS).await?.len();
    let early = Arc::new(Mutex::new(Vec::new()));
    let (control, ours, noted) = (ctx.control.clone(), group.clone(), early.clone());
    let member = ctx
        .member("m", &group, &[&topic])
        .at_most_once()
        .handler(move |delivery| {
            let (control, group, early) = (control.clone(), ours.clone(), noted.clone());
            async move {
                let place = delivery.partition().partition;
                let committed = control.committed(&group, delivery.topic()).await.unwrap_or_default();
                let position = committed.into_iter().find(|one| one.partition == place);
                let covers = position.and_then(|one| one.position).is_some_and(|position| {
                    delivery.offset() < position.watermark.0 || position.finished.contains(delivery.offset())
                });
                if !covers {
                    early.lock().push((place, delivery.offset()));
                }
                troubled(&delivery)
            }
        })
        .start()
        .await?;
    ctx.until("all are over", || {
        let counters = member.pool().counters();
        (counters.handled + counters.dropped) as usize >= all
    })
    .await?;
    assert_eq!(*early.lock(), [], "started before they were committed");
    let counters = member.pool().counters();
    assert_eq!((counters.dropped, counters.panics, counters.retries, counters.lost), (3, 1, 0, 0));
    assert_eq!(ctx.log.handled(), all - 3);
    assert_eq!(ctx.log.versions("k1"), (1..=VERSIONS).collect::<Vec<_>>(), "it goes on behind what failed");
    Ok(())
}

/// c10: while the broker refuses commits nothing starts, and it is visible why; then all of it runs, once.
pub(super) async fn c10_while_commits_are_refused_nothing_starts(ctx: &Ctx) -> Checked {
    let (topic, group) = (ctx.topic("once", 1).await?, ctx.group("g"));
    let member = ctx
        .member("m", &group, &[&topic])
        .at_most_once()
        .pool(|pool| pool.with_stuck_after(Duration::from_millis(200)))
        .start()
        .await?;
    member.until_it_owns(1).await?;
    ctx.faults().commits_fail(&group, true).await?;
    let all = ctx.publish(&topic, &keys("k", KEYS), 1..=3).await?.len();
    ctx.until_some("they wait for their commit", || async {
        let state = member.state().await;
        Ok(state.stuck.iter().any(|stuck| stuck.doing == Doing::Committing).then_some(()))
    })
    .await?;
    assert_eq!(ctx.log.handled(), 0, "started without a commit");
    ctx.faults().commits_fail(&group, false).await?;
    ctx.until_handled(all).await
}

/// c10: killed between commit and start: what was committed is lost, bounded by what may be in flight, and nothing runs twice.
pub(super) async fn c10_killed_between_commit_and_start_nothing_runs_twice(ctx: &Ctx) -> Checked {
    const IN_FLIGHT: usize = 4;
    let (topic, group) = (ctx.topic("once", 1).await?, ctx.group("g"));
    let all = ctx.publish(&topic, &keys("k", 20), 1..=3).await?.len();
    let first = ctx
        .member("first", &group, &[&topic])
        .mortal()
        .at_most_once()
        .pool(|pool| pool.with_shards(1).with_max_in_flight(IN_FLIGHT))
        .handler(|_| std::future::pending())
        .start()
        .await?;
    ctx.until_some("as much as may be is committed ahead", || async {
        let ran = first.state().await.in_flight == IN_FLIGHT;
        Ok((ran && ctx.finished(&group, &topic).await? == 2 * IN_FLIGHT).then_some(()))
    })
    .await?;
    first.kill().await?;
    let second = ctx.member("second", &group, &[&topic]).at_most_once().start().await?;
    ctx.until_handled(all - 2 * IN_FLIGHT).await?;
    let report = second.drain(ctx.patience()).await;
    assert_eq!((report.counters.lost, report.left.len()), (0, 0), "{report:?}");
    // Not one more, and none that the first had started: that is the oracle's.
    assert_eq!(ctx.log.handled(), all - 2 * IN_FLIGHT);
    Ok(())
}

/// c10: a member that leaves and has the time finishes what is committed: nothing is lost, nothing runs twice.
pub(super) async fn c10_at_most_once_leaves_without_a_loss(ctx: &Ctx) -> Checked {
    let (topic, group) = (ctx.topic("once", 2).await?, ctx.group("g"));
    let all = ctx.publish(&topic, &keys("k", KEYS), 1..=20).await?.len();
    for number in 0..3 {
        let member = ctx
            .member("m", &group, &[&topic])
            .at_most_once()
            .handler(|_| async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Outcome::Ack
            })
            .start()
            .await?;
        let enough = all * (number + 1) / 3;
        ctx.until("it has handled its part", || ctx.log.handled() >= enough).await?;
        let report = member.drain(ctx.patience()).await;
        assert!(report.committed.is_ok(), "{report:?}");
        assert_eq!((report.counters.lost, report.counters.cancelled), (0, 0), "{report:?}");
    }
    assert_eq!(ctx.log.handled(), all);
    Ok(())
}

/// c10: partitions that move under load take nothing committed with them.
pub(super) async fn c10_at_most_once_is_handed_over_under_load(ctx: &Ctx) -> Checked {
    let (topic, group) = (ctx.topic("once", 4).await?, ctx.group("g"));
    let all = ctx.publish(&topic, &keys("k", 40), 1..=20).await?.len();
    let slow = Gate::closed();
    let start = |label: &'static str| {
        let slow = slow.clone();
        let member =
            ctx.member(label, &group, &[&topic]).at_most_once().pool(|pool| pool.with_max_in_flight(8));
        member
            .handler(move |_| {
                let slow = slow.clone();
                async move {
                    if !slow.is_open() {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Outcome::Ack
                }
            })
            .start()
    };
    let first = start("first").await?;
    ctx.until("some are handled", || ctx.log.handled() > 20).await?;
    let second = start("second").await?;
    second.until_it_owns(1).await?;
    let report = first.drain(ctx.patience()).await;
    assert_eq!((report.counters.lost, report.counters.cancelled), (0, 0), "{report:?}");
    slow.open();
    ctx.until_handled(all).await?;
    let report = second.drain(ctx.patience()).await;
    assert_eq!((report.counters.lost, report.counters.cancelled), (0, 0), "{report:?}");
    Ok(())
}

/// c10: `drop_on_failure`: exactly the failing messages are lost, and counted; a hand-over repeats nothing of them.
pub(super) async fn c10_drop_on_failure_loses_exactly_what_fails(ctx: &Ctx) -> Checked {
    let (topic, group) = (ctx.topic("dropped", 2).await?, ctx.group("g"));
    let all = ctx.publish(&topic, &keys("k", KEYS), 1..=VERSIONS).await?.len();
    let first = ctx
        .member("first", &group, &[&topic])
        .drop_on_failure()
        .handler(|delivery| async move { troubled(&delivery) })
        .start()
        .await?;
    ctx.until_handled(all - 3).await?;
    let report = first.drain(ctx.patience()).await;
    assert!(report.committed.is_ok() && report.left.is_empty(), "{report:?}");
    assert_eq!((report.counters.dropped, report.counters.panics, report.counters.retries), (3, 1, 0));
    let more = ctx.publish(&topic, &keys("k", KEYS), VERSIONS + 1..=VERSIONS + 1).await?.len();
    let _second = ctx.member("second", &group, &[&topic]).drop_on_failure().start().await?;
    ctx.until_handled(all - 3 + more).await?;
    for key in ["k1", "k2"] {
        assert_eq!(ctx.log.versions(key), (1..=VERSIONS + 1).collect::<Vec<_>>(), "each once, in order");
    }
    Ok(())
}
