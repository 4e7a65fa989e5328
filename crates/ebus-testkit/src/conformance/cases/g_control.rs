//! G. Time and control.

use std::time::{Duration, Instant};

use ebus_core::Outcome;

use super::super::ctx::{Ctx, keys};
use super::super::failure::Checked;
use super::super::wait::Gate;

/// g01: drain: what runs finishes uncancelled, nothing new starts, zero duplicates afterwards.
pub(super) async fn g01_drain_finishes_what_runs(ctx: &Ctx) -> Checked {
    const SLOTS: usize = 8;
    const KEYS: usize = 100;
    let topic = ctx.topic("drained", 2).await?;
    let group = ctx.group("g");
    ctx.publish(&topic, &keys("k", KEYS), 1..=1).await?;
    let gate = Gate::closed();
    let passes = gate.clone();
    let first = ctx
        .member("first", &group, &[&topic])
        .pool(|pool| pool.with_max_in_flight(SLOTS))
        .handler(move |_| {
            let passes = passes.clone();
            async move {
                passes.pass().await;
                Outcome::Ack
            }
        })
        .start()
        .await?;
    ctx.until_some("all slots are taken", || async {
        Ok((first.state().await.in_flight == SLOTS).then_some(()))
    })
    .await?;
    let (pool, patience) = (first.pool(), ctx.patience());
    let draining = tokio::spawn(async move { pool.drain(patience).await });
    // The drain is asked for once its task has run; what is answered after that is answered by a pool that drains.
    ctx.until_some("the drain has begun", || async {
        let state = first.state().await;
        Ok(state.partitions.iter().all(|partition| partition.ending).then_some(()))
    })
    .await?;
    gate.open();
    let report = draining.await?;
    assert_eq!((report.finished, ctx.log.acked()), (SLOTS as u64, SLOTS), "{report:?}");
    assert!(report.committed.is_ok(), "{report:?}");
    assert_eq!(report.left.iter().map(|left| left.cancelled + left.failing).sum::<usize>(), 0, "{report:?}");
    let _ = first.drain(ctx.patience()).await;
    let _second = ctx.member("second", &group, &[&topic]).start().await?;
    ctx.until_handled(KEYS).await?;
    assert_eq!(ctx.log.all().len(), KEYS, "something ran twice");
    Ok(())
}

/// g01: drain: what runs longer than the deadline is cancelled, and runs at the next owner.
pub(super) async fn g01_drain_cancels_at_its_deadline(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("cancelled", 1).await?;
    let group = ctx.group("g");
    ctx.publish(&topic, &["never", "k"], 1..=2).await?;
    let first = ctx
        .member("first", &group, &[&topic])
        .handler(|delivery| async move {
            if delivery.key().is_some_and(|key| key.as_bytes() == b"never") {
                std::future::pending::<()>().await;
            }
            Outcome::Ack
        })
        .start()
        .await?;
    ctx.until_handled(2).await?;
    let (within, began) = (Duration::from_millis(500), Instant::now());
    let report = first.drain(within).await;
    // Part of the time is kept for the last commit.
    assert!(began.elapsed() >= within / 2, "it did not wait for what runs");
    assert!(began.elapsed() < within + ctx.patience(), "it took {:?}", began.elapsed());
    assert!(report.committed.is_ok(), "{report:?}");
    assert_eq!(report.left.iter().map(|left| left.cancelled).sum::<usize>(), 1, "{report:?}");
    assert_eq!(report.left.iter().map(|left| left.queued).sum::<usize>(), 1, "{report:?}");
    let _second = ctx.member("second", &group, &[&topic]).start().await?;
    ctx.until_handled(4).await?;
    assert_eq!(ctx.log.versions("k"), [1, 2], "what was finished ran again");
    Ok(())
}

/// g04: subscribe a second topic later: it is consumed at once.
pub(super) async fn g04_subscribe_a_second_topic_later(ctx: &Ctx) -> Checked {
    let (one, two) = (ctx.topic("one", 2).await?, ctx.topic("two", 2).await?);
    let names = keys("k", 10);
    let member = ctx.member("m", &ctx.group("g"), &[&one]).start().await?;
    ctx.publish(&one, &names, 1..=5).await?;
    ctx.publish(&two, &names, 1..=5).await?;
    ctx.until_handled(50).await?;
    member.subscribe(ctx, &two, |_| async { Outcome::Ack })?;
    ctx.until_handled(100).await?;
    // Both go on.
    ctx.publish(&one, &names, 6..=6).await?;
    ctx.publish(&two, &names, 6..=6).await?;
    ctx.until_handled(120).await
}
