//! D. Ownership: what happens at the end of one: by notice, by a commit that fails, or without a word.

use std::sync::Arc;
use std::time::Duration;

use ebus_core::{Outcome, PartitionId};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::super::ctx::{Ctx, keys};
use super::super::failure::Checked;
use super::super::wait::Gate;
use crate::history::{Event, Kind, Outcome as Ended};

fn is(event: &Event, kind: Kind, member: &str) -> bool {
    event.kind == kind && event.member.as_deref() == Some(member)
}

async fn until_recorded(ctx: &Ctx, kind: Kind, member: &str) -> Checked<Event> {
    ctx.until_some(&format!("{member} is {kind:?}"), || async {
        Ok(ctx.history.events().into_iter().find(|event| is(event, kind, member)))
    })
    .await
}

/// d06: a handler that outlives the revoke deadline is cancelled before the partition is released.
pub(super) async fn d06_what_outlives_the_deadline_is_cancelled_first(ctx: &Ctx) -> Checked {
    const KEYS: usize = 20;
    let within = Duration::from_millis(500);
    let topic = ctx.topic("outlived", 2).await?;
    let group = ctx.group("g");
    ctx.publish(&topic, &keys("k", KEYS), 1..=2).await?;
    let first = ctx
        .member("first", &group, &[&topic])
        .options(|options| options.with_revoke_within(within))
        .handler(|_| async {
            std::future::pending::<()>().await;
            Outcome::Ack
        })
        .start()
        .await?;
    ctx.until_some("every key runs", || async { Ok((first.state().await.in_flight == KEYS).then_some(())) })
        .await?;
    let second = ctx.member("second", &group, &[&topic]).start().await?;
    second.until_it_owns(1).await?;
    // The oracle sees that no run was open after the release, and that the second overlapped with none.
    let released = until_recorded(ctx, Kind::Released, first.name()).await?;
    let events = ctx.history.events();
    let of_it = |event: &&Event| event.partition == released.partition && event.epoch == released.epoch;
    let cancelled = events
        .iter()
        .filter(of_it)
        .filter(|event| is(event, Kind::End, first.name()) && event.outcome == Some(Ended::Cancelled))
        .count();
    let started = events.iter().filter(of_it).filter(|event| is(event, Kind::Start, first.name())).count();
    assert!(cancelled > 0 && cancelled == started, "{cancelled} of {started} runs were cancelled");
    let lost = events.iter().any(|event| is(event, Kind::Lost, first.name()));
    assert!(!lost, "it was not released in time, but taken away");
    let revoking = events.iter().filter(of_it).find(|event| event.kind == Kind::Revoking);
    let took = Duration::from_nanos(released.at_ns - revoking.map_or(0, |event| event.at_ns));
    assert!(took >= within / 2, "it did not wait for what runs, but released after {took:?}");
    let _ = first.drain(Duration::ZERO).await;
    ctx.until_handled(2 * KEYS).await
}

/// d07: the commit fails during a rebalance: the member lives and goes on.
pub(super) async fn d07_a_commit_fails_at_a_hand_over(ctx: &Ctx) -> Checked {
    const KEYS: usize = 40;
    let topic = ctx.topic("refused", 4).await?;
    let group = ctx.group("g");
    let names = keys("k", KEYS);
    ctx.publish(&topic, &names, 1..=5).await?;
    let first = ctx
        .member("first", &group, &[&topic])
        // Nothing is committed before the hand-over.
        .options(|options| options.with_commit_interval(Duration::from_secs(3_600)))
        .start()
        .await?;
    ctx.until_handled(KEYS * 5).await?;
    ctx.faults().commits_fail(&group, true).await?;
    let second = ctx.member("second", &group, &[&topic]).start().await?;
    second.until_it_owns(1).await?;
    let released = until_recorded(ctx, Kind::Released, first.name()).await?;
    assert_eq!(released.outcome, Some(Ended::Refused), "the last commit was accepted");
    ctx.publish(&topic, &names, 6..=6).await?;
    ctx.until_handled(KEYS * 6).await?;
    ctx.faults().commits_fail(&group, false).await?;
    assert!(first.state().await.ended.is_none() && first.owns().await > 0, "the first has gone");
    ctx.publish(&topic, &names, 7..=7).await?;
    ctx.until_handled(KEYS * 7).await?;
    for member in [first, second] {
        let report = member.drain(ctx.patience()).await;
        assert!(report.committed.is_ok(), "{report:?}");
    }
    assert_eq!(ctx.finished(&group, &topic).await?, KEYS * 7);
    Ok(())
}

/// d08: lost without notice (session timed out): runs cancelled, nothing committed.
pub(super) async fn d08_lost_without_notice(ctx: &Ctx) -> Checked {
    const KEYS: usize = 20;
    let topic = ctx.topic("lost", 1).await?;
    let group = ctx.group("g");
    ctx.publish(&topic, &keys("quick", KEYS), 1..=1).await?;
    ctx.publish(&topic, &keys("open", KEYS), 1..=1).await?;
    let gate = Gate::closed();
    let passes = gate.clone();
    let member = ctx
        .member("m", &group, &[&topic])
        .options(|options| options.with_commit_interval(Duration::from_secs(3_600)))
        .handler(move |delivery| {
            let passes = passes.clone();
            async move {
                if delivery.key().and_then(|key| key.as_str()).is_some_and(|key| key.starts_with("open")) {
                    passes.pass().await;
                }
                Outcome::Ack
            }
        })
        .start()
        .await?;
    ctx.until_some("the others are open", || async {
        Ok((ctx.log.acked() == KEYS && member.state().await.in_flight == KEYS).then_some(()))
    })
    .await?;
    ctx.faults().lose(&group, &PartitionId::new(topic.clone(), 0)).await?;
    let lost = until_recorded(ctx, Kind::Lost, member.name()).await?;
    let cancelled = || {
        let events = ctx.history.events();
        let ended = events.iter().filter(|event| event.kind == Kind::End && event.epoch == lost.epoch);
        ended.filter(|event| event.outcome == Some(Ended::Cancelled)).count()
    };
    ctx.until("the open runs are cancelled", || cancelled() == KEYS).await?;
    // It has the partition again: what finished before runs again, because nothing of it was committed.
    ctx.until("what had finished runs again", || ctx.log.acked() == 2 * KEYS).await?;
    assert_eq!(ctx.finished(&group, &topic).await?, 0, "something was committed after the loss");
    gate.open();
    ctx.until_handled(2 * KEYS).await?;
    let report = member.drain(ctx.patience()).await;
    assert!(report.committed.is_ok(), "{report:?}");
    Ok(())
}

/// d11: a hand-over that waits for a 3 s run: the partitions that stay keep flowing.
pub(super) async fn d11_what_stays_flows_while_a_hand_over_waits(ctx: &Ctx) -> Checked {
    const MOST: Duration = Duration::from_millis(500);
    const RUN: Duration = Duration::from_secs(3);
    let topic = ctx.topic("flows", 4).await?;
    let group = ctx.group("g");
    let slow = keys("slow", 12);
    ctx.publish(&topic, &slow, 1..=1).await?;
    let gate = Gate::closed();
    let passes = gate.clone();
    let first = ctx
        .member("first", &group, &[&topic])
        .handler(move |delivery| {
            let passes = passes.clone();
            async move {
                if delivery.key().and_then(|key| key.as_str()).is_some_and(|key| key.starts_with("slow")) {
                    passes.pass().await;
                }
                Outcome::Ack
            }
        })
        .start()
        .await?;
    first.until_it_owns(4).await?;
    ctx.until_some("slow runs are open", || async {
        Ok((first.state().await.in_flight == slow.len()).then_some(()))
    })
    .await?;
    let second = ctx.member("second", &group, &[&topic]).start().await?;
    let names = keys("k", 40);
    let mut version = 0;
    let mut revoked_at: Option<Instant> = None;
    // How long the machine itself stood still, and the pause between two rounds of publishing.
    let (noise, stop) = (Arc::new(Mutex::new(Duration::ZERO)), Gate::closed());
    let (longest, stopped) = (noise.clone(), stop.clone());
    let ticking = tokio::spawn(async move {
        let mut before = Instant::now();
        while !stopped.is_open() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let mut longest = longest.lock();
            *longest = (*longest).max(before.elapsed());
            before = Instant::now();
        }
    });
    let mut rounds = Vec::new();
    while revoked_at.is_none_or(|at| at.elapsed() < RUN) {
        version += 1;
        let began = Instant::now();
        ctx.publish(&topic, &names, version..=version).await?;
        if revoked_at.is_none() && ctx.history.events().iter().any(|e| is(e, Kind::Revoking, first.name())) {
            revoked_at = Some(Instant::now());
            *noise.lock() = Duration::ZERO;
            rounds.clear();
        }
        assert!(version < 10_000, "nothing is revoked");
        tokio::time::sleep(Duration::from_millis(10)).await;
        rounds.push(began.elapsed());
    }
    gate.open();
    stop.open();
    ticking.await?;
    second.until_it_owns(1).await?;
    until_recorded(ctx, Kind::Released, first.name()).await?;
    ctx.until_handled(names.len() * version as usize + slow.len()).await?;
    // Publishing waits for the broker, and so does the flow.
    let noise = (*noise.lock()).max(rounds.into_iter().max().unwrap_or_default());
    let (stayed, gap) = longest_gap(&ctx.history.events(), first.name());
    println!(
        "d11: {stayed} partitions stayed, longest gap {gap:.1?}, of the machine and the publisher {noise:.1?}"
    );
    assert!(stayed > 0, "every partition moved");
    assert!(gap < MOST + noise, "a partition that stayed stood still for {gap:?}, the machine for {noise:?}");
    Ok(())
}

/// How many partitions a member kept while it gave others up, and the longest time that one of them handled nothing.
fn longest_gap(events: &[Event], member: &str) -> (usize, Duration) {
    let own: Vec<&Event> = events.iter().filter(|event| event.member.as_deref() == Some(member)).collect();
    let all = |kind| own.iter().filter(move |event| event.kind == kind);
    let (from, to) = (all(Kind::Revoking).map(|e| e.at_ns).min(), all(Kind::Released).map(|e| e.at_ns).max());
    let (Some(from), Some(to)) = (from, to) else { return (0, Duration::MAX) };
    let stayed = |partition| !all(Kind::Revoking).any(|event| event.partition == Some(partition));
    let mut gap = 0;
    let stayed: Vec<u32> = (0..4).filter(|partition| stayed(*partition)).collect();
    for partition in &stayed {
        let mut before = from;
        for event in all(Kind::End).filter(|event| event.partition == Some(*partition)) {
            if (from..=to).contains(&event.at_ns) {
                gap = gap.max(event.at_ns - before);
                before = event.at_ns;
            }
        }
        gap = gap.max(to.saturating_sub(before).min(to - from));
    }
    (stayed.len(), Duration::from_nanos(gap))
}

/// d15: a pool that is full of one stuck key still hands its partitions over in time.
pub(super) async fn d15_a_pool_full_of_a_stuck_key_hands_over(ctx: &Ctx) -> Checked {
    const BUDGET: usize = 16;
    let within = Duration::from_secs(1);
    let topic = ctx.topic("stuck", 2).await?;
    let group = ctx.group("g");
    // A key of each partition, far more of it than the pool may hold.
    let mut stuck: [Option<String>; 2] = [None, None];
    for name in keys("stuck", 20) {
        let receipt = ctx.publish(&topic, &[&name], 1..=1).await?.remove(0);
        stuck[receipt.partition as usize].get_or_insert(name);
    }
    let stuck: Vec<String> = stuck.into_iter().flatten().collect();
    assert_eq!(stuck.len(), 2);
    ctx.publish(&topic, &stuck, 2..=2 * BUDGET as u64).await?;
    let all = 20 + 2 * (2 * BUDGET - 1);
    let known = stuck.clone();
    let first = ctx
        .member("first", &group, &[&topic])
        .options(|options| options.with_revoke_within(within))
        .pool(|pool| pool.with_budget_messages(BUDGET).with_stuck_after(Duration::from_millis(200)))
        .handler(move |delivery| {
            let is_stuck =
                delivery.key().and_then(|key| key.as_str()).is_some_and(|k| known.iter().any(|s| s == k));
            async move {
                if is_stuck {
                    std::future::pending::<()>().await;
                }
                Outcome::Ack
            }
        })
        .start()
        .await?;
    // Of which partition depends on which one is read first; so small a pool has no share for the other.
    ctx.until_some("the pool is full of it", || async {
        let state = first.state().await;
        Ok((state.held_messages >= BUDGET && state.stuck.iter().any(|stuck| stuck.waiting_behind > 0))
            .then_some(()))
    })
    .await?;
    let second = ctx.member("second", &group, &[&topic]).start().await?;
    second.until_it_owns(1).await?;
    let events = ctx.history.events();
    let at = |kind| events.iter().find(|event| is(event, kind, first.name())).map(|event| event.at_ns);
    let (revoking, released) = (at(Kind::Revoking), at(Kind::Released));
    assert_eq!(at(Kind::Lost), None, "it was not released in time, but taken away");
    let took = released.zip(revoking).map(|(released, revoking)| Duration::from_nanos(released - revoking));
    let most = within + Duration::from_secs(5);
    assert!(took.is_some_and(|took| took <= most), "the hand-over took {took:?}");
    let _ = first.drain(Duration::ZERO).await;
    ctx.until_handled(all).await
}
