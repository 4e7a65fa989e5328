//! What becomes of the messages of a batch: when some of them fail, when all do, and when a partition leaves (G1, G2, G3, G4, G6).

mod common;

use std::time::Duration;

use common::batches::*;
use common::*;
use ebus_core::{BatchHandler, BatchOutcome, Delivery, Failures, Outcome};
use ebus_pool::{Batch, Handlers, Pool, RetryPolicy};

const MS: Duration = Duration::from_millis(1);

/// The partitions of a key that moved end by themselves: what is behind one's message must not be held by the other's batch.
#[tokio::test(start_paused = true)]
async fn p3_a_key_in_two_partitions_is_in_two_batches() {
    let (mut script, source) = script();
    let (_pool, seen) = pool_that_says(source, one_shard(), Batch::of(100).max_age(MS), |_| DONE);
    let (before, after) = (script.assign(0), script.assign(1));
    script.rewind(after, 100);
    for owned in [before, before, after, after, before] {
        script.deliver(owned, Some("a"));
    }
    until("all finished", || script.finished().len() == 5).await;
    assert_eq!(seen.offsets(), [vec![0, 1], vec![100, 101], vec![2]]);
}

#[tokio::test(start_paused = true)]
async fn p4_only_the_keys_of_those_that_failed_wait() {
    let (mut script, source) = script();
    let (pool, seen) = pool_that_says(source, one_shard(), Batch::of(100), |batch| {
        let mut failures = Failures::new();
        for (place, delivery) in batch.iter().enumerate() {
            if delivery.offset() == 1 && delivery.attempt() == 1 {
                let after = Some(Duration::from_secs(10));
                failures.add(place, Outcome::Retry { after, error: failed() });
            }
        }
        BatchOutcome::Each(failures)
    });
    let owned = script.assign(0);
    for key in ["a", "a", "a", "b", "b"] {
        script.deliver(owned, Some(key));
    }
    until("the batch has run", || script.finished().len() == 3).await;
    assert_eq!(script.finished(), [0, 3, 4], "2 stood behind 1, which failed");
    script.deliver(owned, Some("a"));
    script.deliver(owned, Some("b"));
    until("b goes on", || script.finished().len() == 4).await;
    assert_eq!(script.finished()[3], 6);
    until("a too, later", || script.finished().len() == 7).await;
    let given = seen.given();
    assert_eq!(given[0].messages, [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]);
    assert_eq!(given[2].messages, [(1, 2), (2, 1), (5, 1)], "2 had not begun");
    assert!(given[2].at >= Duration::from_secs(10), "{given:?}");
    assert_eq!((pool.counters().handled, pool.counters().retries), (7, 1));
}

#[tokio::test(start_paused = true)]
async fn p1_what_is_rejected_is_dropped_and_what_stands_behind_it_runs() {
    let (mut script, source) = script();
    let config = one_shard().with_drop_rejected();
    let (pool, seen) = pool_that_says(source, config, Batch::of(100), |batch| {
        let at = batch.iter().position(|delivery| delivery.offset() == 0);
        let failures =
            at.map(|at| Failures::new().with(at, reject()).with(at + 1, reject()).with(at + 2, reject()));
        BatchOutcome::Each(failures.unwrap_or_default())
    });
    let owned = script.assign(0);
    for key in ["a", "b", "a"] {
        script.deliver(owned, Some(key));
    }
    until("all finished", || script.finished().len() == 3).await;
    assert_eq!((pool.counters().dropped, pool.counters().handled), (2, 1), "{:?}", seen.given());
    assert_eq!(seen.offsets(), [vec![0, 2, 1], vec![2]], "2 stood behind 0, and has not begun");
}

/// One that panics took others with it at each attempt, if they came back together, and nobody got on.
#[tokio::test(start_paused = true)]
async fn p4_one_that_panics_takes_a_batch_with_it_once() {
    let (mut script, source) = script();
    let (pool, seen) = pool_that_says(source, one_shard(), Batch::of(100), |batch| {
        if batch.iter().any(|delivery| delivery.key().is_some_and(|key| key.as_bytes() == b"poison")) {
            std::panic::resume_unwind(Box::new("poison"));
        }
        DONE
    });
    let owned = script.assign(0);
    for key in ["a", "poison", "b", "a"] {
        script.deliver(owned, Some(key));
    }
    until("the others are done", || script.finished().len() == 3).await;
    for i in 0..20 {
        script.deliver(owned, Some(&format!("k{}", i % 4)));
        tokio::time::sleep(5 * MS).await;
    }
    until("those that came later too", || script.finished().len() == 23).await;
    let with_poison: Vec<_> = seen.offsets().into_iter().filter(|offsets| offsets.contains(&1)).collect();
    assert_eq!(with_poison[0], [0, 3, 1, 2]);
    assert!(
        with_poison.len() > 3 && with_poison[1..].iter().all(|offsets| *offsets == [1]),
        "{with_poison:?}"
    );
    assert_eq!(seen.offsets()[1..].iter().filter(|offsets| offsets.contains(&3)).count(), 1);
    let stuck = pool.state().await.stuck;
    assert!(stuck.len() == 1 && stuck[0].offset == 1 && stuck[0].attempts > 3, "{stuck:?}");
    assert_eq!(pool.counters().panics, with_poison.len() as u64);
}

/// Others would be dead-lettered, or dropped as here, for what one of them did.
#[tokio::test(start_paused = true)]
async fn p1_nobody_is_given_up_for_the_failure_of_a_whole_batch() {
    let (mut script, source) = script();
    let config = one_shard().with_drop_rejected().with_retry(RetryPolicy::fixed(MS).max_attempts(1));
    let (pool, seen) = pool_that_says(source, config, Batch::of(100), |batch| {
        if batch.iter().any(|delivery| delivery.offset() == 2) { all_failed() } else { DONE }
    });
    let owned = script.assign(0);
    for key in ["a", "b", "c", "d", "c"] {
        script.deliver(owned, Some(key));
    }
    until("all are done", || script.finished().len() == 5).await;
    assert_eq!((pool.counters().handled, pool.counters().dropped), (4, 1), "{:?}", seen.given());
    assert_eq!(seen.given()[0].messages.len(), 5);
    assert!(seen.given()[1..].iter().all(|given| given.messages.len() == 1), "{:?}", seen.given());
}

#[tokio::test(start_paused = true)]
async fn p8_a_place_that_is_not_in_the_batch_fails_it_and_says_so() {
    let (mut script, source) = script();
    let (pool, seen) = pool_that_says(source, one_shard(), Batch::of(100), |batch| {
        let wrong = if batch[0].attempt() < 3 { batch.len() } else { 0 };
        if batch[0].attempt() == 4 {
            DONE
        } else {
            BatchOutcome::Each(Failures::new().with(wrong, retry(100 * MS)))
        }
    });
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it is tried again", || seen.given().len() == 2).await;
    let stuck = pool.state().await.stuck;
    let error = stuck[0].last_error.as_ref().map(ToString::to_string).unwrap_or_default();
    assert!(error.contains("message 1 of a batch of 1"), "{error}");
    until("it is done", || script.finished() == [0]).await;
    assert_eq!(seen.given().len(), 4);
}

/// A handler that counts into `running` and never ends; the test says what is given up.
fn endless(seen: &Seen) -> impl BatchHandler {
    let noted = seen.clone();
    in_batches(move |batch| {
        noted.note(&batch);
        let first = batch[0].offset();
        async move {
            if first == 0 {
                std::future::pending::<()>().await;
            }
            DONE
        }
    })
}

#[tokio::test(start_paused = true)]
async fn p3_a_batch_that_outlives_a_hand_over_is_cancelled_and_the_rest_of_it_runs_again() {
    let (mut script, source) = script();
    let seen = Seen::new();
    let handlers = Handlers::new().batch(topic(), Batch::of(4).max_age(10 * MS), endless(&seen));
    let pool = Pool::start_with(source, one_shard(), handlers).expect("valid");
    let (leaves, stays) = (script.assign(0), script.assign(1));
    script.rewind(stays, 100);
    script.deliver(leaves, Some("a"));
    script.deliver(leaves, Some("a"));
    script.deliver(stays, Some("b"));
    script.deliver(stays, Some("b"));
    until("the batch runs", || seen.given().len() == 1).await;
    script.deliver(leaves, Some("c"));
    script.revoke(leaves, Duration::from_secs(5));
    until("what has not begun is dropped at once", || script.dropped() == [2]).await;
    assert!(!script.released());
    until("released", || script.released()).await;
    assert!(seen.since.elapsed() < Duration::from_secs(6));
    assert_eq!(script.dropped(), [2, 1, 0], "the next owner gets them");
    until("the other partition goes on", || script.finished() == [100, 101]).await;
    assert_eq!(seen.given()[0].messages, [(0, 1), (1, 1), (100, 1), (101, 1)]);
    assert_eq!(seen.given()[1].messages, [(100, 1), (101, 1)], "a hand-over of others is no attempt");
    assert_eq!(pool.counters().cancelled, 2, "runs of two keys");
    let _ = pool.drain(Duration::ZERO).await;
    assert_eq!(pool.counters().stale, 0);
}

#[tokio::test(start_paused = true)]
async fn p3_a_loss_cancels_the_batch_at_once() {
    let (mut script, source) = script();
    let seen = Seen::new();
    let handlers = Handlers::new().batch(topic(), Batch::of(2).max_age(10 * MS), endless(&seen));
    let _pool = Pool::start_with(source, one_shard(), handlers).expect("valid");
    let (lost, stays) = (script.assign(0), script.assign(1));
    script.rewind(stays, 100);
    script.deliver(lost, Some("a"));
    script.deliver(stays, Some("b"));
    until("the batch runs", || seen.given().len() == 1).await;
    script.lose(lost);
    until("the other partition goes on", || script.finished() == [100]).await;
    assert!(seen.since.elapsed() < 100 * MS);
    let again = script.assign(0);
    script.rewind(again, 0);
    script.deliver(again, Some("x"));
    until("its next ownership begins", || seen.offsets().concat().iter().filter(|o| **o == 0).count() == 2)
        .await;
}

#[tokio::test(start_paused = true)]
async fn p6_a_batch_that_ends_within_a_hand_over_is_finished() {
    let (mut script, source) = script();
    let seen = Seen::new();
    let noted = seen.clone();
    let handler = in_batches(move |batch: Vec<Delivery>| {
        noted.note(&batch);
        async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let place = batch.iter().position(|delivery| delivery.offset() == 1).expect("is there");
            BatchOutcome::Each(Failures::new().with(place, retry(MS)))
        }
    });
    let handlers = Handlers::new().batch(topic(), Batch::of(6).max_age(5 * MS), handler);
    let _pool = Pool::start_with(source, one_shard(), handlers).expect("valid");
    let (leaves, stays) = (script.assign(0), script.assign(1));
    script.rewind(stays, 100);
    for key in ["a", "a", "a", "b"] {
        script.deliver(leaves, Some(key));
    }
    script.deliver(stays, Some("c"));
    until("the batch runs", || seen.given().len() == 1).await;
    script.revoke(leaves, Duration::from_secs(10));
    until("released", || script.released()).await;
    let mut finished = script.finished();
    finished.sort_unstable();
    assert_eq!(finished, [0, 3, 100]);
    let mut dropped = script.dropped();
    dropped.sort_unstable();
    assert_eq!(dropped, [1, 2], "what failed, and what stood behind it, is the next owner's");
}

#[tokio::test(start_paused = true)]
async fn p6_a_drain_starts_no_batch() {
    let (mut script, source) = script();
    let batch = Batch::of(10).max_age(Duration::from_secs(60));
    let (pool, seen) = pool_that_says(source, one_shard(), batch, |_| DONE);
    let owned = script.assign(0);
    for key in ["a", "b", "a"] {
        script.deliver(owned, Some(key));
    }
    until("they are held", || !script.said().contains(&Said::Closed) && script.finished().is_empty()).await;
    tokio::time::sleep(MS).await;
    let report = pool.drain(Duration::from_secs(30)).await;
    assert_eq!((report.left.len(), report.left[0].queued), (1, 3));
    assert!(seen.given().is_empty() && seen.since.elapsed() < Duration::from_secs(1), "it waits for no age");
    let mut dropped = script.dropped();
    dropped.sort_unstable();
    assert_eq!(dropped, [0, 1, 2]);
}

/// Its key is in two partitions, and so in one lane.
#[tokio::test(start_paused = true)]
async fn p1_what_a_hand_over_drops_of_a_batch_is_nothing_of_another_partition_behind_it() {
    for (within, finished, dropped) in [(10_000, vec![0, 100], vec![2, 1]), (1_000, vec![100], vec![2, 1, 0])]
    {
        let (mut script, source) = script();
        let seen = Seen::new();
        let noted = seen.clone();
        let handler = in_batches(move |batch: Vec<Delivery>| {
            noted.note(&batch);
            async move {
                if batch.len() == 1 {
                    return DONE;
                }
                tokio::time::sleep(2_000 * MS).await;
                BatchOutcome::Each(Failures::new().with(1, retry(MS)))
            }
        });
        let handlers = Handlers::new().batch(topic(), Batch::of(3).max_age(50 * MS), handler);
        let _pool = Pool::start_with(source, one_shard(), handlers).expect("valid");
        let (leaves, stays) = (script.assign(0), script.assign(1));
        script.rewind(stays, 100);
        for owned in [leaves, leaves, leaves, stays] {
            script.deliver(owned, Some("a"));
        }
        until("the batch runs", || seen.given().len() == 1).await;
        script.revoke(leaves, within * MS);
        until("released", || script.released()).await;
        until("the other partition goes on", || script.finished() == finished).await;
        let mut left = script.dropped();
        left.sort_by_key(|offset| std::cmp::Reverse(*offset));
        assert_eq!(left, dropped, "within {within} ms");
    }
}
