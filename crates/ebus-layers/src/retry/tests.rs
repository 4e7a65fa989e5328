//! Order, bounds and ends of a retry, against a broker that does as it is told.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ebus_core::{Error, ErrorKind, Message, Publish, Receipt, Retryability};
use proptest::prelude::*;
use tokio::time::Instant;
use tower::ServiceBuilder;
use tower_layer::Layer;
use tower_service::Service;

use super::{Retry, RetryConfig, RetryFuture, RetryLayer};

/// What the broker does with one call, and after which time it says so.
#[derive(Debug, Clone, Copy)]
struct Step {
    stored: Result<(), Retryability>,
    after: Duration,
}

const STORED: Step = Step { stored: Ok(()), after: Duration::ZERO };
const SAFE: Step = Step { stored: Err(Retryability::Safe), after: Duration::ZERO };
const NEVER: Step = Step { stored: Err(Retryability::Never), after: Duration::ZERO };

impl Step {
    fn after(self, millis: u64) -> Self {
        Self { after: Duration::from_millis(millis), ..self }
    }
}

/// Takes the steps in the order of the calls, and stores when there are none left.
#[derive(Clone, Default)]
struct Broker {
    steps: Arc<Mutex<Vec<Step>>>,
    /// Every call: key and payload, and whether it was stored.
    calls: Arc<Mutex<Vec<(String, String, bool)>>>,
}

impl Broker {
    fn of(steps: &[Step]) -> Self {
        Self { steps: Arc::new(Mutex::new(steps.iter().rev().copied().collect())), ..Self::default() }
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(|(_, payload, _)| payload.clone()).collect()
    }
}

impl Service<Publish> for Broker {
    type Response = Receipt;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Receipt, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, publish: Publish) -> Self::Future {
        let step = self.steps.lock().unwrap().pop().unwrap_or(STORED);
        let mut calls = self.calls.lock().unwrap();
        let offset = calls.len() as u64;
        let key = publish.message.key.as_ref().map(|key| key.to_string()).unwrap_or_default();
        let payload = String::from_utf8(publish.message.payload.to_vec()).unwrap();
        calls.push((key, payload, step.stored.is_ok()));
        Box::pin(async move {
            tokio::time::sleep(step.after).await;
            step.stored.map(|()| Receipt::new(publish.topic, 0, offset)).map_err(|retryability| {
                Error::new(ErrorKind::Unavailable, "no broker").with_retryability(retryability)
            })
        })
    }
}

fn publish(key: &str, payload: &str) -> Publish {
    let message = Message::new(payload.to_owned());
    Publish::to("orders", if key.is_empty() { message } else { message.with_key(key) }).expect("legal")
}

fn config() -> RetryConfig {
    RetryConfig::default().with_min_delay(Duration::from_millis(10))
}

fn over<S: Service<Publish> + Clone>(inner: S, config: RetryConfig) -> Retry<S> {
    RetryLayer::new(config).expect("valid").layer(inner)
}

async fn call<S>(service: &mut Retry<S>, key: &str, payload: &str) -> RetryFuture<S>
where
    S: Service<Publish, Response = Receipt, Error = Error, Future: Send + 'static> + Clone + Send + 'static,
{
    poll_fn(|cx| service.poll_ready(cx)).await.expect("ready");
    service.call(publish(key, payload))
}

/// Polls once: the future sees what has happened.
fn look<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test(start_paused = true)]
async fn what_is_safe_is_tried_until_it_is_stored() {
    let broker = Broker::of(&[SAFE, SAFE, STORED]);
    let mut service = over(broker.clone(), config());
    assert_eq!(call(&mut service, "k", "1").await.await.expect("stored").offset, 2);
    assert_eq!(broker.calls(), ["1", "1", "1"]);
    tokio::task::yield_now().await;
    assert_eq!(service.lanes.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_safe_is_not_tried_again() {
    for steps in [&[NEVER][..], &[SAFE, NEVER]] {
        let broker = Broker::of(steps);
        let error = call(&mut over(broker.clone(), config()), "k", "1").await.await.expect_err("refused");
        assert_eq!(error.retryability(), Retryability::Never);
        assert_eq!(broker.calls().len(), steps.len());
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_and_time_are_bounded_and_the_error_says_so() {
    let begun = Instant::now();
    let broker = Broker::of(&[SAFE; 99]);
    let error =
        call(&mut over(broker.clone(), config().with_max_attempts(4)), "", "1").await.await.unwrap_err();
    assert_eq!((error.kind(), error.retryability()), (ErrorKind::Unavailable, Retryability::Exhausted));
    assert_eq!(error.context().last(), Some(("attempts", "4")));
    assert_eq!(broker.calls().len(), 4);
    let took = begun.elapsed().as_millis();
    assert!((70..=150).contains(&took), "three pauses of 10, 20 and 40 ms and up to twice that: {took} ms");

    let begun = Instant::now();
    let broker = Broker::of(&[SAFE; 99]);
    let short = config().with_max_attempts(99).with_max_elapsed(Duration::from_millis(100));
    let error = call(&mut over(broker.clone(), short), "", "1").await.await.unwrap_err();
    assert_eq!(error.retryability(), Retryability::Exhausted);
    assert!(begun.elapsed() <= Duration::from_millis(110), "{:?}", begun.elapsed());
    assert!((2..=5).contains(&broker.calls().len()));
}

#[tokio::test(start_paused = true)]
async fn a_time_that_no_clock_can_hold_is_as_good_as_for_ever() {
    let broker = Broker::of(&[SAFE]);
    let mut service =
        over(broker.clone(), config().with_max_elapsed(Duration::MAX).with_max_delay(Duration::MAX));
    call(&mut service, "k", "1").await.await.expect("stored at the second attempt");
    assert_eq!(broker.calls(), ["1", "1"]);
}

#[tokio::test(start_paused = true)]
async fn g7_later_calls_of_the_key_wait_and_others_go_on() {
    let broker = Broker::of(&[SAFE, STORED, SAFE]);
    let mut service = over(broker.clone(), config());
    let mut one = call(&mut service, "k", "1").await;
    assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut one).poll(cx))).await.is_pending(), "the timer of 0 ms");
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(look(&mut one).is_pending(), "it has failed, and is tried again");
    let two = call(&mut service, "k", "2").await;
    let three = call(&mut service.clone(), "k", "3").await;
    call(&mut service, "other", "x").await.await.expect("stored");
    assert_eq!(broker.calls(), ["1", "x"]);
    // In another order than that of the calls.
    assert_eq!(three.await.expect("stored").offset, 5);
    assert_eq!(two.await.expect("stored").offset, 4);
    assert_eq!(one.await.expect("stored").offset, 3);
    assert_eq!(broker.calls(), ["1", "x", "1", "1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn g7_what_was_overtaken_is_not_sent_again() {
    let broker = Broker::of(&[SAFE, STORED]);
    let mut service = over(broker.clone(), config());
    let (one, two) = (call(&mut service, "k", "1").await, call(&mut service, "k", "2").await);
    let error = one.await.expect_err("overtaken");
    assert_eq!(error.retryability(), Retryability::Never);
    assert!(error.to_string().contains("a later message of its key was sent"), "{error}");
    two.await.expect("stored");
    assert_eq!(broker.calls(), ["1", "2"]);
    assert_eq!(service.lanes.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_future_does_not_unpublish() {
    let broker = Broker::of(&[SAFE, SAFE]);
    let mut service = over(broker.clone(), config());
    let mut one = call(&mut service, "k", "1").await;
    let _ = look(&mut one);
    tokio::time::sleep(Duration::from_millis(2)).await;
    let _ = look(&mut one);
    drop(call(&mut service, "k", "2").await);
    drop(one);
    call(&mut service, "k", "3").await.await.expect("stored");
    assert_eq!(broker.calls(), ["1", "1", "1", "2", "3"]);
    assert_eq!(service.lanes.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_back_lends_its_place_in_flight() {
    let broker = Broker::of(&[SAFE, SAFE]);
    let inner = ServiceBuilder::new().concurrency_limit(2).service(broker.clone());
    let mut service = over(inner, config());
    let mut one = call(&mut service, "k", "1").await;
    let _ = look(&mut one);
    tokio::time::sleep(Duration::from_millis(2)).await;
    let _ = look(&mut one);
    // These two have both places, and wait for the first, which has none.
    let (two, three) = (call(&mut service, "k", "2").await, call(&mut service, "k", "3").await);
    let all = async { (three.await, two.await, one.await) };
    let (three, two, one) = tokio::time::timeout(Duration::from_secs(1), all).await.expect("no deadlock");
    assert!(one.is_ok() && two.is_ok() && three.is_ok());
    assert_eq!(broker.calls(), ["1", "1", "1", "2", "3"]);
    poll_fn(|cx| service.poll_ready(cx)).await.expect("the places are back");
}

#[tokio::test(start_paused = true)]
async fn a_retry_without_a_place_ends_in_its_time() {
    let broker = Broker::of(&[SAFE, STORED.after(60_000)]);
    let inner = ServiceBuilder::new().concurrency_limit(1).service(broker.clone());
    let mut service = over(inner, config());
    let mut one = call(&mut service, "k", "1").await;
    let _ = look(&mut one);
    tokio::time::sleep(Duration::from_millis(2)).await;
    let _ = look(&mut one);
    let mut slow = call(&mut service, "slow", "x").await;
    let _ = look(&mut slow);
    let begun = Instant::now();
    let error = one.await.expect_err("no place within its time");
    assert_eq!(error.retryability(), Retryability::Exhausted);
    assert!(begun.elapsed() <= Duration::from_secs(31), "{:?}", begun.elapsed());
    slow.await.expect("stored");
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_waits_for_a_place_takes_that_of_a_later_call() {
    let broker = Broker::of(&[SAFE]);
    let inner = ServiceBuilder::new().concurrency_limit(1).service(broker.clone());
    let mut service = over(inner, config());
    let mut one = call(&mut service, "k", "1").await;
    let _ = look(&mut one);
    tokio::time::sleep(Duration::from_millis(2)).await;
    let _ = look(&mut one);
    poll_fn(|cx| service.poll_ready(cx)).await.expect("the only place");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(broker.calls(), ["1"], "it waits for a place");
    let two = service.call(publish("k", "2"));
    two.await.expect("stored");
    one.await.expect("stored");
    assert_eq!(broker.calls(), ["1", "1", "2"]);
}

#[test]
fn a_runtime_that_ends_lets_go() {
    let broker = Broker::of(&[STORED, SAFE]);
    let mut service = over(broker, config());
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let first = runtime();
    let (earlier, one, two) = first.block_on(async {
        // Nobody looks at this one, so that the lane does not end.
        let earlier = call(&mut service, "k", "0").await;
        let mut one = call(&mut service, "k", "1").await;
        let _ = look(&mut one);
        tokio::time::sleep(Duration::from_millis(3)).await;
        let _ = look(&mut one);
        (earlier, one, call(&mut service, "k", "2").await)
    });
    drop(first);
    let afterwards = async {
        assert_eq!(one.await.expect_err("cut off").kind(), ErrorKind::Closed);
        assert_eq!(two.await.expect_err("cut off").kind(), ErrorKind::Closed);
        call(&mut service, "k", "3").await.await.expect("the lane is open again");
    };
    runtime().block_on(async {
        tokio::time::timeout(Duration::from_secs(5), afterwards).await.expect("nobody waits for what ended");
    });
    drop(earlier);
    assert_eq!(service.lanes.len(), 0);
}

#[test]
fn every_wrong_setting_is_named() {
    let wrong =
        RetryConfig::default().with_max_attempts(1).with_min_delay(Duration::ZERO).with_factor(f32::NAN);
    let text = RetryLayer::new(wrong).expect_err("wrong").to_string();
    for name in ["max_attempts", "min_delay", "factor"] {
        assert!(text.contains(name), "{text}");
    }
    let wrong = config().with_max_delay(Duration::from_millis(1)).with_max_elapsed(Duration::from_millis(1));
    let text = RetryLayer::new(wrong).expect_err("wrong").to_string();
    assert!(text.contains("max_delay") && text.contains("max_elapsed"), "{text}");
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let stored = prop_oneof![3 => Just(Ok(())), 3 => Just(Err(Retryability::Safe)), 1 => Just(Err(Retryability::Never))];
    let step =
        (stored, 0..40_u64).prop_map(|(stored, after)| Step { stored, after: STORED.after(after).after });
    proptest::collection::vec(step, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever fails, whenever the callers look, wait, or drop: nothing of a key is sent again after a later one, everything ends,
    /// and `Ok` means stored.
    #[test]
    fn g7_holds_whatever_fails(
        steps in steps(),
        calls in proptest::collection::vec((0..3_u8, 0..25_u64, 0..4_u8), 1..40),
        places in 1..6_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        let broker = Broker::of(&steps);
        let inner = ServiceBuilder::new().concurrency_limit(places).service(broker.clone());
        let mut service = over(inner, config().with_max_attempts(3));
        let results = runtime.block_on(async {
            let mut tasks = Vec::new();
            for (number, (key, pause, fate)) in calls.into_iter().enumerate() {
                let key = ["", "a", "b"][usize::from(key)];
                let future = call(&mut service, key, &number.to_string()).await;
                // 0: dropped at once; 1: dropped later; else awaited, by a task of its own.
                if fate > 0 {
                    tasks.push((number, tokio::spawn(async move {
                        if fate == 1 {
                            tokio::time::timeout(Duration::from_millis(pause), future).await.ok()
                        } else {
                            Some(future.await)
                        }
                    })));
                }
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            let mut results = Vec::new();
            for (number, task) in tasks {
                results.push((number, task.await.expect("no panic")));
            }
            tokio::time::sleep(Duration::from_secs(100)).await;
            results
        });
        prop_assert_eq!(service.lanes.len(), 0);
        let calls = broker.calls.lock().unwrap();
        let mut last: HashMap<&str, u64> = HashMap::new();
        for (key, payload, _) in calls.iter().filter(|(key, ..)| !key.is_empty()) {
            let number: u64 = payload.parse().expect("a number");
            let last = last.entry(key).or_default();
            prop_assert!(number >= *last, "{} of {:?} after {}: {:?}", number, key, last, calls);
            *last = number;
        }
        for (number, result) in results {
            if let Some(Ok(_)) = result {
                let number = number.to_string();
                prop_assert!(calls.iter().any(|(_, payload, stored)| *payload == number && *stored), "{} is not stored", number);
            }
        }
    }
}
