//! User code that panics where nobody expects it is the failure of one message; limits that hold whatever came before (G5, G9).

mod common;

use std::fmt;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use common::*;
use ebus_core::{
    BoxError, Delivery, Error, ErrorKind, Lease, Outcome, Publish, Publisher, Receipt, SourceEvent, Topic,
};
use ebus_pool::{Pool, PoolConfig, RetryPolicy};
use tower::Service;

const MS: Duration = Duration::from_millis(1);

/// An error of which nothing can be called.
#[derive(Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("no words")
    }
}

impl std::error::Error for Broken {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        panic!("no source")
    }
}

/// An error that cannot be boxed.
struct Unboxable;

impl From<Unboxable> for BoxError {
    fn from(_: Unboxable) -> Self {
        panic!("no box")
    }
}

fn quick() -> PoolConfig {
    config().with_retry(RetryPolicy::fixed(MS))
}

fn to_dlq(config: PoolConfig, publisher: Publisher) -> PoolConfig {
    config.with_dead_letter(Topic::new("dlq").expect("legal"), publisher)
}

fn receipt(publish: Publish) -> Ready<Result<Receipt, Error>> {
    ready(Ok(Receipt::new(publish.topic, 0, 0)))
}

/// Waits until these are finished, in any order; panics if the pool ends.
async fn finished(pool: &Pool, script: &Script, offsets: &[u64]) {
    let all = || offsets.iter().all(|offset| script.finished().contains(offset));
    tokio::select! {
        () = until("they are finished", all) => {}
        report = pool.ended() => panic!("the pool has ended: {report:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn p9_an_error_whose_text_panics_is_the_failure_of_that_message_only() {
    let (mut script, source) = script();
    // The class asks the error for its sources too.
    let retry = RetryPolicy::fixed(MS).on::<std::io::Error>(RetryPolicy::fixed(MS));
    let pool = Pool::start(source, config().with_retry(retry)).expect("valid");
    pool.subscribe(
        topic(),
        tower::service_fn(|delivery: Delivery| {
            let fails = delivery.offset() == 0 && delivery.attempt() < 5;
            ready(if fails { Err(Broken) } else { Ok(Outcome::Ack) })
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    script.deliver(owned, Some("b"));
    finished(&pool, &script, &[0, 1]).await;
    assert_eq!(pool.counters().retries, 4);
}

#[tokio::test(start_paused = true)]
async fn p9_an_error_that_cannot_be_boxed_is_a_panic_of_that_message_only() {
    let (mut script, source) = script();
    let pool = Pool::start(source, quick()).expect("valid");
    pool.subscribe(
        topic(),
        tower::service_fn(|delivery: Delivery| {
            let fails = delivery.offset() == 0 && delivery.attempt() < 5;
            ready(if fails { Err(Unboxable) } else { Ok(Outcome::Ack) })
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    script.deliver(owned, Some("b"));
    finished(&pool, &script, &[0, 1]).await;
    assert_eq!(pool.counters().panics, 4);
}

#[tokio::test(start_paused = true)]
async fn p9_a_dead_letter_whose_error_text_panics_is_published_all_the_same() {
    let (mut script, source) = script();
    let pool =
        Pool::start(source, to_dlq(quick(), Publisher::new(tower::service_fn(receipt)))).expect("valid");
    pool.subscribe(
        topic(),
        handler(|delivery| {
            let error = Error::new(ErrorKind::Handler, "failed").with_source(Broken);
            ready(if delivery.offset() == 0 { Outcome::Reject { error } } else { Outcome::Ack })
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    script.deliver(owned, Some("b"));
    finished(&pool, &script, &[0, 1]).await;
    assert_eq!(pool.counters().dead_letters, 1);
}

#[tokio::test(start_paused = true)]
async fn p9_a_message_that_is_dropped_may_have_an_error_whose_text_panics() {
    let (mut script, source) = script();
    let pool = Pool::start(source, quick().with_drop_rejected()).expect("valid");
    pool.subscribe(
        topic(),
        handler(|_| {
            ready(Outcome::Reject { error: Error::new(ErrorKind::Handler, "failed").with_source(Broken) })
        }),
    )
    .expect("open");
    // A warning that nobody takes is not made.
    let _log = tracing::subscriber::set_default(EveryEvent);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    finished(&pool, &script, &[0]).await;
}

/// Takes all events.
struct EveryEvent;

impl tracing::Subscriber for EveryEvent {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {}

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// A publisher that panics in turn where it is cloned, asked for readiness and called, and then works.
struct Stumbling(Arc<AtomicUsize>);

impl Clone for Stumbling {
    fn clone(&self) -> Self {
        let _ = self.0.compare_exchange(0, 1, SeqCst, SeqCst).map(|_| panic!("in the clone"));
        Self(self.0.clone())
    }
}

impl Service<Publish> for Stumbling {
    type Response = Receipt;
    type Error = Error;
    type Future = Ready<Result<Receipt, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let _ = self.0.compare_exchange(1, 2, SeqCst, SeqCst).map(|_| panic!("in poll_ready"));
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, publish: Publish) -> Self::Future {
        let _ = self.0.compare_exchange(2, 3, SeqCst, SeqCst).map(|_| panic!("in the call"));
        receipt(publish)
    }
}

#[tokio::test(start_paused = true)]
async fn p9_a_publisher_of_dead_letters_that_panics_anywhere_is_asked_again() {
    let (mut script, source) = script();
    let stumbled = Arc::new(AtomicUsize::new(3));
    let publisher = Publisher::new(Stumbling(stumbled.clone()));
    let pool = Pool::start(source, to_dlq(quick(), publisher)).expect("valid");
    pool.subscribe(topic(), handler(|_| ready(reject()))).expect("open");
    stumbled.store(0, SeqCst);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    finished(&pool, &script, &[0]).await;
    assert_eq!((pool.counters().dead_letters, stumbled.load(SeqCst)), (1, 3));
    assert!(pool.state().await.dead_letter_error.is_none());
}

/// Panics when it is called, and cannot be cloned for a while after that.
struct Fragile {
    clones_fail: Arc<AtomicBool>,
}

impl Clone for Fragile {
    fn clone(&self) -> Self {
        assert!(!self.clones_fail.load(SeqCst), "in the clone");
        Self { clones_fail: self.clones_fail.clone() }
    }
}

impl Service<Delivery> for Fragile {
    type Response = Outcome;
    type Error = std::convert::Infallible;
    type Future = Ready<Result<Outcome, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, delivery: Delivery) -> Self::Future {
        if delivery.attempt() == 1 {
            self.clones_fail.store(true, SeqCst);
            panic!("in the call");
        }
        ready(Ok(Outcome::Ack))
    }
}

#[tokio::test(start_paused = true)]
async fn p9_a_handler_that_cannot_be_cloned_fails_its_runs_until_it_can() {
    let (mut script, source) = script();
    let pool = Pool::start(source, quick()).expect("valid");
    let clones_fail = Arc::new(AtomicBool::new(false));
    pool.subscribe(topic(), Fragile { clones_fail: clones_fail.clone() }).expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("the clone failed too", || pool.counters().panics > 3).await;
    assert_eq!(script.finished(), [0u64; 0]);
    clones_fail.store(false, SeqCst);
    finished(&pool, &script, &[0]).await;
}

/// Panics when it is dropped, once it is armed.
#[derive(Clone)]
struct Clinging(Arc<AtomicBool>);

impl Drop for Clinging {
    fn drop(&mut self) {
        // Also while another clone of it panics: whoever drops two of them in one go aborts the process.
        assert!(!self.0.load(SeqCst), "in the drop of the handler");
    }
}

#[tokio::test(start_paused = true)]
async fn p9_a_handler_whose_drop_panics_when_it_is_replaced_is_not_the_end_of_the_pool() {
    let (mut script, source) = script();
    let pool = Pool::start(source, config()).expect("valid");
    let armed = Arc::new(AtomicBool::new(false));
    let clinging = Clinging(armed.clone());
    pool.subscribe(
        topic(),
        handler(move |_| {
            let _ = &clinging;
            ready(Outcome::Ack)
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    finished(&pool, &script, &[0]).await;
    armed.store(true, SeqCst);
    pool.subscribe(topic(), handler(|_| ready(Outcome::Ack))).expect("open");
    script.deliver(owned, Some("a"));
    finished(&pool, &script, &[0, 1]).await;
}

/// One cell for all hid a failure behind another's success.
#[tokio::test(start_paused = true)]
async fn p8_a_dead_letter_that_waits_is_visible_though_others_go_through() {
    let (mut script, source) = script();
    let refuses = Arc::new(AtomicBool::new(true));
    let refusing = refuses.clone();
    let publisher = Publisher::new(tower::service_fn(move |publish: Publish| {
        let large = publish.message.key.as_ref().is_some_and(|key| key.to_string() == "large");
        let refused = Error::new(ErrorKind::TooLarge, "larger than the topic takes");
        ready(if large && refusing.load(SeqCst) {
            Err(refused)
        } else {
            Ok(Receipt::new(publish.topic, 0, 0))
        })
    }));
    let pool = Pool::start(source, to_dlq(quick(), publisher)).expect("valid");
    pool.subscribe(topic(), handler(|_| ready(reject()))).expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("large"));
    while pool.state().await.dead_letter_error.is_none() {
        tokio::time::sleep(MS).await;
    }
    script.deliver(owned, Some("small"));
    finished(&pool, &script, &[1]).await;
    let error = pool.state().await.dead_letter_error.expect("one of them waits");
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    script.revoke(owned, 10 * MS);
    until("released", || script.released()).await;
    assert!(pool.state().await.dead_letter_error.is_none(), "it is the next owner's");
}

#[tokio::test(start_paused = true)]
async fn p3_no_dead_letter_is_tried_past_the_lease() {
    let (mut script, source) = script();
    let tried = Arc::new(AtomicUsize::new(0));
    let count = tried.clone();
    let publisher = Publisher::new(tower::service_fn(move |publish: Publish| {
        let refused = count.fetch_add(1, SeqCst) < 2;
        let error = Error::new(ErrorKind::Unavailable, "not now");
        ready(if refused { Err(error) } else { Ok(Receipt::new(publish.topic, 0, 0)) })
    }));
    let pool = Pool::start(source, to_dlq(quick(), publisher)).expect("valid");
    pool.subscribe(topic(), handler(|_| ready(reject()))).expect("open");
    // It ends within the delay after the first failure of the dead letter.
    let begun = tokio::time::Instant::now();
    let lease = Lease::until((begun + 50 * MS).into_std());
    let owned = script.assign_with(0, lease.clone());
    script.deliver(owned, Some("a"));
    tokio::time::sleep(60_000 * MS).await;
    assert_eq!(tried.load(SeqCst), 1, "the next owner may have handled it by now");
    lease.extend((begun + 600_000 * MS).into_std());
    finished(&pool, &script, &[0]).await;
    assert_eq!(tried.load(SeqCst), 3);
}

/// The guess of a message's size shrank with every event: after a quiet time a read asked for 256 times the budget.
#[tokio::test(start_paused = true)]
async fn p5_bytes_held_stay_near_the_budget_after_a_quiet_time() {
    const BUDGET: usize = 1 << 20;
    let (mut script, source) = script();
    let pool = Pool::start(source, config().with_budget_bytes(BUDGET)).expect("valid");
    pool.subscribe(topic(), handler(|_| std::future::pending::<Outcome>())).expect("open");
    let owned = script.assign(0);
    for _ in 0..200 {
        script.send(SourceEvent::Trouble(Error::new(ErrorKind::Unavailable, "passing")));
        tokio::time::sleep(MS).await;
    }
    for i in 0..4_096 {
        script.deliver_sized(owned, Some(&format!("k{i}")), 64 << 10);
    }
    tokio::time::sleep(1_000 * MS).await;
    let held = pool.state().await.held_bytes;
    assert!(held > BUDGET / 2 && held <= 2 * BUDGET, "{held} bytes held of {BUDGET}");
}

#[tokio::test(start_paused = true)]
async fn p1_no_run_begins_once_the_time_for_retries_is_over() {
    let (mut script, source) = script();
    let retry = RetryPolicy::fixed(30_000 * MS).max_elapsed(10_000 * MS);
    let config = to_dlq(config().with_retry(retry), Publisher::new(tower::service_fn(receipt)));
    let pool = Pool::start(source, config).expect("valid");
    let log = Log::default();
    let seen = log.clone();
    pool.subscribe(
        topic(),
        handler(move |delivery| {
            seen.run(&delivery).end();
            let error = Error::new(ErrorKind::Handler, "no");
            ready(Outcome::Retry { after: None, error })
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    finished(&pool, &script, &[0]).await;
    assert_eq!(log.starts(), [0], "a run began 30 s after the first failure");
}

/// What a run holds that must not be dropped.
struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        panic!("dropped with its transaction open");
    }
}

#[tokio::test(start_paused = true)]
async fn p9_a_run_that_panics_when_it_is_cancelled_is_not_the_end_of_the_pool() {
    let (mut script, source) = script();
    let pool = Pool::start(source, config().with_shards(1)).expect("valid");
    let begun = Arc::new(AtomicBool::new(false));
    let begins = begun.clone();
    pool.subscribe(
        topic(),
        handler(move |delivery| {
            let open = delivery.key().is_some_and(|key| *key == "a".into()).then(|| Guard);
            begins.store(true, SeqCst);
            async move {
                if open.is_some() {
                    std::future::pending::<()>().await;
                }
                Outcome::Ack
            }
        }),
    )
    .expect("open");
    let lost = script.assign(0);
    script.deliver(lost, Some("a"));
    until("it runs", || begun.load(SeqCst)).await;
    script.lose(lost);
    let next = script.assign(1);
    let later = [script.deliver(next, Some("b")), script.deliver(next, Some("b"))];
    finished(&pool, &script, &later).await;
}
