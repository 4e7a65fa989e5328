//! F. Bounds.

use std::time::Duration;

use ebus_core::{LedgerLimits, Message, Outcome, Publish};
use futures_util::future::try_join_all;
use parking_lot::Mutex;

use super::super::ctx::{Ctx, keys, message};
use super::super::failure::{Checked, Failure};
use super::super::wait::Gate;
use crate::history::Kind;

/// f01: slow handler, fast broker: messages and bytes held stay under the limit; membership kept; resumes.
pub(super) async fn f01_slow_handler_fast_broker(ctx: &Ctx) -> Checked {
    const MESSAGES: usize = 512;
    const BYTES: usize = 128 << 10;
    const PAYLOAD: usize = 1 << 10;
    const SLOTS: usize = 16;
    let topic = ctx.topic("fast", 2).await?;
    let names = keys("k", 100);
    let mut publisher = ctx.publisher();
    let mut sent = Vec::new();
    for version in 1..=20 {
        for key in &names {
            let mut large = message(key, version);
            large.payload = vec![7; PAYLOAD].into();
            sent.push(publisher.enqueue(Publish::new(topic.clone(), large)).await?);
        }
    }
    let count = try_join_all(sent).await?.len();
    ctx.rules(|rules| rules.max_in_flight(SLOTS));
    // One group is bounded by messages, the other by bytes. Nothing is handled before both are looked at.
    let watched = Gate::closed();
    let mut members = Vec::new();
    for (label, messages, bytes) in [("messages", MESSAGES, 64 << 20), ("bytes", 65_536, BYTES)] {
        let passed = watched.clone();
        let member = ctx.member(label, &ctx.group(label), &[&topic]);
        let member = member
            .pool(|pool| {
                pool.with_max_in_flight(SLOTS).with_budget_messages(messages).with_budget_bytes(bytes)
            })
            .handler(move |_| {
                let watched = passed.clone();
                async move {
                    watched.pass().await;
                    tokio::time::sleep(Duration::from_millis(3)).await;
                    Outcome::Ack
                }
            });
        members.push(member.start().await?);
    }
    watched.open();
    let most = Mutex::new((0, 0));
    ctx.until_some("both groups have handled all", || async {
        let (one, other) = (members[0].state().await, members[1].state().await);
        let mut most = most.lock();
        *most = (most.0.max(one.held_messages), most.1.max(other.held_bytes));
        Ok((ctx.log.acked() >= 2 * count).then_some(()))
    })
    .await?;
    let most = *most.lock();
    // A batch that is being read may pass the bound in bytes by its last messages.
    let slack = 256 * (PAYLOAD + 64);
    assert!(most.0 <= MESSAGES, "{} messages were held, {MESSAGES} allowed", most.0);
    assert!(most.1 <= BYTES + slack, "{} bytes were held, {BYTES} allowed", most.1);
    assert!(most.0 > SLOTS && most.1 > BYTES / 4, "nothing was read ahead: {most:?}");
    let left = ctx.history.events().iter().filter(|e| matches!(e.kind, Kind::Lost | Kind::Revoking)).count();
    assert_eq!(left, 0, "membership was lost");
    Ok(())
}

/// f02: 200,000 messages to one blocked key: memory flat, other partitions go on.
pub(super) async fn f02_two_hundred_thousand_to_one_blocked_key(ctx: &Ctx) -> Checked {
    const HOT: usize = 200_000;
    const BUDGET: usize = 4_096;
    let topic = ctx.topic("hot", 4).await?;
    let group = ctx.group("g");
    // Not recorded: these are only weight, and a history of them would be more than all the rest.
    let backend = ctx.harness.connect().await?;
    let mut publisher = backend.publisher();
    let hot = Message::new(vec![1; 100]).with_key("hot");
    let place = publisher.publish(Publish::new(topic.clone(), hot.clone())).await?.partition;
    ctx.rules(|rules| rules.unfinished_ok(group.as_str()));
    let member = ctx
        .member("m", &group, &[&topic])
        .pool(|pool| pool.with_budget_messages(BUDGET))
        .options(|options| options.with_revoke_within(Duration::from_secs(1)))
        .handler(|delivery| async move {
            if delivery.key().is_some_and(|key| key.as_bytes() == b"hot") {
                std::future::pending::<()>().await;
            }
            Outcome::Ack
        })
        .start()
        .await?;
    let weighing = async {
        let mut sent = 1;
        while sent < HOT {
            let mut batch = Vec::new();
            for _ in 0..1_000.min(HOT - sent) {
                batch.push(publisher.enqueue(Publish::new(topic.clone(), hot.clone())).await?);
            }
            sent += try_join_all(batch).await?.len();
            let held = member.state().await.held_messages;
            assert!(held <= BUDGET, "{held} messages held after {sent}, {BUDGET} allowed");
        }
        Ok::<_, Failure>(())
    };
    weighing.await?;
    // Others of its own partition are behind 200,000 messages; those of the other partitions are not.
    let mut others = 0;
    for receipt in ctx.publish(&topic, &keys("k", 50), 1..=10).await? {
        others += usize::from(receipt.partition != place);
    }
    assert!(others > 0);
    let elsewhere = || ctx.log.count(|ran| ran.partition != place && ran.acked);
    ctx.until("the other partitions go on", || elsewhere() >= others).await?;
    let held = member.state().await.held_messages;
    assert!(held <= BUDGET, "{held} messages held, {BUDGET} allowed");
    let _ = member.drain(Duration::from_millis(100)).await;
    backend.close(ctx.patience()).await?;
    Ok(())
}

/// f04: one message that never finishes: uncommitted span bounded, visible as stuck.
pub(super) async fn f04_one_message_that_never_finishes(ctx: &Ctx) -> Checked {
    const SPAN: usize = 100;
    let topic = ctx.topic("span", 2).await?;
    let never = ctx.publish(&topic, &["never"], 1..=1).await?.remove(0);
    let mut here = 0;
    let receipts = ctx.publish(&topic, &keys("k", 60), 1..=20).await?;
    for receipt in &receipts {
        here += usize::from(receipt.partition == never.partition);
    }
    assert!(here > SPAN && here < receipts.len(), "{here} messages share its partition");
    let gate = Gate::closed();
    let passes = gate.clone();
    let member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .options(|options| options.with_limits(LedgerLimits::default().with_max_span(SPAN)))
        .pool(|pool| pool.with_stuck_after(Duration::from_millis(200)))
        .handler(move |delivery| {
            let passes = passes.clone();
            async move {
                if delivery.key().is_some_and(|key| key.as_bytes() == b"never") {
                    passes.pass().await;
                }
                Outcome::Ack
            }
        })
        .start()
        .await?;
    let beside = || ctx.log.count(|ran| ran.partition == never.partition && ran.acked);
    ctx.until("the other partition is done", || ctx.log.acked() - beside() >= receipts.len() - here).await?;
    ctx.until("its own partition goes on to the bound", || beside() >= SPAN - 1).await?;
    let stuck = ctx
        .until_some("it is visible as stuck", || async {
            Ok(member.state().await.stuck.into_iter().find(|stuck| stuck.offset == never.offset))
        })
        .await?;
    assert_eq!(stuck.partition.partition, never.partition);
    assert_eq!((stuck.attempts, stuck.last_error.is_none()), (1, true));
    assert!(stuck.age >= Duration::from_millis(200), "{:?}", stuck.age);
    assert_eq!(beside(), SPAN - 1, "the span is not bounded");
    gate.open();
    ctx.until_handled(receipts.len() + 1).await
}
