//! F. Bounds: a key with too much to do.

use std::collections::HashMap;
use std::time::Duration;

use ebus_core::{Outcome, Topic};

use super::super::ctx::{Ctx, keys, send};
use super::super::failure::Checked;
use crate::history::Kind;

const ROUNDS: usize = 3;
const OTHERS: usize = 40;
const TIMES: u64 = 40;
const PAUSE: Duration = Duration::from_millis(10);

/// f03: one hot key at 2 ms per message: the p99 of the other keys stays within 2x of what it is without it.
pub(super) async fn f03_a_hot_key_delays_only_itself(ctx: &Ctx) -> Checked {
    // The unrest of the machine.
    const FLOOR: Duration = Duration::from_millis(25);
    let topic = ctx.topic("hot", 4).await?;
    let _member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .handler(|delivery| async move {
            if delivery.key().is_some_and(|key| key.as_bytes() == b"hot") {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Outcome::Ack
        })
        .start()
        .await?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let mut hot = 0;
    // Warm: connections, code, ownership.
    round(ctx, &topic, "warm").await?;
    for number in 0..ROUNDS {
        without.push(round(ctx, &topic, &format!("calm{number}.")).await?);
        // More than a round lasts.
        let mut publisher = ctx.publisher();
        let mut sent = Vec::new();
        for _ in 0..800 {
            hot += 1;
            sent.push(send(&mut publisher, &topic, "hot", hot).await?);
        }
        futures_util::future::try_join_all(sent).await?;
        with.push(round(ctx, &topic, &format!("beside{number}.")).await?);
        let behind = hot as usize - ctx.log.count(|ran| ran.key == "hot");
        assert!(behind > 0, "the hot key was done before the others");
        ctx.until("the hot key is done", || ctx.log.count(|ran| ran.key == "hot") == hot as usize).await?;
    }
    let (without, with) = (median(without), median(with));
    println!("f03: p99 {without:.1?} without, {with:.1?} beside a hot key");
    assert!(with <= 2 * without + FLOOR, "p99 {with:?} beside a hot key, {without:?} without");
    Ok(())
}

/// Publishes at a steady pace, and says the p99 from call to start.
async fn round(ctx: &Ctx, topic: &Topic, label: &str) -> Checked<Duration> {
    let names = keys(label, OTHERS);
    let mut publisher = ctx.publisher();
    let mut sent = Vec::new();
    for version in 1..=TIMES {
        for key in &names {
            sent.push(send(&mut publisher, topic, key, version).await?);
        }
        tokio::time::sleep(PAUSE).await;
    }
    let count = futures_util::future::try_join_all(sent).await?.len();
    let is_its = |key: &str| key.starts_with(label);
    ctx.until("the round is handled", || ctx.log.count(|ran| is_its(&ran.key)) == count).await?;
    let (mut calls, mut waits) = (HashMap::new(), Vec::new());
    for event in ctx.history.events() {
        let Some(key) = event.key.clone().filter(|key| is_its(key)) else { continue };
        match event.kind {
            Kind::Call => drop(calls.insert((key, event.version), event.at_ns)),
            Kind::Start => waits.extend(calls.get(&(key, event.version)).map(|call| event.at_ns - call)),
            _ => {}
        }
    }
    assert_eq!(waits.len(), count);
    waits.sort_unstable();
    Ok(Duration::from_nanos(waits[waits.len() * 99 / 100]))
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all[all.len() / 2]
}
