//! E. Watermark and restart.

use std::time::Duration;

use ebus_core::{NextOffset, Outcome, StartPosition};
use parking_lot::Mutex;

use super::super::ctx::{Ctx, keys};
use super::super::failure::Checked;
use super::super::handler::fails;
use super::super::wait::Gate;

/// e01: restart resumes after the last finished message: no replay, no gap.
pub(super) async fn e01_restart_resumes(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("restarted", 3).await?;
    let group = ctx.group("g");
    let names = keys("k", 30);
    for round in 1..=4 {
        // Some while nobody is there, some while somebody is.
        ctx.publish(&topic, &names, round * 10 - 9..=round * 10 - 5).await?;
        let member = ctx.member("m", &group, &[&topic]).start().await?;
        ctx.publish(&topic, &names, round * 10 - 4..=round * 10).await?;
        ctx.until_handled(30 * 10 * round as usize).await?;
        let report = member.drain(ctx.patience()).await;
        assert!(report.committed.is_ok(), "{report:?}");
        assert!(report.left.is_empty(), "{report:?}");
    }
    assert_eq!(ctx.log.all().len(), 1_200, "something ran twice");
    let ends: u64 = ctx.ends(&topic).await?.iter().map(|end| end.0).sum();
    let starts: u64 = ctx.control.describe_topic(&topic).await?.partitions.iter().map(|p| p.earliest).sum();
    assert!(ends >= starts + 1_200);
    Ok(())
}

/// e02: commit never passes an unfinished message, whatever finishes around it; never moves back.
pub(super) async fn e02_commit_never_passes_an_unfinished(ctx: &Ctx) -> Checked {
    const KEYS: usize = 60;
    let topic = ctx.topic("unfinished", 2).await?;
    let group = ctx.group("g");
    let held = keys("held", 6);
    ctx.publish(&topic, &held, 1..=2).await?;
    ctx.publish(&topic, &keys("k", KEYS), 1..=20).await?;
    let gate = Gate::closed();
    let (passes, salt) = (gate.clone(), ctx.rng.next());
    let _member = ctx
        .member("m", &group, &[&topic])
        .options(|options| options.with_commit_interval(Duration::from_millis(20)))
        .handler(move |delivery| {
            let passes = passes.clone();
            async move {
                if delivery.key().and_then(|key| key.as_str()).is_some_and(|key| key.starts_with("held")) {
                    passes.pass().await;
                    return Outcome::Ack;
                }
                let dice = (delivery.offset() ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                tokio::time::sleep(Duration::from_micros(dice % 5_000)).await;
                if dice % 7 == 0 && delivery.attempt() == 1 { fails("once") } else { Outcome::Ack }
            }
        })
        .start()
        .await?;
    // Each look is recorded, and the oracle holds it against what had finished by then.
    let last = Mutex::new([NextOffset(0); 2]);
    let all = KEYS * 20 + held.len() * 2;
    ctx.until_some("all is committed", || async {
        if ctx.log.handled() >= KEYS * 20 {
            gate.open();
        }
        let committed = ctx.committed(&group, &topic).await?;
        for one in &committed {
            let Some(position) = &one.position else { continue };
            let mut last = last.lock();
            let before = std::mem::replace(&mut last[one.partition as usize], position.watermark);
            assert!(before <= position.watermark, "{before} moved back to {}", position.watermark);
        }
        Ok((ctx.finished_in(&topic, &committed) >= all).then_some(()))
    })
    .await
}

/// e05: closing never deletes durable consumers, streams or groups.
pub(super) async fn e05_closing_deletes_nothing(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("kept", 2).await?;
    let group = ctx.group("g");
    let names = keys("k", 10);
    ctx.publish(&topic, &names, 1..=5).await?;
    let member = ctx.member("m", &group, &[&topic]).start().await?;
    ctx.until_handled(50).await?;
    let before = (ctx.ends(&topic).await?, ctx.read_all(&topic).await?.len());
    // Leaves the group, and closes the only connection that it had.
    let report = member.drain(ctx.patience()).await;
    assert!(report.committed.is_ok(), "{report:?}");
    let committed = ctx.committed(&group, &topic).await?;
    assert_eq!(ctx.finished_in(&topic, &committed), 50);
    let other = ctx.another("later").await?;
    assert_eq!(other.describe_topic(&topic).await?.partitions.len(), 2);
    assert_eq!((ctx.ends(&topic).await?, ctx.read_all(&topic).await?.len()), before);
    assert_eq!(other.committed(&group, &topic).await?, committed);
    let _again = ctx.member("m", &group, &[&topic]).start().await?;
    ctx.publish(&topic, &names, 6..=6).await?;
    ctx.until_handled(60).await?;
    assert_eq!(ctx.log.all().len(), 60, "something ran twice");
    Ok(())
}

/// e07: `latest`: killed before the first commit could be due, nothing published after `start` returned is missed.
pub(super) async fn e07_latest_misses_nothing_after_start(ctx: &Ctx) -> Checked {
    const KEYS: usize = 20;
    let topic = ctx.topic("latest", 3).await?;
    let group = ctx.group("g");
    let before = ctx.publish(&topic, &keys("before", KEYS), 1..=3).await?;
    for (partition, begin) in (0..).zip(ctx.ends(&topic).await?) {
        ctx.rules(|rules| rules.begins_at(group.as_str(), topic.as_str(), partition, begin.0));
    }
    let latest = |label: &str| {
        ctx.member(label, &group, &[&topic]).options(|options| {
            let options = options.with_commit_interval(Duration::from_secs(3_600));
            options.with_start(StartPosition::Latest)
        })
    };
    let first = latest("first")
        .mortal()
        .handler(|_| async {
            std::future::pending::<()>().await;
            Outcome::Ack
        })
        .start()
        .await?;
    ctx.publish(&topic, &keys("after", KEYS), 1..=2).await?;
    first.kill().await?;
    ctx.publish(&topic, &keys("after", KEYS), 3..=4).await?;
    let _second = latest("second").start().await?;
    ctx.until_handled(KEYS * 4).await?;
    let old = ctx.log.count(|ran| ran.key.starts_with("before"));
    assert_eq!(old, 0, "{old} of the {} from before were handled", before.len());
    Ok(())
}
