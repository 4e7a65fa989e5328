//! B. Many.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ebus_core::{Outcome, StartPosition};
use futures_util::future::{join_all, try_join_all};
use parking_lot::Mutex;
use tokio::sync::Barrier;

use super::super::ctx::{Ctx, keys, send};
use super::super::failure::{Checked, Failure};
use super::super::link::Break;
use crate::record::version_from_header;

/// b01: many publishers, many members: the union is complete.
pub(super) async fn b01_many_publishers_many_members(ctx: &Ctx) -> Checked {
    const PUBLISHERS: usize = 4;
    const KEYS: usize = 10;
    const VERSIONS: u64 = 25;
    let topic = ctx.topic("many", 6).await?;
    let group = ctx.group("g");
    let members = if ctx.several() { 3 } else { 1 };
    for number in 0..members {
        let _ = ctx.member(&format!("m{number}"), &group, &[&topic]).start().await?;
    }
    let publishing = (0..PUBLISHERS).map(|number| {
        let topic = topic.clone();
        async move {
            let backend = ctx.another("publisher").await?;
            let mut publisher = backend.publisher();
            let mut sent = Vec::new();
            for version in 1..=VERSIONS {
                for key in keys(&format!("p{number}k"), KEYS) {
                    sent.push(send(&mut publisher, &topic, &key, version).await?);
                }
            }
            Ok::<_, Failure>(try_join_all(sent).await?)
        }
    });
    try_join_all(publishing).await?;
    ctx.until_handled(PUBLISHERS * KEYS * VERSIONS as usize).await
}

/// b02: two members of a group share the work.
pub(super) async fn b02_two_members_share_the_work(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("shared", 6).await?;
    let group = ctx.group("g");
    let one = ctx.member("one", &group, &[&topic]).start().await?;
    let two = ctx.member("two", &group, &[&topic]).start().await?;
    one.until_it_owns(1).await?;
    two.until_it_owns(1).await?;
    ctx.publish(&topic, &keys("k", 60), 1..=5).await?;
    ctx.until_handled(300).await?;
    let names = [one.name().to_owned(), two.name().to_owned()];
    assert_eq!(ctx.log.members(), BTreeSet::from(names), "one member did all the work");
    Ok(())
}

/// b02: a second group gets everything.
pub(super) async fn b02_a_second_group_gets_everything(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("twice", 3).await?;
    let _one = ctx.member("one", &ctx.group("g1"), &[&topic]).start().await?;
    let _two = ctx.member("two", &ctx.group("g2"), &[&topic]).start().await?;
    ctx.publish(&topic, &keys("k", 20), 1..=5).await?;
    // The oracle demands each message of each group.
    ctx.until("both groups have handled all", || ctx.log.acked() >= 200).await
}

/// b03: a late group from `earliest` sees all of the past; from `latest`, none.
pub(super) async fn b03_a_late_group_from_earliest_or_latest(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("past", 3).await?;
    let names = keys("k", 20);
    ctx.publish(&topic, &names, 1..=10).await?;
    let (early, late) = (ctx.group("early"), ctx.group("late"));
    for (partition, end) in (0..).zip(ctx.ends(&topic).await?) {
        ctx.rules(|rules| rules.begins_at(late.as_str(), topic.as_str(), partition, end.0));
    }
    let early = ctx.member("early", &early, &[&topic]).start().await?;
    let late = ctx
        .member("late", &late, &[&topic])
        .options(|options| options.with_start(StartPosition::Latest))
        .start()
        .await?;
    // At once: from here on nothing may be missed, whether it owns a partition yet or not.
    ctx.publish(&topic, &names, 11..=12).await?;
    let of = |name: &str| {
        let name = name.to_owned();
        move || ctx.log.count(|ran| ran.member == name && ran.acked)
    };
    let (of_early, of_late) = (of(early.name()), of(late.name()));
    ctx.until("the early group has all of the past", || of_early() >= 240).await?;
    ctx.until("the late group has all since it began", || of_late() >= 40).await?;
    let past = ctx.log.count(|ran| ran.member == late.name() && ran.version <= 10);
    assert_eq!(past, 0, "the late group saw the past");
    Ok(())
}

/// b04: versions 1..n of one key are handled one at a time in order with the whole window in flight.
pub(super) async fn b04_versions_of_a_key_one_at_a_time_in_order(ctx: &Ctx) -> Checked {
    const VERSIONS: u64 = 500;
    let topic = ctx.topic("many", 4).await?;
    ctx.publish(&topic, &["order-1"], 1..=VERSIONS).await?;
    let nap = ctx.rng.below(400);
    let _member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .handler(move |delivery| async move {
            // Some runs last, so that a later version could pass.
            let micros = (delivery.offset().wrapping_mul(7_919) + nap) % 1_000;
            tokio::time::sleep(Duration::from_micros(micros)).await;
            Outcome::Ack
        })
        .start()
        .await?;
    ctx.until_handled(VERSIONS as usize).await?;
    assert_eq!(ctx.log.versions("order-1"), (1..=VERSIONS).collect::<Vec<_>>());
    Ok(())
}

/// b05: many keys: each in order, and they do run in parallel.
pub(super) async fn b05_many_keys_run_in_parallel(ctx: &Ctx) -> Checked {
    const KEYS: usize = 50;
    let topic = ctx.topic("parallel", 1).await?;
    ctx.publish(&topic, &keys("k", KEYS), 1..=10).await?;
    // Passed only when a run of every key is open.
    let together = Arc::new(Barrier::new(KEYS));
    let _member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .pool(|pool| pool.with_max_in_flight(KEYS))
        .handler(move |_| {
            let together = together.clone();
            async move {
                together.wait().await;
                Outcome::Ack
            }
        })
        .start()
        .await?;
    ctx.rules(|rules| rules.max_in_flight(KEYS));
    ctx.until_handled(KEYS * 10).await
}

/// b06: messages without a key use every shard.
pub(super) async fn b06_messages_without_a_key_use_every_shard(ctx: &Ctx) -> Checked {
    const SHARDS: usize = 4;
    let topic = ctx.topic("keyless", 2).await?;
    let shards = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = shards.clone();
    let _member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .pool(|pool| pool.with_shards(SHARDS))
        .handler(move |_| {
            // A shard is a task.
            seen.lock().insert(tokio::task::try_id().map(|id| id.to_string()));
            async { Outcome::Ack }
        })
        .start()
        .await?;
    ctx.publish(&topic, &[""], 1..=400).await?;
    ctx.until_handled(400).await?;
    assert_eq!(shards.lock().len(), SHARDS);
    Ok(())
}

/// b07: publish order per key with pipelined publishing and broker trouble.
pub(super) async fn b07_publish_order_per_key(ctx: &Ctx) -> Checked {
    const KEYS: usize = 10;
    const VERSIONS: u64 = 300;
    /// Calls whose future is dropped: the first 5 rounds.
    const FORGOTTEN: usize = 5 * KEYS;
    const CALLS: usize = KEYS * VERSIONS as usize;
    let topic = ctx.topic("pipelined", 3).await?;
    let member = ctx.member("m", &ctx.group("g"), &[&topic]).mortal().start().await?;
    let (backend, wire) = ctx.another_linked("publisher").await?;
    let mut publisher = backend.publisher();
    let wires: Vec<_> = wire.iter().chain(member.wire()).collect();
    let trouble = async {
        if wires.is_empty() {
            return ctx.harness.disturb(&topic).await;
        }
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(60)).await;
            wires.iter().for_each(|wire| wire.fail(Break::Cut));
            tokio::time::sleep(Duration::from_millis(20)).await;
            wires.iter().for_each(|wire| wire.heal());
        }
        true
    };
    let publishing = async {
        let mut sent = Vec::new();
        for version in 1..=VERSIONS {
            for key in keys("k", KEYS) {
                // A clone of a publisher is the same publisher.
                let mut clone = publisher.clone();
                let publisher = if version % 2 == 0 { &mut clone } else { &mut publisher };
                sent.push(send(publisher, &topic, &key, version).await?);
            }
            // Long enough that trouble comes in the middle.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Asked for in another order than that of the calls, which alone counts; and not asked for at all.
        sent.reverse();
        sent.truncate(sent.len() - FORGOTTEN);
        Ok::<_, Failure>(join_all(sent).await)
    };
    let (answers, disturbed) = tokio::join!(publishing, trouble);
    let stored = answers?.iter().filter(|answer| answer.is_ok()).count();
    // Without trouble nothing fails; with trouble, what fails is told, and the oracle looks at what is there.
    assert!(disturbed || stored + FORGOTTEN == CALLS, "{stored} are stored though nothing was wrong");
    let mut last: HashMap<String, u64> = HashMap::new();
    let there = ctx.read_all(&topic).await?;
    for (partition, offset, message) in &there {
        let key = message.key.as_ref().map(ToString::to_string).unwrap_or_default();
        let version = version_from_header(message).unwrap_or_default();
        let before = last.insert(key.clone(), version).unwrap_or_default();
        assert!(before <= version, "{key} has version {version} behind {before} at {partition}/{offset}");
    }
    assert!(there.len() >= stored, "{stored} were acknowledged, {} are there", there.len());
    assert!(disturbed || there.len() == CALLS, "a dropped future has un-published");
    ctx.until_handled(there.len()).await
}
