//! Hand-over: what runs ends, what waits is left, nothing is released before (G1, G2, G3, G6).

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use common::*;
use ebus_core::{Error, ErrorKind, Outcome, Publish, Publisher, Receipt, Topic};
use ebus_pool::{Pool, RetryPolicy};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn p3_release_waits_for_the_run_and_what_is_queued_is_left() {
    let (mut script, source) = script();
    let log = Log::default();
    let _pool = slow_pool(source, &log, S);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    script.revoke(owned, 10 * S);
    until("the queued one is dropped", || script.dropped() == [1]).await;
    assert!(!script.released(), "a run is in progress");
    until("released", || script.released()).await;
    assert_eq!(
        script.said(),
        [
            Said::Dropped { partition: 0, epoch: 1, offset: 1 },
            Said::Finished { partition: 0, epoch: 1, offset: 0 },
            Said::Released { partition: 0, epoch: 1 },
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn p3_a_run_that_outlives_the_deadline_is_cancelled_before_the_release() {
    let (mut script, source) = script();
    let log = Log::default();
    let _pool = slow_pool(source, &log, 1000 * S);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    let begun = tokio::time::Instant::now();
    script.revoke(owned, 2 * S);
    until("released", || script.released()).await;
    assert!(begun.elapsed() < 2 * S, "{:?}", begun.elapsed());
    assert_eq!(log.cancelled(), 1);
    assert_eq!(script.dropped(), [0]);
}

#[tokio::test(start_paused = true)]
async fn p3_lost_cancels_at_once_settles_nothing_and_releases_nothing() {
    let (mut script, source) = script();
    let log = Log::default();
    let _pool = slow_pool(source, &log, 1000 * S);
    let owned = script.assign(0);
    for key in ["a", "a", "b"] {
        script.deliver(owned, Some(key));
    }
    until("they run", || log.starts().len() == 2).await;
    script.lose(owned);
    until("cancelled", || log.cancelled() == 2).await;
    tokio::time::sleep(S).await;
    assert_eq!(script.said(), []);
}

#[tokio::test(start_paused = true)]
async fn d04_a_partition_that_comes_straight_back_waits_for_the_end_of_its_former_epoch() {
    let (mut script, source) = script();
    let log = Log::default();
    let _pool = slow_pool(source, &log, S);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    script.revoke(owned, 10 * S);
    // The source hands it back before the pool has answered.
    let again = script.assign(0);
    script.rewind(again, 0);
    script.deliver(again, Some("a"));
    until("the second run has ended", || script.finished().len() == 2).await;
    let starts_and_ends: Vec<bool> = log.entries().iter().map(|e| matches!(e, Entry::Start { .. })).collect();
    assert_eq!(starts_and_ends, [true, false, true, false], "no overlap across the hand-back");
}

#[tokio::test(start_paused = true)]
async fn d14_what_waits_for_its_retry_or_fails_meanwhile_is_left_to_the_next_owner() {
    let (mut script, source) = script();
    let pool = Pool::start(source, config()).expect("valid");
    pool.subscribe(
        topic(),
        handler(|delivery| async move {
            if delivery.offset() == 1 {
                tokio::time::sleep(5 * S).await;
            }
            retry(1000 * S)
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("waits"));
    script.deliver(owned, Some("fails later"));
    until("one waits", || pool.counters().retries == 1).await;
    script.revoke(owned, 10 * S);
    until("released", || script.released()).await;
    assert_eq!(script.dropped(), [0, 1]);
    assert_eq!(script.finished(), [0u64; 0]);
}

#[tokio::test(start_paused = true)]
async fn p6_drain_lets_runs_end_leaves_the_rest_and_says_so() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, S);
    let owned = script.assign(0);
    for key in ["a", "a", "a", "b"] {
        script.deliver(owned, Some(key));
    }
    until("they run", || log.starts().len() == 2).await;
    let (report, again) = tokio::join!(pool.drain(10 * S), pool.drain(S));
    assert_eq!((report.finished, again.finished), (2, 2), "one result");
    assert!(report.committed.is_ok());
    let [left] = report.left.as_slice() else { panic!("{report:?}") };
    assert_eq!((left.queued, left.failing, left.cancelled), (2, 0, 0));
    assert_eq!(log.starts().len(), 2, "nothing new starts");
    assert_eq!(script.said().last(), Some(&Said::Closed));
    let closed = pool.subscribe(topic(), handler(|_| async { Outcome::Ack })).expect_err("drained");
    assert_eq!(closed.kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn p6_a_drain_reports_what_it_left_itself_and_nothing_else() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, S);
    let (goes, stays) = (script.assign(0), script.assign(1));
    for (owned, key) in [(goes, "a"), (goes, "a"), (stays, "b")] {
        script.deliver(owned, Some(key));
    }
    until("they run", || log.starts().len() == 2).await;
    script.revoke(goes, 10 * S);
    until("the hand-over left one", || script.released() && script.dropped() == [1]).await;
    until("the other one is handled", || pool.counters().handled == 2).await;
    let report = pool.drain(10 * S).await;
    assert_eq!(report.left.len(), 0, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn p6_a_drain_says_what_failed_meanwhile() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = Pool::start(source, config()).expect("valid");
    let seen = log.clone();
    let failing = handler(move |delivery| {
        let entry = seen.run(&delivery);
        async move {
            tokio::time::sleep(S).await;
            entry.end();
            retry(MS)
        }
    });
    pool.subscribe(topic(), failing).expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    let report = pool.drain(10 * S).await;
    let [left] = report.left.as_slice() else { panic!("{report:?}") };
    assert_eq!((left.queued, left.failing, left.cancelled), (0, 1, 0));
    assert_eq!(script.dropped(), [0]);
}

/// The source asks for it while other partitions still drain: unanswered, its next owner would wait for them.
#[tokio::test(start_paused = true)]
async fn p3_what_a_drain_has_ended_is_released_as_soon_as_it_is_revoked() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, 10 * S);
    let (idle, busy) = (script.assign(0), script.assign(1));
    script.deliver(busy, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    let drained = tokio::join!(pool.drain(60 * S), async {
        tokio::time::sleep(S).await;
        script.revoke(idle, S);
        until("it is released", || script.released()).await;
        assert_eq!(script.finished(), [], "the other one still runs");
    });
    assert_eq!((drained.0.finished, script.finished()), (1, vec![0]));
}

#[tokio::test(start_paused = true)]
async fn p9_drain_is_over_by_its_deadline_and_cancels_what_still_runs() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, 1000 * S);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    let begun = tokio::time::Instant::now();
    let report = pool.drain(3 * S).await;
    assert!((3 * S..3 * S + 100 * MS).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!((log.cancelled(), report.left[0].cancelled), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn d03_a_pool_that_is_dropped_gives_its_source_up_after_its_last_run() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, 1000 * S);
    let owned = script.assign(0);
    for i in 0..100 {
        script.deliver(owned, Some(&format!("k{i}")));
    }
    until("they run", || log.starts().len() == 100).await;
    drop(pool);
    script.gone().await;
    assert_eq!(log.cancelled(), 100);
    assert_eq!(script.said(), []);
}

#[tokio::test(start_paused = true)]
async fn i04_a_drain_whose_future_is_dropped_goes_on() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, S);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    assert!(tokio::time::timeout(MS, pool.drain(10 * S)).await.is_err());
    drop(pool);
    until("closed", || script.said().last() == Some(&Said::Closed)).await;
    assert_eq!(script.finished(), [0]);
}

/// Dead letters go where the test can hold them back.
fn dead_letters(down: Arc<AtomicBool>, log: Arc<std::sync::Mutex<Vec<u64>>>) -> (Topic, Publisher) {
    let service = tower::service_fn(move |publish: Publish| {
        let (down, log) = (down.clone(), log.clone());
        async move {
            tokio::time::sleep(10 * MS).await;
            if down.load(SeqCst) {
                return Err(Error::new(ErrorKind::Unavailable, "down"));
            }
            let offset =
                publish.message.headers.first_str(ebus_pool::dead_letter::OFFSET).expect("origin").parse();
            log.lock().expect("no panic").push(offset.expect("a number"));
            Ok(Receipt::new(publish.topic, 0, 0))
        }
    });
    (Topic::new("orders.dlq").expect("legal"), Publisher::new(service))
}

#[tokio::test(start_paused = true)]
async fn c03_nothing_is_settled_before_the_receipt_of_its_dead_letter() {
    let (mut script, source) = script();
    let (down, letters) = (Arc::new(AtomicBool::new(true)), Arc::new(std::sync::Mutex::new(Vec::new())));
    let (to, publisher) = dead_letters(down.clone(), letters.clone());
    let config = config().with_dead_letter(to, publisher).with_retry(RetryPolicy::fixed(MS).max_attempts(3));
    let pool = Pool::start(source, config).expect("valid");
    pool.subscribe(
        topic(),
        handler(|delivery| async move {
            match delivery.offset() {
                0 => reject(),
                1 => retry(MS),
                _ => Outcome::Ack,
            }
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    for key in ["a", "b", "a", "c"] {
        script.deliver(owned, Some(key));
    }
    until("the other key is done", || script.finished() == [3]).await;
    tokio::time::sleep(60 * S).await;
    assert_eq!(script.finished(), [3], "neither the dead ones nor what is behind them");
    let state = pool.state().await;
    assert!(state.dead_letter_error.is_some_and(|error| error.kind() == ErrorKind::Unavailable));
    assert_eq!(state.stuck.len(), 2);
    down.store(false, SeqCst);
    until("all are done", || script.finished().len() == 4).await;
    let mut letters = letters.lock().expect("no panic").clone();
    letters.sort_unstable();
    assert_eq!(letters, [0, 1]);
    assert_eq!(pool.counters().dead_letters, 2);
    assert!(pool.state().await.dead_letter_error.is_none());
}

#[tokio::test(start_paused = true)]
async fn p1_a_dead_letter_that_is_being_published_counts_as_a_run_at_a_hand_over() {
    let (mut script, source) = script();
    let (down, letters) = (Arc::new(AtomicBool::new(true)), Arc::new(std::sync::Mutex::new(Vec::new())));
    let (to, publisher) = dead_letters(down.clone(), letters.clone());
    let pool = Pool::start(source, config().with_dead_letter(to, publisher)).expect("valid");
    pool.subscribe(topic(), handler(|_| async { reject() })).expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it is being published", || pool.counters().retries == 0).await;
    tokio::time::sleep(S).await;
    script.revoke(owned, 5 * S);
    until("released at the deadline", || script.released()).await;
    assert_eq!(script.dropped(), [0], "its next owner publishes it");
    assert!(letters.lock().expect("no panic").is_empty());
}

#[tokio::test]
async fn c12_attempts_without_a_place_for_the_dead_are_refused_at_start() {
    let (_script, source) = script();
    let refused = Pool::start(source, config().with_retry(RetryPolicy::exponential().max_attempts(3)));
    let error = refused.expect_err("no dead-letter topic");
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert!(error.to_string().contains("dead-letter topic"), "{error}");
}

#[tokio::test]
async fn i06_more_shards_than_anybody_has_cores_are_refused_at_start() {
    let (_script, source) = script();
    let error = Pool::start(source, config().with_shards(usize::MAX)).expect_err("too many");
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert!(error.to_string().contains("at most 1024"), "{error}");
    assert!(config().with_shards(1_024).validate().is_ok());
}

#[tokio::test(start_paused = true)]
async fn p1_a_rejection_at_a_hand_over_without_a_dead_letter_topic_is_left_to_the_next_owner() {
    let (mut script, source) = script();
    let pool = Pool::start(source, config()).expect("valid");
    pool.subscribe(
        topic(),
        handler(|delivery| async move {
            tokio::time::sleep(S).await;
            if delivery.epoch().0 == 1 { reject() } else { Outcome::Ack }
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || pool.counters().handled == 0).await;
    tokio::time::sleep(MS).await;
    script.revoke(owned, 10 * S);
    until("released", || script.released()).await;
    assert_eq!(script.dropped(), [0]);
    let again = script.assign(0);
    script.rewind(again, 0);
    script.deliver(again, Some("a"));
    until("the key goes on", || script.finished() == [0]).await;
}

#[tokio::test(start_paused = true)]
async fn p3_a_drain_hastens_a_hand_over_that_is_under_way() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, 1000 * S);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    script.revoke(owned, 60 * S);
    tokio::time::sleep(S).await;
    let begun = tokio::time::Instant::now();
    let _ = pool.drain(2 * S).await;
    assert!(begun.elapsed() <= 2 * S + 100 * MS, "{:?}", begun.elapsed());
    assert_eq!(log.cancelled(), 1);
    assert!(script.released());
}

#[tokio::test(start_paused = true)]
async fn p3_a_hand_over_hastens_a_drain_that_is_under_way() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, 1000 * S);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    let begun = tokio::time::Instant::now();
    let (_, ()) = tokio::join!(pool.drain(60 * S), async {
        tokio::time::sleep(S).await;
        script.revoke(owned, 2 * S);
    });
    assert!(begun.elapsed() < 3 * S, "{:?}", begun.elapsed());
    assert_eq!(log.cancelled(), 1);
}

#[tokio::test(start_paused = true)]
async fn p3_a_partition_that_waits_for_its_former_epoch_is_released_only_after_that() {
    let (mut script, source) = script();
    let log = Log::default();
    let _pool = slow_pool(source, &log, 10 * S);
    let first = script.assign(0);
    script.deliver(first, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    script.revoke(first, 60 * S);
    let second = script.assign(0);
    script.rewind(second, 0);
    script.deliver(second, Some("a"));
    script.revoke(second, 60 * S);
    tokio::time::sleep(5 * S).await;
    assert!(!script.released(), "a run of the former epoch is in progress");
    until("released", || script.released()).await;
    assert_eq!((log.starts(), log.cancelled()), (vec![0], 0));
}

#[tokio::test(start_paused = true)]
async fn g02_a_pause_of_all_is_over_what_is_assigned_later_and_leaves_the_pause_of_one() {
    let (script, source) = script();
    let pool = Pool::start(source, config()).expect("valid");
    pool.subscribe(topic(), handler(|_| async { Outcome::Ack })).expect("open");
    script.assign(0);
    pool.pause_all().expect("open");
    until("paused", || script.said().ends_with(&[Said::Paused { partition: 0 }])).await;
    script.assign(1);
    until("paused too", || script.said().ends_with(&[Said::Paused { partition: 1 }])).await;
    pool.pause(&topic()).expect("open");
    pool.resume_all().expect("open");
    assert!(pool.state().await.partitions.iter().all(|partition| partition.paused));
    pool.resume(&topic()).expect("open");
    let resumed = [Said::Resumed { partition: 0 }, Said::Resumed { partition: 1 }];
    until("resumed", || script.said().ends_with(&resumed)).await;
}

#[tokio::test(start_paused = true)]
async fn g06_a_topic_that_is_unsubscribed_ends_as_a_hand_over_and_the_others_stay() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, S);
    let other = Topic::new("users").expect("legal");
    pool.subscribe(other.clone(), handler(|_| async { Outcome::Ack })).expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    pool.unsubscribe(&topic()).expect("open");
    until("the source knows", || script.subscribed() == [other.clone()]).await;
    script.revoke(owned, 10 * S);
    until("released", || script.released()).await;
    assert_eq!((script.finished(), log.cancelled()), (vec![0], 0));
}
