//! D. Ownership: load that members come to and go from.

use std::time::Duration;

use ebus_core::Outcome;
use tokio::time::Instant;

use super::super::ctx::{Ctx, keys};
use super::super::failure::Checked;

/// d09: two members, handlers of 80 ms, seconds of work queued, a third joins and leaves: no duplicates, no order violation,
/// no overlap.
pub(super) async fn d09_a_queued_backlog_is_handed_over(ctx: &Ctx) -> Checked {
    const KEYS: usize = 120;
    const EACH: u64 = 30;
    const SLOTS: usize = 24;
    let topic = ctx.topic("queued", 6).await?;
    let group = ctx.group("g");
    let count = ctx.publish(&topic, &keys("k", KEYS), 1..=EACH).await?.len();
    let member = |label: &str| {
        ctx.member(label, &group, &[&topic]).pool(|pool| pool.with_max_in_flight(SLOTS)).handler(|_| async {
            tokio::time::sleep(Duration::from_millis(80)).await;
            Outcome::Ack
        })
    };
    let _first = member("first").start().await?;
    let _second = member("second").start().await?;
    ctx.until("work has begun", || ctx.log.acked() > 2 * SLOTS).await?;
    let third = member("third").start().await?;
    third.until_it_owns(1).await?;
    let its = third.name().to_owned();
    ctx.until("the third has its share", || ctx.log.count(|ran| ran.member == its) >= SLOTS).await?;
    assert!(ctx.log.acked() < count, "nothing was queued any more when the third came");
    let report = third.drain(ctx.patience()).await;
    assert!(report.committed.is_ok(), "{report:?}");
    ctx.until_handled(count).await?;
    assert_eq!(ctx.log.all().len(), count, "something ran twice");
    Ok(())
}

/// d10: random joins, leaves and kills, by the seed.
pub(super) async fn d10_random_joins_leaves_and_kills(ctx: &Ctx) -> Checked {
    const KEYS: usize = 40;
    const MOST: usize = 4;
    const LASTS: Duration = Duration::from_secs(12);
    let topic = ctx.topic("random", 6).await?;
    let group = ctx.group("g");
    let names = keys("k", KEYS);
    let salt = ctx.rng.next();
    let member = || {
        ctx.member("m", &group, &[&topic])
            .mortal()
            .options(|options| options.with_revoke_within(Duration::from_secs(1)))
            .handler(move |delivery| async move {
                let dice = (delivery.offset() ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                tokio::time::sleep(Duration::from_micros(dice % 10_000)).await;
                Outcome::Ack
            })
            .start()
    };
    let mut members = vec![member().await?];
    let (mut version, mut done) = (0, [0; 3]);
    let end = Instant::now() + LASTS;
    while Instant::now() < end {
        let next = Instant::now() + Duration::from_millis(300 + ctx.rng.below(900));
        while Instant::now() < next {
            version += 1;
            ctx.publish(&topic, &names, version..=version).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let kind = if members.len() < 2 { 0 } else { ctx.rng.below(3) as usize };
        if kind == 0 && members.len() >= MOST {
            continue;
        }
        done[kind] += 1;
        let any = ctx.rng.below(members.len() as u64) as usize;
        match kind {
            0 => members.push(member().await?),
            1 => drop(members.swap_remove(any).drain(Duration::from_secs(5)).await),
            _ => members.swap_remove(any).kill().await?,
        }
    }
    println!("d10: {} joins, {} leaves, {} kills", done[0], done[1], done[2]);
    assert!(done[0] > 0 && done[1] + done[2] > 0, "nothing happened: {done:?}");
    ctx.until_handled(KEYS * version as usize).await
}
