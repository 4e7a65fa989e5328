//! D. Ownership: members that join and leave beside each other.

use std::time::Duration;

use ebus_core::Outcome;

use super::super::ctx::{Ctx, keys};
use super::super::failure::Checked;

/// A run that lasts a moment, so that a hand-over meets runs that are open.
async fn a_moment() -> Outcome {
    tokio::time::sleep(Duration::from_millis(2)).await;
    Outcome::Ack
}

/// d01: a member joins under load.
pub(super) async fn d01_joins_under_load(ctx: &Ctx) -> Checked {
    const KEYS: usize = 100;
    let topic = ctx.topic("joined", 6).await?;
    let group = ctx.group("g");
    let names = keys("k", KEYS);
    ctx.publish(&topic, &names, 1..=10).await?;
    let first = ctx.member("first", &group, &[&topic]).handler(|_| a_moment()).start().await?;
    first.until_it_owns(6).await?;
    let second = ctx.member("second", &group, &[&topic]).handler(|_| a_moment()).start().await?;
    // Load until the second has its share of it.
    let mut version = 10;
    while ctx.log.count(|ran| ran.member == second.name()) == 0 {
        version += 1;
        ctx.publish(&topic, &names, version..=version).await?;
        if version % 50 == 0 {
            second.until_it_owns(1).await?;
        }
    }
    ctx.until_handled(KEYS * version as usize).await
}

/// d04: revoked and handed straight back to the same member: no overlap, no stall, nothing skipped.
pub(super) async fn d04_revoked_and_handed_straight_back(ctx: &Ctx) -> Checked {
    const KEYS: usize = 40;
    const ROUNDS: u64 = 3;
    let topic = ctx.topic("back", 4).await?;
    let group = ctx.group("g");
    let names = keys("k", KEYS);
    let first = ctx.member("first", &group, &[&topic]).handler(|_| a_moment()).start().await?;
    for round in 1..=ROUNDS {
        first.until_it_owns(4).await?;
        ctx.publish(&topic, &names, round * 40 - 39..=round * 40).await?;
        let second = ctx.member("second", &group, &[&topic]).handler(|_| a_moment()).start().await?;
        second.until_it_owns(1).await?;
        let report = second.drain(ctx.patience()).await;
        assert!(report.committed.is_ok(), "{report:?}");
    }
    first.until_it_owns(4).await?;
    ctx.until_handled(KEYS * ROUNDS as usize * 40).await
}
