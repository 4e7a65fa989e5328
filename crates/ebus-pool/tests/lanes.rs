//! Lanes: order per key, retries in place, slots, panics (G2, G3, G4, G5, G9).

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use common::*;
use ebus_core::Outcome;
use ebus_pool::{Pool, RetryPolicy};
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn p2_versions_of_one_key_run_one_at_a_time_in_order() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = Pool::start(source, config()).expect("valid");
    let seen = log.clone();
    pool.subscribe(
        topic(),
        handler(move |delivery| {
            let run = seen.run(&delivery);
            async move {
                tokio::time::sleep(MS).await;
                run.end();
                Outcome::Ack
            }
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    for _ in 0..50 {
        script.deliver(owned, Some("a"));
    }
    until("all finished", || script.finished().len() == 50).await;
    assert_eq!(script.finished(), (0..50).collect::<Vec<_>>());
    for pair in log.entries().chunks(2) {
        let [Entry::Start { offset, .. }, Entry::End { offset: ended, .. }] = pair else {
            panic!("two runs of one key overlap: {pair:?}")
        };
        assert_eq!(offset, ended);
    }
}

#[tokio::test(start_paused = true)]
async fn p4_a_key_that_waits_for_its_retry_holds_no_slot() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = Pool::start(source, config().with_max_in_flight(1)).expect("valid");
    let seen = log.clone();
    pool.subscribe(
        topic(),
        handler(move |delivery| {
            let run = seen.run(&delivery);
            async move {
                tokio::time::sleep(MS).await;
                run.end();
                if delivery.offset() == 0 && delivery.attempt() < 3 { retry(1000 * MS) } else { Outcome::Ack }
            }
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("bad"));
    script.deliver(owned, Some("bad"));
    for i in 0..20 {
        script.deliver(owned, Some(&format!("good-{i}")));
    }
    until("the good keys are done", || script.finished().len() >= 20).await;
    assert!(!script.finished().contains(&0) && !script.finished().contains(&1));
    until("the bad key is done", || script.finished().len() == 22).await;
    let bad: Vec<_> = log.starts().into_iter().filter(|offset| *offset < 2).collect();
    assert_eq!(bad, [0, 0, 0, 1], "the same message again before its successor");
}

#[tokio::test(start_paused = true)]
async fn p5_runs_in_progress_are_bounded_over_all_shards() {
    let (mut script, source) = script();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let pool = Pool::start(source, config().with_shards(4).with_max_in_flight(7)).expect("valid");
    let seen = (running.clone(), most.clone());
    pool.subscribe(
        topic(),
        handler(move |_| {
            let (running, most) = seen.clone();
            async move {
                most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                tokio::time::sleep(MS).await;
                running.fetch_sub(1, SeqCst);
                Outcome::Ack
            }
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    for i in 0..500 {
        script.deliver(owned, (i % 2 == 0).then(|| format!("k{i}")).as_deref());
    }
    until("all finished", || script.finished().len() == 500).await;
    assert_eq!(most.load(SeqCst), 7, "the bound is reached and kept");
}

#[tokio::test(start_paused = true)]
async fn p9_a_panic_is_the_failure_of_that_message_only() {
    let (mut script, source) = script();
    let pool = Pool::start(source, config().with_retry(RetryPolicy::fixed(MS))).expect("valid");
    pool.subscribe(
        topic(),
        handler(|delivery| {
            assert!(delivery.offset() % 2 == 1 || delivery.attempt() > 1, "in the call");
            async move {
                if delivery.offset() % 2 == 0 && delivery.attempt() == 2 {
                    tokio::time::sleep(MS).await;
                    panic!("in the future");
                }
                Outcome::Ack
            }
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    for i in 0..20 {
        script.deliver(owned, Some(&format!("k{}", i % 5)));
    }
    until("all finished", || script.finished().len() == 20).await;
    assert_eq!(pool.counters().panics, 20);
    assert_eq!(pool.counters().handled, 20);
}

/// A log that cannot take one warning: nothing of the user's code that a shard calls can end it.
struct BrokenLog(AtomicUsize);

impl tracing::Subscriber for BrokenLog {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("ebus_pool::shard")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        assert!(self.0.fetch_add(1, SeqCst) > 0, "the disk of the log is full");
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn p9_a_shard_that_dies_ends_the_pool_with_an_error() {
    let _log = tracing::subscriber::set_default(BrokenLog(AtomicUsize::new(0)));
    let (mut script, source) = script();
    let pool = Pool::start(source, config().with_drop_rejected()).expect("valid");
    pool.subscribe(topic(), handler(|_| async { reject() })).expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    let report = pool.ended().await;
    let error = report.committed.expect_err("it did not end by itself");
    assert!(error.to_string().contains("shard"), "{error}");
    assert_eq!(script.finished(), [0u64; 0]);
}

#[tokio::test(start_paused = true)]
async fn p5_messages_held_stay_below_the_budget_and_reading_resumes() {
    let (mut script, source) = script();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let pool = Pool::start(source, config().with_budget_messages(32)).expect("valid");
    let seen = (running.clone(), most.clone());
    pool.subscribe(
        topic(),
        handler(move |_| {
            let (running, most) = seen.clone();
            async move {
                most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                tokio::time::sleep(MS).await;
                running.fetch_sub(1, SeqCst);
                Outcome::Ack
            }
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    for i in 0..1000 {
        script.deliver(owned, Some(&format!("k{i}")));
    }
    until("all finished", || script.finished().len() == 1000).await;
    assert!(most.load(SeqCst) <= 32, "{}", most.load(SeqCst));
    assert_eq!(pool.state().await.held_messages, 0);
}

#[tokio::test(start_paused = true)]
async fn p8_a_message_that_fails_for_ever_is_visible_as_stuck() {
    let (mut script, source) = script();
    let pool = Pool::start(source, config().with_retry(RetryPolicy::fixed(10 * MS))).expect("valid");
    pool.subscribe(topic(), handler(|_| async { reject() })).expect("open");
    let owned = script.assign(3);
    script.deliver(owned, Some("a"));
    script.deliver(owned, Some("a"));
    until("it failed a few times", || pool.counters().retries > 5).await;
    let state = pool.state().await;
    let [stuck] = state.stuck.as_slice() else { panic!("one message is stuck: {state:?}") };
    assert_eq!((stuck.partition.partition, stuck.offset, stuck.waiting_behind), (3, 0, 1));
    assert!(stuck.attempts > 5 && stuck.age >= 50 * MS, "{stuck:?}");
    assert!(stuck.last_error.as_ref().is_some_and(|error| error.to_string().contains("never")));
    assert_eq!(script.finished(), [0u64; 0]);
}

#[tokio::test(start_paused = true)]
async fn p3_nothing_starts_past_the_lease_and_goes_on_when_it_is_moved() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = Pool::start(source, config()).expect("valid");
    let seen = log.clone();
    pool.subscribe(
        topic(),
        handler(move |delivery| {
            seen.run(&delivery).end();
            std::future::ready(Outcome::Ack)
        }),
    )
    .expect("open");
    let lease = ebus_core::Lease::until(tokio::time::Instant::now().into_std());
    let owned = script.assign_with(0, lease.clone());
    script.deliver(owned, Some("a"));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(log.starts(), [0u64; 0]);
    lease.extend((tokio::time::Instant::now() + Duration::from_secs(60)).into_std());
    until("it runs", || script.finished() == [0]).await;
}

/// What one message does, run by run.
#[derive(Debug, Clone, Copy)]
enum Behaviour {
    Ack { ms: u64 },
    FailThenAck { times: u32, ms: u64 },
    PanicThenAck,
}

fn behaviours() -> impl Strategy<Value = Vec<(u8, Behaviour)>> {
    let behaviour = prop_oneof![
        6 => (0u64..4).prop_map(|ms| Behaviour::Ack { ms }),
        2 => (1u32..4, 0u64..3).prop_map(|(times, ms)| Behaviour::FailThenAck { times, ms }),
        1 => Just(Behaviour::PanicThenAck),
    ];
    prop::collection::vec((0u8..12, behaviour), 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever handlers do, whatever the bounds: each key's messages run one at a time and in order, and all are finished.
    #[test]
    fn p2_order_per_key_holds_for_any_behaviour(
        messages in behaviours(), shards in 1usize..4, in_flight in 1usize..6, budget in 1usize..64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("runtime");
        runtime.block_on(async {
            let (mut script, source) = script();
            let log = Log::default();
            let config = config().with_shards(shards).with_max_in_flight(in_flight).with_budget_messages(budget)
                .with_retry(RetryPolicy::exponential().first(MS).cap(5 * MS));
            let pool = Pool::start(source, config).expect("valid");
            let (seen, plan) = (log.clone(), messages.clone());
            pool.subscribe(topic(), handler(move |delivery| {
                let run = seen.run(&delivery);
                let behaviour = plan[delivery.offset() as usize].1;
                async move {
                    let outcome = match behaviour {
                        Behaviour::Ack { ms } => {
                            if ms > 0 { tokio::time::sleep(MS * ms as u32).await; }
                            Outcome::Ack
                        }
                        Behaviour::FailThenAck { times, ms } => {
                            if ms > 0 { tokio::time::sleep(MS * ms as u32).await; }
                            if delivery.attempt() <= times { retry(MS * ms as u32) } else { Outcome::Ack }
                        }
                        Behaviour::PanicThenAck => {
                            if delivery.attempt() == 1 { std::panic::resume_unwind(Box::new("deliberate")); }
                            Outcome::Ack
                        }
                    };
                    run.end();
                    outcome
                }
            })).expect("open");
            let owned = script.assign(0);
            for (key, _) in &messages {
                script.deliver(owned, Some(&format!("k{key}")));
            }
            until("all finished", || script.finished().len() == messages.len()).await;
            let all: BTreeSet<u64> = script.finished().into_iter().collect();
            assert_eq!(all.len(), messages.len(), "each is finished once");
            let mut open: BTreeMap<String, u64> = BTreeMap::new();
            let mut last: BTreeMap<String, u64> = BTreeMap::new();
            for entry in log.entries() {
                match entry {
                    Entry::Start { key, offset, .. } => {
                        assert!(open.insert(key.clone(), offset).is_none(), "two runs of {key} at once");
                        let before = last.insert(key.clone(), offset);
                        assert!(before.is_none_or(|before| before <= offset), "{key} went back to {offset}");
                    }
                    Entry::End { key, .. } | Entry::Cancelled { key, .. } => {
                        open.remove(&key);
                    }
                }
            }
        });
    }
}
