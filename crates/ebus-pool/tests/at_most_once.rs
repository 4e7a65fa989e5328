//! At most once: committed, then started, once or never (G2, G3, G5, G8); and what `drop_on_failure` drops.

mod common;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use ebus_core::{BatchOutcome, Error, ErrorKind, Failures, Lease, Outcome, Topic};
use ebus_pool::{Batch, Doing, Handlers, Pool, PoolConfig, RetryPolicy};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

fn once() -> PoolConfig {
    config().with_at_most_once()
}

/// A pool whose handler takes `run` for each message.
fn pool(source: Box<ScriptedSource>, config: PoolConfig, log: &Log, run: Duration) -> Pool {
    let pool = Pool::start(source, config).expect("valid");
    let seen = log.clone();
    let handler = handler(move |delivery| {
        let entry = seen.run(&delivery);
        async move {
            tokio::time::sleep(run).await;
            entry.end();
            Outcome::Ack
        }
    });
    pool.subscribe(topic(), handler).expect("open");
    pool
}

async fn handled(pool: &Pool, count: u64) {
    until("they are handled", || pool.counters().handled == count).await;
}

#[tokio::test(start_paused = true)]
async fn c10_nothing_starts_before_an_accepted_commit_covers_it() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = pool(source, once().with_stuck_after(S), &log, MS);
    let owned = script.assign(0);
    for key in ["a", "b"] {
        script.deliver(owned, Some(key));
    }
    script.deliver(owned, None);
    until("all are settled", || script.finished().len() == 3).await;
    tokio::time::sleep(2 * S).await;
    assert_eq!(log.starts(), [], "not committed yet");
    let state = pool.state().await;
    assert_eq!(state.held_messages, 3, "they stay in the budget");
    assert!(state.stuck.iter().all(|stuck| stuck.doing == Doing::Committing && stuck.attempts == 0));
    assert_eq!(state.stuck.len(), 3, "and are visible");
    // What shards ask for while a request is open goes with the next one.
    for _ in 0..script.asked() {
        script.commit(owned);
    }
    until("the rest is asked for", || {
        log.starts().len() == 3 || {
            script.commit(owned);
            false
        }
    })
    .await;
    handled(&pool, 3).await;
    until("nothing is held", || script.asked() > 0).await;
    assert_eq!(pool.state().await.held_messages, 0, "given back");
    assert_eq!(script.finished().len(), 3, "settled once");
    assert_eq!((script.dropped(), pool.counters().stale), (vec![], 0));
}

#[tokio::test(start_paused = true)]
async fn p2_a_key_runs_in_order_and_more_of_it_is_committed_at_once_while_its_runs_are_quick() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = pool(source, once(), &log, Duration::ZERO);
    let owned = script.assign(0);
    for _ in 0..200 {
        script.deliver(owned, Some("a"));
    }
    let mut most = 0;
    while pool.counters().handled < 200 {
        let handled = pool.counters().handled;
        until("more is asked for", || script.finished().len() as u64 > handled).await;
        tokio::time::sleep(MS).await;
        let ahead = script.finished().len() - handled as usize;
        assert!(ahead <= 64, "{ahead} are committed ahead");
        most = most.max(ahead);
        assert_eq!(pool.counters().handled, handled, "nothing starts before its commit");
        script.commit(owned);
        let now = script.finished().len() as u64;
        until("what is committed runs", || pool.counters().handled == now).await;
    }
    assert_eq!(log.starts(), (0..200).collect::<Vec<_>>());
    assert_eq!(most, 64);
}

/// Where a run takes long, little may be committed that has not started.
#[tokio::test(start_paused = true)]
async fn p5_a_key_whose_runs_get_slow_commits_half_as_much_each_time() {
    let (mut script, source) = script();
    let pool = Pool::start(source, once()).expect("valid");
    let slow = Arc::new(AtomicBool::new(false));
    let is_slow = slow.clone();
    let handler = handler(move |_| {
        let run = if is_slow.load(Relaxed) { 100 * MS } else { Duration::ZERO };
        async move {
            tokio::time::sleep(run).await;
            Outcome::Ack
        }
    });
    pool.subscribe(topic(), handler).expect("open");
    let owned = script.assign(0);
    for _ in 0..300 {
        script.deliver(owned, Some("a"));
    }
    let mut ahead = Vec::new();
    while ahead.last() != Some(&1) || ahead.len() == 1 {
        let handled = pool.counters().handled;
        until("more is asked for", || script.finished().len() as u64 > handled).await;
        tokio::time::sleep(MS).await;
        ahead.push(script.finished().len() as u64 - handled);
        slow.store(ahead.len() > 5, Relaxed);
        script.commit(owned);
        let now = script.finished().len() as u64;
        until("what is committed runs", || pool.counters().handled == now).await;
    }
    assert_eq!(ahead, [1, 2, 4, 8, 16, 32, 16, 8, 4, 2, 1]);
}

#[tokio::test(start_paused = true)]
async fn g05_what_nobody_handles_yet_is_not_committed() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = Pool::start(source, once().with_stuck_after(S)).expect("valid");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    tokio::time::sleep(2 * S).await;
    assert_eq!(pool.state().await.stuck.len(), 1, "it is held, and visible");
    assert_eq!((script.finished(), script.asked()), (vec![], 0));
    let seen = log.clone();
    let handler = handler(move |delivery| {
        seen.run(&delivery).end();
        std::future::ready(Outcome::Ack)
    });
    pool.subscribe(topic(), handler).expect("open");
    until("it is settled", || script.finished() == [0]).await;
    script.commit(owned);
    handled(&pool, 1).await;
    assert_eq!(log.starts(), [0]);
}

/// What a crash can lose is bounded, however much is held.
#[tokio::test(start_paused = true)]
async fn p5_what_is_committed_ahead_is_bounded_by_what_may_be_in_flight() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = pool(source, once().with_shards(1).with_max_in_flight(4), &log, 10 * S);
    let owned = script.assign(0);
    for _ in 0..100 {
        script.deliver(owned, None);
    }
    until("some are settled", || script.finished().len() == 8).await;
    script.commit(owned);
    until("as many run as may", || log.starts().len() == 4).await;
    tokio::time::sleep(S).await;
    assert_eq!(script.finished().len(), 8);
    tokio::time::sleep(10 * S).await;
    assert_eq!(log.starts().len(), 8);
    assert_eq!(script.finished().len(), 12, "as many as have ended");
    let _ = pool.drain(MS).await;
}

#[tokio::test(start_paused = true)]
async fn p5_shards_share_what_may_be_committed_ahead() {
    let (mut script, source) = script();
    let log = Log::default();
    let _pool = pool(source, once().with_shards(2).with_max_in_flight(4), &log, 10 * S);
    let owned = script.assign(0);
    for _ in 0..100 {
        script.deliver(owned, None);
    }
    // What one shard asks for while the request of the other is open goes with the next one.
    until("both shards have asked", || {
        script.finished().len() >= 8 || {
            script.commit(owned);
            false
        }
    })
    .await;
    script.commit(owned);
    tokio::time::sleep(S).await;
    assert_eq!(script.finished().len(), 8, "twice as many as may be in flight");
}

#[tokio::test(start_paused = true)]
async fn p5_keys_share_what_may_be_committed_ahead() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = pool(source, once().with_shards(1).with_max_in_flight(4), &log, Duration::ZERO);
    let owned = script.assign(0);
    for _ in 0..100 {
        for key in ["a", "b", "c"] {
            script.deliver(owned, Some(key));
        }
    }
    let mut most = 0;
    while pool.counters().handled < 300 {
        tokio::time::sleep(MS).await;
        most = most.max(script.finished().len() as u64 - pool.counters().handled);
        script.commit(owned);
    }
    assert_eq!(most, 8, "twice as many as may be in flight");
}

#[tokio::test(start_paused = true)]
async fn c10_a_hand_over_waits_for_what_is_committed_and_leaves_the_rest_to_the_next_owner() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = pool(source, once(), &log, 100 * MS);
    let owned = script.assign(0);
    for key in ["a", "a", "a", "b"] {
        script.deliver(owned, Some(key));
    }
    until("the first of each key are settled", || {
        script.finished().len() == 2 || {
            script.commit(owned);
            false
        }
    })
    .await;
    let before = log.starts().len();
    script.revoke(owned, 10 * S);
    until("what is behind is left", || script.dropped() == [1, 2]).await;
    tokio::time::sleep(S).await;
    assert!(!script.released() || before == 2, "it is not given up before what is committed has run");
    while !script.released() {
        script.commit(owned);
        tokio::time::sleep(50 * MS).await;
    }
    let mut starts = log.starts();
    starts.sort_unstable();
    assert_eq!(starts, [0, 3], "each once, and none that was left");
    assert_eq!((pool.counters().handled, pool.counters().lost), (2, 0));
    assert_eq!(pool.state().await.held_messages, 0);
}

/// Of a key of which several are committed, all run before its partition is released, and none behind them.
#[tokio::test(start_paused = true)]
async fn p1_a_hand_over_waits_for_all_that_is_committed_of_a_key() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = pool(source, once(), &log, MS);
    let owned = script.assign(0);
    for _ in 0..20 {
        script.deliver(owned, Some("a"));
    }
    for settled in [1, 3] {
        until("more is settled", || script.finished().len() == settled).await;
        script.commit(owned);
    }
    until("four more are settled", || script.finished().len() == 7).await;
    script.revoke(owned, 10 * S);
    until("what is behind is left", || script.dropped().len() == 13).await;
    assert_eq!(script.dropped(), (7..20).collect::<Vec<_>>());
    tokio::time::sleep(S).await;
    assert!(!script.released() && log.starts().len() == 3, "not committed yet");
    script.commit(owned);
    until("it is released", || script.released()).await;
    assert_eq!(log.starts(), (0..7).collect::<Vec<_>>());
    assert_eq!((pool.counters().handled, pool.counters().lost), (7, 0));
}

/// What the deadline of one partition gives up is none of another's.
#[tokio::test(start_paused = true)]
async fn p1_the_deadline_of_a_partition_gives_up_nothing_of_another() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = pool(source, once().with_shards(1).with_max_in_flight(1), &log, 1000 * S);
    let (ends, stays) = (script.assign(0), script.assign(1));
    for key in ["a", "b"] {
        script.deliver(ends, Some(key));
    }
    until("they are settled", || script.finished().len() == 2).await;
    script.commit(ends);
    until("one runs", || log.starts().len() == 1).await;
    for key in ["c", "d"] {
        script.deliver(stays, Some(key));
    }
    until("they are settled", || script.finished().len() == 4).await;
    script.commit(stays);
    script.revoke(ends, S);
    until("it is released", || script.released()).await;
    until("the other partition has its turn", || log.starts().len() == 2).await;
    assert_eq!((pool.counters().cancelled, pool.counters().lost), (1, 1));
    assert_eq!(pool.state().await.held_messages, 2);
}

#[tokio::test(start_paused = true)]
async fn p8_what_was_settled_and_never_committed_is_said_to_be_lost() {
    let (mut script, source) = script();
    let pool = pool(source, once(), &Log::default(), MS);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it is settled", || script.finished() == [0]).await;
    let report = pool.drain(S).await;
    let [left] = report.left.as_slice() else { panic!("{report:?}") };
    assert_eq!((left.cancelled, left.lost, left.queued), (0, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn p8_what_runs_at_the_deadline_is_cancelled_and_not_lost() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = pool(source, once().with_shards(1).with_max_in_flight(2), &log, 1000 * S);
    let owned = script.assign(0);
    for key in ["a", "b", "c"] {
        script.deliver(owned, Some(key));
    }
    until("they are settled", || script.finished().len() == 3).await;
    script.commit(owned);
    until("two run", || log.starts().len() == 2).await;
    let report = pool.drain(S).await;
    let left = &report.left[0];
    assert_eq!((left.cancelled, left.lost, left.queued), (2, 1, 0), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn c10_what_did_not_start_before_the_deadline_is_lost_and_counted() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = pool(source, once().with_shards(1).with_max_in_flight(1), &log, 1000 * S);
    let owned = script.assign(0);
    for key in ["a", "b", "c"] {
        script.deliver(owned, Some(key));
    }
    until("two are settled", || script.finished().len() == 2).await;
    script.commit(owned);
    until("one runs", || log.starts().len() == 1).await;
    let report = pool.drain(3 * S).await;
    let left = &report.left[0];
    assert_eq!((left.cancelled, left.lost, left.queued), (1, 1, 1), "{report:?}");
    assert_eq!((log.starts().len(), log.cancelled()), (1, 1));
    assert_eq!((report.counters.lost, report.counters.cancelled), (1, 1));
    assert_eq!(script.dropped(), [2], "the next owner's");
}

#[tokio::test(start_paused = true)]
async fn c10_a_partition_that_is_lost_before_the_answer_runs_nothing_of_it() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = pool(source, once(), &log, MS);
    let first = script.assign(0);
    script.deliver(first, Some("a"));
    until("it is settled", || script.finished() == [0]).await;
    script.lose(first);
    script.commit(first);
    let second = script.assign(0);
    script.rewind(second, 1);
    script.deliver(second, Some("a"));
    until("the next one is settled", || script.finished() == [0, 1]).await;
    // An answer for the former ownership means nothing to this one.
    script.commit(first);
    tokio::time::sleep(S).await;
    assert_eq!(log.starts(), []);
    script.commit(second);
    handled(&pool, 1).await;
    assert_eq!(log.starts(), [1]);
    assert_eq!((pool.counters().lost, pool.state().await.held_messages), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn c10_a_lease_that_is_over_is_waited_for_and_nothing_is_lost_by_that() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = pool(source, once(), &log, MS);
    let lease = Lease::until((tokio::time::Instant::now() + S).into_std());
    let owned = script.assign_with(0, lease.clone());
    script.deliver(owned, Some("a"));
    script.deliver(owned, Some("a"));
    until("it is settled", || script.finished() == [0]).await;
    tokio::time::sleep(2 * S).await;
    script.commit(owned);
    tokio::time::sleep(S).await;
    assert_eq!(log.starts(), []);
    script.revoke(owned, 60 * S);
    tokio::time::sleep(S).await;
    assert!(!script.released());
    lease.extend((tokio::time::Instant::now() + S).into_std());
    until("it is released", || script.released()).await;
    assert_eq!((log.starts(), pool.counters().lost), (vec![0], 0));
}

/// Outcomes by offset.
fn fails(delivery: &ebus_core::Delivery) -> Outcome {
    match delivery.offset() {
        1 => retry(MS),
        2 => reject(),
        3 => panic!("on purpose"),
        _ => Outcome::Ack,
    }
}

#[tokio::test(start_paused = true)]
async fn c10_what_fails_does_not_run_again_and_is_counted() {
    for config in [once(), config().with_drop_on_failure()] {
        let (mut script, source) = script();
        let pool = Pool::start(source, config).expect("valid");
        let log = Log::default();
        let seen = log.clone();
        let handler = handler(move |delivery| {
            let entry = seen.run(&delivery);
            async move {
                let outcome = fails(&delivery);
                entry.end();
                outcome
            }
        });
        pool.subscribe(topic(), handler).expect("open");
        let owned = script.assign(0);
        for _ in 0..5 {
            script.deliver(owned, Some("a"));
        }
        until("all are over", || {
            script.commit(owned);
            let counters = pool.counters();
            counters.handled + counters.dropped == 5
        })
        .await;
        assert_eq!(log.starts(), [0, 1, 2, 3, 4], "in order, each once");
        let counters = pool.counters();
        assert_eq!((counters.handled, counters.dropped, counters.panics, counters.retries), (2, 3, 1, 0));
        until("all are settled", || script.finished() == [0, 1, 2, 3, 4]).await;
    }
}

/// It is at least once: what runs at the end is the next owner's, what failed is not.
#[tokio::test(start_paused = true)]
async fn c10_drop_on_failure_leaves_what_is_cancelled_to_the_next_owner() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = pool(source, config().with_drop_on_failure(), &log, 1000 * S);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    let report = pool.drain(S).await;
    assert_eq!((report.left[0].cancelled, report.left[0].lost, report.counters.dropped), (1, 0, 0));
    assert_eq!((script.finished(), script.dropped()), (vec![], vec![0]));
}

#[tokio::test(start_paused = true)]
async fn c10_drop_on_failure_of_a_batch_drops_exactly_what_fails_alone() {
    let (mut script, source) = script();
    let pool = Pool::start(source, config().with_shards(1).with_drop_on_failure()).expect("valid");
    let runs = Arc::new(Mutex::new(Vec::new()));
    let seen = runs.clone();
    let handler = tower::service_fn(move |batch: Vec<ebus_core::Delivery>| {
        let offsets: Vec<u64> = batch.iter().map(ebus_core::Delivery::offset).collect();
        let bad = offsets.contains(&1);
        seen.lock().expect("whole").push(offsets);
        let error = Error::new(ErrorKind::Handler, "one of them");
        let outcome = if bad {
            BatchOutcome::Retry { after: None, error }
        } else {
            BatchOutcome::Each(Failures::new())
        };
        async move { Ok::<_, std::convert::Infallible>(outcome) }
    });
    pool.subscribe_batch(topic(), Batch::of(3).max_age(S), handler).expect("open");
    let owned = script.assign(0);
    for key in ["a", "b", "c"] {
        script.deliver(owned, Some(key));
    }
    until("all are settled", || script.finished().len() == 3).await;
    assert_eq!((pool.counters().handled, pool.counters().dropped), (2, 1));
    assert_eq!(runs.lock().expect("whole")[0].len(), 3, "{runs:?}");
}

#[test]
fn i06_what_does_not_go_together_is_refused_with_all_at_once() {
    let letters = letters::Letters::default();
    for (config, says) in [
        (once().with_drop_on_failure(), &["at_most_once and drop_on_failure exclude"][..]),
        (
            once().with_retry(RetryPolicy::exponential()).with_drop_rejected().with_shards(0),
            &["at_most_once and a retry policy", "at_most_once and drop_rejected", "shards is 0"],
        ),
        (
            letters.config(1).with_at_most_once(),
            &["at_most_once and a dead-letter topic", "at_most_once and parked keys"],
        ),
        (
            letters.config(1).with_drop_on_failure(),
            &["drop_on_failure and a dead-letter topic", "drop_on_failure and parked keys"],
        ),
        (
            config().with_drop_on_failure().with_retry(RetryPolicy::exponential().max_attempts(2)),
            &["drop_on_failure and a retry policy"],
        ),
    ] {
        let error = config.validate().expect_err(says[0]);
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        let text = error.to_string();
        assert!(says.iter().all(|says| text.contains(says)), "{text}");
    }
    assert!(once().validate().is_ok() && config().with_drop_on_failure().validate().is_ok());
}

#[tokio::test]
async fn i06_batches_at_most_once_are_refused_at_the_start_and_later() {
    let none = tower::service_fn(|_: Vec<ebus_core::Delivery>| async {
        Ok::<_, std::convert::Infallible>(BatchOutcome::Each(Failures::new()))
    });
    let handlers = Handlers::new().batch(topic(), Batch::of(2), none);
    let error = Pool::start_with(script().1, once(), handlers).expect_err("no batches");
    assert!(
        error.kind() == ErrorKind::ConfigInvalid && error.to_string().contains("message by message"),
        "{error}"
    );
    let pool = Pool::start(script().1, once()).expect("valid");
    let other = Topic::new("other").expect("legal");
    let error = pool.subscribe_batch(other, Batch::of(2), none).expect_err("no batches");
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
}
