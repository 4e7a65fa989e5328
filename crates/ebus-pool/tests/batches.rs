//! Batches: when they start, with what, and where they are refused (G2, G3, G4, G5, G8).

mod common;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use common::batches::*;
use common::*;
use ebus_core::{
    BatchOutcome, Delivery, Epoch, ErrorKind, Lease, Outcome, PartitionId, Position, SourceEvent, Topic,
};
use ebus_pool::{Batch, Handlers, Pool};
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn p4_a_batch_is_as_old_as_its_first_message_not_as_the_silence() {
    let (mut script, source) = script();
    let (_pool, seen) = pool_that_says(source, one_shard(), Batch::of(100).max_age(50 * MS), |_| DONE);
    let owned = script.assign(0);
    for i in 0..10 {
        script.deliver(owned, Some(&format!("k{}", i % 2)));
        tokio::time::sleep(20 * MS).await;
    }
    until("all finished", || script.finished().len() == 10).await;
    let given = seen.given();
    assert_eq!(seen.offsets()[0], [0, 2, 1], "those of the first 50 ms: {given:?}");
    assert!((50 * MS..55 * MS).contains(&given[0].at), "{given:?}");
    assert!((110 * MS..116 * MS).contains(&given[1].at), "50 ms after the fourth: {given:?}");
}

#[tokio::test(start_paused = true)]
async fn p4_what_waited_for_a_slot_does_not_wait_for_others_too() {
    let (mut script, source) = script();
    let seen = Seen::new();
    let noted = seen.clone();
    let handler = in_batches(move |batch: Vec<Delivery>| {
        noted.note(&batch);
        async move {
            tokio::time::sleep(if batch[0].offset() == 0 { 100 * MS } else { MS }).await;
            DONE
        }
    });
    let handlers = Handlers::new().batch(topic(), Batch::of(2).max_age(50 * MS), handler);
    let _pool = Pool::start_with(source, one_shard().with_max_in_flight(1), handlers).expect("valid");
    let owned = script.assign(0);
    for key in ["a", "b", "c", "d", "e"] {
        script.deliver(owned, Some(key));
    }
    until("all finished", || script.finished().len() == 5).await;
    assert_eq!(seen.offsets(), [vec![0, 1], vec![2, 3], vec![4]]);
    assert!(seen.given()[2].at < 110 * MS, "{:?}", seen.given());
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_waits_for_nothing() {
    let (mut script, source) = script();
    let batch = Batch::of(4).max_age(Duration::from_secs(3600)).max_bytes(1_000);
    let (_pool, seen) = pool_that_says(source, one_shard(), batch, |_| DONE);
    let owned = script.assign(0);
    for i in 0..8 {
        script.deliver_sized(owned, Some(&format!("k{}", i % 3)), 8);
    }
    until("two are full by number", || script.finished().len() == 8).await;
    assert_eq!(seen.given().iter().map(|given| given.messages.len()).collect::<Vec<_>>(), [4, 4]);
    for bytes in [400, 400, 400, 5_000, 998] {
        script.deliver_sized(owned, Some("k"), bytes);
    }
    until("three are full by bytes", || script.finished().len() == 12).await;
    assert_eq!(seen.offsets()[2..], [vec![8, 9], vec![10], vec![11]], "one that is too large goes by itself");
}

/// Each of eight shards gathered its part of a full budget, nothing more was read, and all waited for their age, again and again.
#[tokio::test(start_paused = true)]
async fn p5_what_gathers_does_not_stop_the_intake_of_a_backlog() {
    let (mut script, source) = script();
    let batch = Batch::of(500).max_age(Duration::from_secs(60));
    let config = one_shard().with_shards(8).with_budget_messages(1_000);
    let (_pool, seen) = pool_that_says(source, config, batch, |_| DONE);
    let owned = script.assign(0);
    for i in 0..5_000 {
        script.deliver(owned, Some(&format!("k{i}")));
    }
    until("all but the last are done", || script.finished().len() >= 4_000).await;
    assert!(seen.since.elapsed() < Duration::from_secs(10), "{:?}", seen.since.elapsed());
    let batches = seen.given().len();
    assert!(batches < 1_000, "{batches} batches of 4,000 messages");
}

/// Nothing more came of a partition whose span was full of what had gathered, and all of it waited for its age.
#[tokio::test(start_paused = true)]
async fn p5_what_gathers_waits_for_nothing_that_a_full_partition_cannot_bring() {
    let (mut script, source) = script();
    let batch = Batch::of(20).max_age(Duration::from_secs(3_600));
    let (pool, seen) = pool_that_says(source, one_shard(), batch, |_| DONE);
    let (small, large) = (script.assign(0), script.assign(1));
    script.rewind(large, 100);
    let full = |full, freed| SourceEvent::Full { full, freed };
    for key in ["a", "b", "a"] {
        script.deliver(small, Some(key));
    }
    script.deliver(large, Some("c"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(seen.given().len(), 0, "more may come of both");
    script.send(full(vec![small], vec![]));
    until("what has gathered is handled", || script.finished().len() == 4).await;
    assert_eq!(seen.offsets(), [vec![0, 2, 1, 100]], "as one batch, with what is there of others");
    script.deliver(large, Some("c"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(seen.given().len(), 1, "of the other partition more may come");
    // What was on its way, as what comes back for its retry.
    script.deliver(small, Some("a"));
    until("it does not gather", || script.finished().len() == 6).await;
    let is_full = |state: ebus_pool::PoolState| state.partitions.iter().map(|p| p.full).collect::<Vec<_>>();
    assert_eq!(is_full(pool.state().await), [true, false], "and it is visible");
    script.send(full(vec![], vec![small]));
    script.deliver(small, Some("a"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(seen.given().len(), 2, "more may come again");
    assert_eq!(is_full(pool.state().await), [false, false]);
    assert!(seen.since.elapsed() < Duration::from_secs(60));
}

/// Runs of it end meanwhile, and make room for more.
#[tokio::test(start_paused = true)]
async fn p4_what_comes_soon_of_a_full_partition_goes_in_one_batch() {
    let (mut script, source) = script();
    let batch = Batch::of(3).max_age(Duration::from_secs(3_600));
    let (_pool, seen) = pool_that_says(source, one_shard(), batch, |_| DONE);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    script.send(SourceEvent::Full { full: vec![owned], freed: vec![] });
    for key in ["b", "c"] {
        tokio::time::sleep(20 * MS).await;
        script.deliver(owned, Some(key));
    }
    until("it is full", || script.finished().len() == 3).await;
    assert_eq!(seen.offsets(), [[0, 1, 2]]);
}

/// A pool with one slot whose handler waits until it is let go.
fn held_pool(source: Box<ScriptedSource>) -> (Pool, Seen, Arc<AtomicBool>) {
    let (seen, open) = (Seen::new(), Arc::new(AtomicBool::new(false)));
    let (noted, opened) = (seen.clone(), open.clone());
    let handler = in_batches(move |batch: Vec<Delivery>| {
        noted.note(&batch);
        let opened = opened.clone();
        async move {
            while !opened.load(SeqCst) {
                tokio::time::sleep(MS).await;
            }
            DONE
        }
    });
    let handlers = Handlers::new().batch(topic(), Batch::of(20).max_age(Duration::from_secs(3_600)), handler);
    (Pool::start_with(source, one_shard().with_max_in_flight(1), handlers).expect("valid"), seen, open)
}

#[tokio::test(start_paused = true)]
async fn p5_a_partition_that_is_full_before_it_begins_is_full() {
    let (mut script, source) = script();
    let (_pool, seen, open) = held_pool(source);
    let full = |owned| SourceEvent::Full { full: vec![owned], freed: vec![] };
    let before = script.assign(0);
    script.deliver(before, Some("a"));
    script.send(full(before));
    until("it runs", || seen.given().len() == 1).await;
    // Its next ownership is there before that run has ended, and full before it begins.
    script.revoke(before, Duration::from_secs(60));
    tokio::time::sleep(MS).await;
    let again = script.assign(0);
    script.rewind(again, 0);
    script.deliver(again, Some("a"));
    script.deliver(again, Some("b"));
    script.send(full(again));
    tokio::time::sleep(MS).await;
    open.store(true, SeqCst);
    until("what is full waits for nothing", || script.finished().len() >= 2).await;
    assert!(seen.since.elapsed() < Duration::from_secs(60), "{:?}", seen.given());
}

#[tokio::test(start_paused = true)]
async fn p5_who_leaves_a_batch_leaves_it_in_the_haste_that_it_had() {
    let (mut script, source) = script();
    let (_pool, seen, open) = held_pool(source);
    let (busy, small, other) = (script.assign(0), script.assign(1), script.assign(2));
    script.rewind(small, 100);
    script.rewind(other, 200);
    script.deliver(busy, Some("a"));
    script.send(SourceEvent::Full { full: vec![busy, small], freed: vec![] });
    until("it has the slot", || seen.given().len() == 1).await;
    script.deliver(small, Some("b"));
    script.deliver(other, Some("c"));
    tokio::time::sleep(MS).await;
    script.revoke(other, Duration::from_secs(60));
    until("it had only gathered", || script.released()).await;
    open.store(true, SeqCst);
    until("what is full waits for nothing", || script.finished().len() == 2).await;
    assert_eq!(seen.offsets(), [[0], [100]]);
    assert!(seen.since.elapsed() < Duration::from_secs(60), "{:?}", seen.given());
}

/// To gather was a topic's turn, and the slot went to the other one each time.
#[tokio::test(start_paused = true)]
async fn p5_what_gathers_does_not_wait_in_a_small_budget_that_it_fills() {
    let (mut script, source) = script();
    let config = one_shard().with_shards(2).with_budget_messages(8);
    let (_pool, seen) =
        pool_that_says(source, config, Batch::of(8).max_age(Duration::from_secs(3_600)), |_| DONE);
    let owned = script.assign(0);
    // In neither shard is there room for eight.
    for i in 0..16 {
        script.deliver(owned, Some(&format!("k{i}")));
    }
    until("all finished", || script.finished().len() == 16).await;
    assert!(seen.since.elapsed() < Duration::from_secs(60), "{:?}", seen.given());
}

#[tokio::test(start_paused = true)]
async fn p4_a_topic_in_batches_gets_its_slot_beside_a_busy_one() {
    let (mut script, source) = script();
    let seen = Seen::new();
    let noted = seen.clone();
    let quick = in_batches(move |batch| {
        noted.note(&batch);
        async { DONE }
    });
    let busy = handler(|_| async {
        tokio::time::sleep(2 * MS).await;
        Outcome::Ack
    });
    let other = Topic::new("others").expect("legal");
    let handlers =
        Handlers::new().on(topic(), busy).batch(other.clone(), Batch::of(1_000).max_age(10 * MS), quick);
    let _pool = Pool::start_with(source, one_shard().with_max_in_flight(1), handlers).expect("valid");
    let backlog = script.assign(0);
    let id = PartitionId::new(other, 0);
    let assigned = script.ownership().assign(id, Epoch(1), &Position::default(), Lease::unlimited());
    let batched = assigned.owned;
    script.send(SourceEvent::Assigned { owned: vec![assigned] });
    for i in 0..1_000 {
        script.deliver(backlog, Some(&format!("a{i}")));
    }
    for i in 0..200 {
        script.deliver(batched, Some(&format!("b{i}")));
        tokio::time::sleep(MS).await;
    }
    let given = seen.given();
    assert!(given.len() >= 12, "{} batches in 200 ms", given.len());
    assert!(given.iter().all(|given| given.messages.len() <= 20), "{given:?}");
}

#[tokio::test(start_paused = true)]
async fn p2_messages_of_a_key_stand_together_and_in_order() {
    let (mut script, source) = script();
    let (_pool, seen) = pool_that_says(source, one_shard(), Batch::of(100), |batch| {
        let keys: Vec<_> = batch.iter().map(|delivery| delivery.key().cloned()).collect();
        assert_eq!(keys.chunk_by(|a, b| a == b).count(), 3, "{keys:?}");
        DONE
    });
    let owned = script.assign(0);
    for i in 0..9 {
        script.deliver(owned, Some(&format!("k{}", i % 3)));
    }
    until("all finished", || script.finished().len() == 9).await;
    assert_eq!(seen.offsets(), [[0, 3, 6, 1, 4, 7, 2, 5, 8]]);
}

#[tokio::test(start_paused = true)]
async fn p5_a_batch_takes_one_place_of_those_in_flight() {
    let (mut script, source) = script();
    let seen = Seen::new();
    let noted = seen.clone();
    let handler = in_batches(move |batch| {
        noted.note(&batch);
        async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            DONE
        }
    });
    let pool = Pool::start(source, config().with_shards(2).with_max_in_flight(2)).expect("valid");
    pool.subscribe_batch(topic(), Batch::of(10), handler).expect("open");
    let owned = script.assign(0);
    for _ in 0..100 {
        script.deliver(owned, None);
    }
    until("two run", || seen.given().len() == 2).await;
    tokio::time::sleep(500 * MS).await;
    let state = pool.state().await;
    assert_eq!((state.in_flight, seen.given().len(), script.finished().len()), (2, 2, 0));
    until("all finished", || script.finished().len() == 100).await;
    assert_eq!(seen.given().len(), 10);
    assert!(seen.given()[9].at < Duration::from_secs(6), "{:?}", seen.given());
}

#[tokio::test(start_paused = true)]
async fn p2_distinct_keys_has_one_message_of_each_and_waits_for_nothing_while_one_waits_for_it() {
    let (mut script, source) = script();
    let batch = Batch::of(100).max_age(Duration::from_secs(3600)).distinct_keys();
    let (_pool, seen) = pool_that_says(source, one_shard(), batch, |_| DONE);
    let owned = script.assign(0);
    for i in 0..30 {
        script.deliver(owned, Some(&format!("k{}", i % 3)));
    }
    until("all but the last of each key", || script.finished().len() == 27).await;
    for offsets in seen.offsets() {
        let keys: std::collections::BTreeSet<u64> = offsets.iter().map(|offset| offset % 3).collect();
        assert_eq!(keys.len(), offsets.len(), "{offsets:?}");
    }
    assert!(seen.given()[8].at < 100 * MS, "{:?}", seen.given());
}

#[tokio::test(start_paused = true)]
async fn p3_what_has_no_lease_is_left_out_of_a_batch() {
    let (mut script, source) = script();
    let (_pool, seen) = pool_that_says(source, one_shard(), Batch::of(10).max_age(20 * MS), |_| DONE);
    let lease = Lease::until((Instant::now() + 10 * MS).into_std());
    let (lapses, stays) = (script.assign_with(0, lease.clone()), script.assign(1));
    script.rewind(stays, 100);
    script.deliver(lapses, Some("a"));
    script.deliver(stays, Some("b"));
    until("the other one runs", || script.finished() == [100]).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(seen.offsets(), [[100]]);
    lease.extend((Instant::now() + Duration::from_secs(60)).into_std());
    until("it runs", || script.finished() == [100, 0]).await;
}

/// Ready once it is opened; counts its clones.
struct Gate {
    open: Arc<AtomicBool>,
    clones: Arc<AtomicUsize>,
}

impl Clone for Gate {
    fn clone(&self) -> Self {
        self.clones.fetch_add(1, SeqCst);
        Self { open: self.open.clone(), clones: self.clones.clone() }
    }
}

impl tower::Service<Vec<Delivery>> for Gate {
    type Response = BatchOutcome;
    type Error = Infallible;
    type Future = std::future::Ready<Result<BatchOutcome, Infallible>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        if self.open.load(SeqCst) {
            return std::task::Poll::Ready(Ok(()));
        }
        let waker = cx.waker().clone();
        tokio::spawn(async move {
            tokio::time::sleep(MS).await;
            waker.wake();
        });
        std::task::Poll::Pending
    }

    fn call(&mut self, _: Vec<Delivery>) -> Self::Future {
        std::future::ready(Ok(DONE))
    }
}

/// A handler that is not ready may stand in a queue: it keeps its place there while a batch waits for it, and no longer.
#[tokio::test(start_paused = true)]
async fn p9_a_handler_keeps_its_place_while_a_batch_waits_for_it() {
    let (mut script, source) = script();
    let gate = Gate { open: Arc::default(), clones: Arc::default() };
    let (open, clones) = (gate.open.clone(), gate.clones.clone());
    let handlers = Handlers::new().batch(topic(), Batch::of(10).max_age(10 * MS), gate);
    let pool = Pool::start_with(source, one_shard(), handlers).expect("valid");
    let (first, second) = (script.assign(0), script.assign(1));
    script.rewind(second, 100);
    let before = clones.load(SeqCst);
    script.deliver(first, Some("a"));
    tokio::time::sleep(100 * MS).await;
    assert_eq!((clones.load(SeqCst), pool.state().await.in_flight), (before, 0), "it waits");
    script.revoke(first, Duration::from_secs(1));
    until("released", || script.released()).await;
    assert_eq!((clones.load(SeqCst), script.dropped()), (before + 1, vec![0]), "it left its queue");
    script.deliver(second, Some("b"));
    tokio::time::sleep(100 * MS).await;
    open.store(true, SeqCst);
    until("it runs", || script.finished() == [100]).await;
    assert_eq!(clones.load(SeqCst), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_topic_changes_from_batches_to_single_messages_and_back() {
    let (mut script, source) = script();
    let (pool, seen) = pool_that_says(source, one_shard(), Batch::of(10).max_age(60_000 * MS), |_| DONE);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    script.deliver(owned, Some("a"));
    tokio::time::sleep(MS).await;
    let log = Log::default();
    let single = log.clone();
    let each = handler(move |delivery| {
        single.run(&delivery).end();
        async { Outcome::Ack }
    });
    pool.subscribe(topic(), each).expect("open");
    until("what was gathered runs by itself", || script.finished() == [0, 1]).await;
    assert_eq!((log.starts(), seen.given().len()), (vec![0, 1], 0));
    let noted = seen.clone();
    let batches = in_batches(move |batch| {
        noted.note(&batch);
        async { DONE }
    });
    pool.subscribe_batch(topic(), Batch::of(2), batches).expect("open");
    script.deliver(owned, Some("a"));
    script.deliver(owned, Some("a"));
    until("and in a batch again", || script.finished() == [0, 1, 2, 3]).await;
    assert_eq!(seen.offsets(), [[2, 3]]);
}

#[tokio::test(start_paused = true)]
async fn p8_a_batch_that_could_never_fill_is_refused() {
    let config = config().with_budget_messages(100).with_budget_bytes(1_000);
    for (batch, says) in [
        (Batch::of(0), "0 messages"),
        (Batch::of(101), "budget_messages is 100"),
        (Batch::of(10).max_bytes(0), "0 bytes"),
        (Batch::of(10).max_bytes(1_001), "budget_bytes is 1000"),
    ] {
        let handlers = Handlers::new().batch(topic(), batch, in_batches(|_| async { DONE }));
        let (_script, source) = script();
        let refused = Pool::start_with(source, config.clone(), handlers).expect_err("cannot fill");
        assert_eq!(refused.kind(), ErrorKind::ConfigInvalid);
        assert!(refused.to_string().contains(says), "{refused}");
        let (_script, source) = script();
        let pool = Pool::start(source, config.clone()).expect("valid");
        let refused =
            pool.subscribe_batch(topic(), batch, in_batches(|_| async { DONE })).expect_err("neither later");
        assert!(
            refused.kind() == ErrorKind::ConfigInvalid && refused.to_string().contains(says),
            "{refused}"
        );
    }
}

/// What is left out of a batch says nothing of the others in it.
#[tokio::test(start_paused = true)]
async fn p4_what_a_hand_over_leaves_of_a_batch_waits_for_nothing_if_one_waits_for_it() {
    for one_waits in [true, false] {
        let (mut script, source) = script();
        let seen = Seen::new();
        let noted = seen.clone();
        let handler = in_batches(move |batch: Vec<Delivery>| {
            noted.note(&batch);
            async move {
                tokio::time::sleep(if batch[0].offset() == 0 { 10_000 * MS } else { MS }).await;
                DONE
            }
        });
        let batch = Batch::of(100).max_age(Duration::from_secs(3600)).distinct_keys();
        let handlers = Handlers::new().batch(topic(), batch, handler);
        let _pool = Pool::start_with(source, one_shard().with_max_in_flight(1), handlers).expect("valid");
        let (stays, goes) = (script.assign(0), script.assign(1));
        for key in ["first", "first"] {
            script.deliver(stays, Some(key));
        }
        until("the only slot is taken", || seen.given().len() == 1).await;
        script.deliver(goes, Some("x"));
        script.deliver(stays, Some("a"));
        if one_waits {
            script.deliver(stays, Some("a"));
        }
        tokio::time::sleep(1_000 * MS).await;
        script.revoke(goes, 1_000 * MS);
        until("released", || script.released()).await;
        tokio::time::sleep(20_000 * MS).await;
        let expected = if one_waits { vec![vec![0], vec![2, 1]] } else { vec![vec![0]] };
        assert_eq!(seen.offsets(), expected, "one waits: {one_waits}");
    }
}

/// Of its own it hears nothing: what fills the budget goes to the other shard.
#[tokio::test(start_paused = true)]
async fn p5_what_gathers_in_a_shard_that_rests_goes_when_the_budget_is_full() {
    let (mut script, source) = script();
    let stuck = handler(|_| std::future::pending::<Outcome>());
    let seen = Seen::new();
    let noted = seen.clone();
    let quick = in_batches(move |batch| {
        noted.note(&batch);
        async { DONE }
    });
    let other = Topic::new("others").expect("legal");
    let batch = Batch::of(60).max_age(Duration::from_secs(3_600));
    let handlers = Handlers::new().on(topic(), stuck).batch(other.clone(), batch, quick);
    let config = one_shard().with_shards(2).with_budget_messages(64);
    let _pool = Pool::start_with(source, config, handlers).expect("valid");
    let hot = script.assign(0);
    let id = PartitionId::new(other, 0);
    let assigned = script.ownership().assign(id, Epoch(1), &Position::default(), Lease::unlimited());
    let batched = assigned.owned;
    script.send(SourceEvent::Assigned { owned: vec![assigned] });
    // Without a key, they go round: one to each shard.
    script.deliver(batched, None);
    script.deliver(batched, None);
    tokio::time::sleep(10 * MS).await;
    assert_eq!(seen.given(), [], "they gather");
    for _ in 0..100 {
        script.deliver(hot, Some("hot"));
    }
    until("both are handled", || seen.given().len() == 2).await;
    assert!(seen.since.elapsed() < Duration::from_secs(60), "{:?}", seen.given());
}
