//! I. Life cycle: the end.

use std::time::Duration;

use ebus_core::{Error, ErrorKind, Outcome, Publish, ReadRange, SourceOptions, TopicSpec};
use futures_util::future::join_all;

use super::super::ctx::{Ctx, keys, message};
use super::super::failure::Checked;

/// i01: close twice, close from many tasks: one result.
pub(super) async fn i01_close_twice_one_result(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("closed", 2).await?;
    let member = ctx.member("m", &ctx.group("g"), &[&topic]).start().await?;
    ctx.publish(&topic, &keys("k", 20), 1..=5).await?;
    ctx.until_handled(100).await?;
    let pool = member.pool();
    let reports = join_all((0..8).map(|_| {
        let pool = pool.clone();
        let within = ctx.patience();
        tokio::spawn(async move { pool.drain(within).await })
    }))
    .await;
    let mut told = Vec::new();
    for report in reports {
        let report = report?;
        assert!(report.committed.is_ok(), "{report:?}");
        told.push((report.finished, report.left.len(), report.counters));
    }
    assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
    drop(pool);
    let _ = member.drain(ctx.patience()).await;
    let (backend, ..) = ctx.connect("closed").await?;
    backend.publisher().publish(Publish::new(topic.clone(), message("k0", 6))).await?;
    let closing = (0..8).map(|_| {
        let backend = backend.clone();
        let within = ctx.patience();
        tokio::spawn(async move { backend.close(within).await })
    });
    for closed in join_all(closing).await {
        closed??;
    }
    backend.close(ctx.patience()).await?;
    ctx.rules(|rules| rules.unfinished_ok(ctx.group("g").as_str()));
    Ok(())
}

/// i06: times that no clock can hold are as good as for ever, and nothing panics.
pub(super) async fn i06_no_time_is_too_long(ctx: &Ctx) -> Checked {
    let (topic, group) = (ctx.topic("long", 2).await?, ctx.group("g"));
    let member = ctx.member("m", &group, &[&topic]);
    let member = member
        .options(|options| options.with_commit_interval(Duration::MAX).with_revoke_within(Duration::MAX));
    let member = member.pool(|pool| pool.with_stuck_after(Duration::MAX)).start().await?;
    ctx.publish(&topic, &keys("k", 20), 1..=5).await?;
    ctx.until_handled(100).await?;
    let report = member.drain(Duration::MAX).await;
    assert!(report.committed.is_ok(), "{report:?}");
    assert_eq!(ctx.finished(&group, &topic).await?, 100, "the last commit is made at the end");
    let (backend, ..) = ctx.connect("closed").await?;
    backend.close(Duration::MAX).await?;
    Ok(())
}

/// i02: after close everything says `Closed`.
pub(super) async fn i02_after_close_everything_says_closed(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("closed", 1).await?;
    let (backend, ..) = ctx.connect("closed").await?;
    let mut publisher = backend.publisher();
    publisher.publish(Publish::new(topic.clone(), message("k", 1))).await?;
    backend.close(ctx.patience()).await?;
    let group = ctx.group("g");
    let publish = || Publish::new(topic.clone(), message("k", 2));
    let mut fresh = backend.publisher();
    let mut told: Vec<(&str, Option<Error>)> = vec![
        ("publish", publisher.publish(publish()).await.err()),
        ("publish by a new publisher", fresh.publish(publish()).await.err()),
        ("source", backend.source(SourceOptions::new(group.clone(), vec![topic.clone()])).await.err()),
        ("create_topic", backend.create_topic(&TopicSpec::new(topic.clone(), 1)).await.err()),
        ("describe_topic", backend.describe_topic(&topic).await.err()),
        ("committed", backend.committed(&group, &topic).await.err()),
    ];
    let range = ReadRange::new(topic.clone(), 0, 0, ebus_core::NextOffset(1));
    told.push(("read", backend.read(range).await.err()));
    let member = ctx.member("m", &group, &[&topic]).start().await?;
    ctx.until_handled(1).await?;
    let pool = member.pool();
    let _ = pool.drain(ctx.patience()).await;
    told.push(("pause", pool.pause(&topic).err()));
    told.push(("resume", pool.resume(&topic).err()));
    told.push(("subscribe", member.subscribe(ctx, &topic, |_| async { Outcome::Ack }).err()));
    for (what, error) in told {
        let Some(error) = error else { panic!("{what} works after close") };
        assert_eq!(error.kind(), ErrorKind::Closed, "{what}: {error}");
    }
    // Asking how it is is no error, and no wait.
    let _ = tokio::time::timeout(Duration::from_secs(5), pool.state()).await?;
    assert_eq!(ctx.count(&topic).await?, 1, "something was sent after close");
    Ok(())
}
