//! H. Broker trouble: servers that restart, die, or cannot be reached.
//!
//! Every case has publishing and consuming going on, ends with what is stored counted against what was acknowledged (h05), and lets the
//! oracle excuse nothing but what the recorded faults explain.

use std::time::Duration;

use ebus_core::{ErrorKind, Message, Outcome, Publish, Topic};
use tokio::time::Instant;

use super::super::ctx::{Ctx, keys};
use super::super::failure::{Checked, Failure};
use super::super::link::{Break, Wire};
use super::super::load::Load;
use super::super::member::Member;
use crate::history::Kind;

/// How long after a fault its effects may last: to connect again, join again, and learn what was missed.
const AFTERMATH: Duration = Duration::from_secs(30);

fn only_faults_excuse(ctx: &Ctx) {
    ctx.rules(|rules| {
        let rules = rules.only_faults_excuse(AFTERMATH);
        if ctx.harness.has_leases() { rules.leases() } else { rules }
    });
}

/// Members that share a topic; one where a group has one.
async fn members(ctx: &Ctx, topic: &Topic, mortal: bool) -> Checked<Vec<Member>> {
    let group = ctx.group("g");
    let mut members = Vec::new();
    for label in ["one", "two"].iter().take(if ctx.several() { 2 } else { 1 }) {
        let member = ctx.member(label, &group, &[topic]).handler(|_| async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            Outcome::Ack
        });
        let member = if mortal { member.mortal() } else { member };
        members.push(member.start().await?);
    }
    Ok(members)
}

/// h01: the broker restarts, and is killed and started, during publish and consume: nothing acknowledged is lost, both go on by
/// themselves, settings and subscriptions are as before.
pub(super) async fn h01_the_broker_restarts(ctx: &Ctx) -> Checked {
    only_faults_excuse(ctx);
    let broker = ctx.own_broker();
    let topic = ctx.topic("restarts", 4).await?;
    let members = members(ctx, &topic, false).await?;
    let load = Load::start(&*ctx.another("publisher").await?, &topic);
    load.until_it_goes_on(ctx, "before any trouble").await?;
    for when in ["after a restart", "after a kill"] {
        ctx.note_broker(Kind::Down);
        if when == "after a kill" {
            broker.kill(0).await?
        } else {
            broker.stop(0).await?
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        broker.start(0).await?;
        ctx.note_broker(Kind::Up);
        load.until_it_goes_on(ctx, when).await?;
    }
    assert_eq!(ctx.ends(&topic).await?.len(), 4, "the topic has changed");
    ctx.until_some("all partitions are owned", || async {
        let mut owned = 0;
        for member in &members {
            owned += member.owns().await;
        }
        Ok((owned == 4).then_some(()))
    })
    .await?;
    let stored = load.finish(ctx).await?;
    ctx.until_handled(stored).await
}

async fn broken_for(ctx: &Ctx, how: &[Break], time: Duration) -> Checked {
    only_faults_excuse(ctx);
    let topic = ctx.topic("broken", 4).await?;
    let members = members(ctx, &topic, true).await?;
    let (backend, wire) = ctx.another_linked("publisher").await?;
    let load = Load::start(&*backend, &topic);
    load.until_it_goes_on(ctx, "before any trouble").await?;
    let wires: Vec<&Wire> = wire.iter().chain(members.iter().filter_map(Member::wire)).collect();
    assert_eq!(wires.len(), members.len() + 1, "a connection without a network of its own");
    for how in how {
        wires.iter().for_each(|wire| wire.fail(*how));
        tokio::time::sleep(time).await;
        wires.iter().for_each(|wire| wire.heal());
        load.until_it_goes_on(ctx, &format!("after {how:?} for {time:?}")).await?;
    }
    let stored = load.finish(ctx).await?;
    ctx.until_handled(stored).await
}

/// h02: the network is cut for 5 s.
pub(super) async fn h02_the_network_is_cut_for_5_s(ctx: &Ctx) -> Checked {
    broken_for(ctx, &[Break::Cut], Duration::from_secs(5)).await
}

/// h02: nothing passes for 5 s, and no connection breaks.
pub(super) async fn h02_the_network_stalls_for_5_s(ctx: &Ctx) -> Checked {
    broken_for(ctx, &[Break::Stalled], Duration::from_secs(5)).await
}

/// h02: the network is cut for 60 s.
pub(super) async fn h02_the_network_is_cut_for_60_s(ctx: &Ctx) -> Checked {
    broken_for(ctx, &[Break::Cut], Duration::from_secs(60)).await
}

/// h02: nothing passes for 60 s.
pub(super) async fn h02_the_network_stalls_for_60_s(ctx: &Ctx) -> Checked {
    broken_for(ctx, &[Break::Stalled], Duration::from_secs(60)).await
}

/// h03: the broker is gone for good: a publish fails as unavailable or by its deadline, what waits is bounded, and everything
/// closes.
pub(super) async fn h03_the_broker_is_gone_for_good(ctx: &Ctx) -> Checked {
    const MOST: usize = 100_000;
    only_faults_excuse(ctx);
    let topic = ctx.topic("gone", 4).await?;
    let group = ctx.group("g");
    let names = keys("k", 20);
    ctx.publish(&topic, &names, 1..=5).await?;
    let member = ctx.member("m", &group, &[&topic]).start().await?;
    ctx.until_handled(100).await?;
    let backend = ctx.another("publisher").await?;
    let mut publisher = backend.publisher();
    // It has a connection, and knows the topic.
    publisher.publish(Publish::new(topic.clone(), Message::new("first").with_key("p"))).await?;
    ctx.until_handled(101).await?;
    ctx.note_broker(Kind::Down);
    ctx.own_broker().kill(0).await?;
    let deadline = ctx.harness.publish_deadline() + Duration::from_secs(5);
    let mut answers = tokio::task::JoinSet::new();
    let mut calls = 0;
    while calls < MOST {
        let message = Message::new(vec![b'x'; 1_024]).with_key(names[calls % 20].as_str());
        let called = publisher.enqueue(Publish::new(topic.clone(), message));
        match tokio::time::timeout(Duration::from_millis(300), called).await {
            // The bound: it waits for room.
            Err(_) => break,
            Ok(Err(error)) => assert!(is_trouble(error.kind()), "{error:?}"),
            Ok(Ok(sent)) => {
                let called = Instant::now();
                answers.spawn(async move { (sent.await, called.elapsed()) });
            }
        }
        calls += 1;
        while let Some(answer) = answers.try_join_next() {
            failed_in_time(answer?, deadline)?;
        }
    }
    assert!(answers.len() < MOST, "{} messages wait for a broker that is gone", answers.len());
    while let Some(answer) = answers.join_next().await {
        failed_in_time(answer?, deadline)?;
    }
    let within = Duration::from_secs(5);
    let began = Instant::now();
    // What it says is its own affair: it may have nothing to commit. That it returns is the point.
    let _ = member.drain(within).await;
    let _ = backend.close(within).await;
    let took = began.elapsed();
    assert!(took < 4 * within, "leaving and closing took {took:?}, with {within:?} each");
    Ok(())
}

fn is_trouble(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Timeout)
}

fn failed_in_time<T>((answer, took): (Result<T, ebus_core::Error>, Duration), deadline: Duration) -> Checked {
    match answer {
        Ok(_) => Err(Failure::new("a publish was acknowledged by a broker that is gone")),
        Err(error) if !is_trouble(error.kind()) => Err(Failure::new(format!("not trouble: {error:?}"))),
        Err(error) if took > deadline => {
            Err(Failure::new(format!("after {took:?}, not {deadline:?}: {error}")))
        }
        Err(_) => Ok(()),
    }
}

/// h04: a cluster of three loses one node, and when it is back another, so that every partition has lost a leader or a
/// follower.
pub(super) async fn h04_a_cluster_loses_one_node_then_another(ctx: &Ctx) -> Checked {
    only_faults_excuse(ctx);
    let broker = ctx.own_broker();
    let topic = ctx.topic("cluster", 6).await?;
    let _members = members(ctx, &topic, false).await?;
    let load = Load::start(&*ctx.another("publisher").await?, &topic);
    load.until_it_goes_on(ctx, "before any trouble").await?;
    for node in [0, 1] {
        ctx.note_broker(Kind::Down);
        broker.kill(node).await?;
        load.until_it_goes_on(ctx, &format!("without node {node}")).await?;
        broker.start(node).await?;
        ctx.note_broker(Kind::Up);
        load.until_it_goes_on(ctx, &format!("with node {node} back")).await?;
    }
    let stored = load.finish(ctx).await?;
    ctx.until_handled(stored).await
}
