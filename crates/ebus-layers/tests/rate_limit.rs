//! The rate limit: what passes in a time, who waits, and what becomes of what was not used.
#![cfg(feature = "rate-limit")]

mod common;

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Probe, delivery, is_ready, publish, readiness_is_respected, until_ready};
use ebus_core::{Delivery, ErrorKind, Publish, Publisher};
use ebus_layers::{RateLimit, RateLimitConfig, RateLimitLayer, TokioClock};
use governor::clock::FakeRelativeClock;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

type Limited = RateLimit<Probe, TokioClock>;

fn per_second(messages: u32, burst: u32) -> RateLimitLayer {
    RateLimitLayer::new(RateLimitConfig::per_second(messages).with_burst(burst)).expect("valid")
}

fn ready_now(service: &mut Limited) -> bool {
    is_ready::<_, Publish>(service)
}

#[tokio::test(start_paused = true)]
async fn calls_reach_the_inner_service_ready() {
    let probe = Probe::default();
    readiness_is_respected(per_second(1_000, 1).layer(probe.clone()), || publish("k", 1)).await;
    readiness_is_respected(per_second(1_000, 1).layer(probe.clone()), delivery).await;
    assert_eq!(probe.calls().load(Ordering::Relaxed), 8);
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "call before poll_ready of RateLimit was ready")]
async fn a_clone_of_a_ready_service_is_not_ready() {
    let mut service = per_second(10, 10).layer(Probe::default());
    assert!(ready_now(&mut service));
    drop(Service::<Publish>::call(&mut service.clone(), publish("k", 1)));
}

#[tokio::test(start_paused = true)]
async fn the_rate_holds_after_the_burst() {
    let mut publisher = Publisher::new(per_second(10, 3).layer(Probe::default()));
    let begun = Instant::now();
    for _ in 0..13 {
        publisher.publish(publish("k", 1)).await.expect("stored");
    }
    let took = begun.elapsed();
    assert!((Duration::from_millis(1_000)..Duration::from_millis(1_030)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_not_taken_twice() {
    let layer = per_second(1, 2);
    let (mut one, mut two) = (layer.layer(Probe::default()), layer.layer(Probe::default()));
    for _ in 0..5 {
        assert!(ready_now(&mut one));
    }
    assert!(ready_now(&mut two), "the second permit is still there");
    let mut three = layer.layer(Probe::default());
    assert!(!ready_now(&mut three));
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_was_not_used_is_given_back() {
    let layer = per_second(1, 1);
    let mut one = layer.layer(Probe::default());
    assert!(ready_now(&mut one));
    drop(one);
    assert!(ready_now(&mut layer.layer(Probe::default())), "one was given back");
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_is_not_had_twice() {
    let layer = per_second(1, 1);
    let mut one = layer.layer(Probe::default());
    assert!(ready_now(&mut one));
    drop(one);
    // The limiter is full again by itself: what was given back is in it.
    tokio::time::advance(Duration::from_secs(5)).await;
    let mut two = layer.layer(Probe::default());
    assert!(ready_now(&mut two));
    let mut three = layer.layer(Probe::default());
    assert!(!ready_now(&mut three), "two at once with a burst of one");
}

#[tokio::test(start_paused = true)]
async fn who_waits_first_goes_first_and_nobody_wakes_in_vain() {
    let service = per_second(100, 1).layer(Probe::default());
    let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
    for n in 0..200 {
        let mut service = service.clone();
        let sender = sender.clone();
        tokio::spawn(async move {
            let mut polls = 0_u32;
            std::future::poll_fn(|cx| {
                polls += 1;
                Service::<Publish>::poll_ready(&mut service, cx)
            })
            .await
            .expect("ready");
            service.call(publish("k", n)).await.expect("stored");
            sender.send((n, polls)).expect("the test listens");
        });
        tokio::task::yield_now().await;
    }
    drop(sender);
    let mut next = 0;
    while let Some((n, polls)) = order.recv().await {
        assert_eq!(n, next);
        assert!(polls <= 3, "{n} was polled {polls} times");
        next += 1;
    }
    assert_eq!(next, 200);
}

#[tokio::test(start_paused = true)]
async fn who_comes_later_does_not_overtake_who_waits() {
    let layer = per_second(10, 1);
    let (mut first, mut waiting, mut late) =
        (layer.layer(Probe::default()), layer.layer(Probe::default()), layer.layer(Probe::default()));
    assert!(ready_now(&mut first));
    assert!(!ready_now(&mut waiting));
    // The next one is free, and who waits for it was not polled yet.
    tokio::time::advance(Duration::from_millis(150)).await;
    assert!(!ready_now(&mut late), "overtook");
    assert!(ready_now(&mut waiting));
}

#[tokio::test(start_paused = true)]
async fn one_that_stopped_waiting_does_not_stop_the_others() {
    let layer = per_second(10, 1);
    let mut first = layer.layer(Probe::default());
    assert!(ready_now(&mut first));
    first.call(publish("k", 1)).await.expect("stored");
    // It has a place, and is not polled any more, nor dropped.
    assert!(!ready_now(&mut first));
    let mut other = layer.layer(Probe::default());
    let begun = Instant::now();
    until_ready::<_, Publish>(&mut other).await.expect("ready");
    assert!(begun.elapsed() < Duration::from_millis(210), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_weight_counts_and_shares_the_limit() {
    let light = per_second(10, 4);
    let heavy = light.clone().with_weight(3).expect("below the burst");
    let (mut heavy, mut light) = (heavy.layer(Probe::default()), light.layer(Probe::default()));
    assert!(ready_now(&mut heavy));
    assert!(ready_now(&mut light));
    heavy.call(publish("k", 1)).await.expect("stored");
    let begun = Instant::now();
    until_ready::<_, Publish>(&mut heavy).await.expect("ready");
    let waited = begun.elapsed();
    assert!((Duration::from_millis(300)..Duration::from_millis(310)).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn another_clock_is_obeyed() {
    let clock = FakeRelativeClock::default();
    let config = RateLimitConfig::per(1, Duration::from_secs(3_600));
    let layer = RateLimitLayer::with_clock(config, clock.clone()).expect("valid");
    let mut service = layer.layer(Probe::default());
    until_ready::<_, Delivery>(&mut service).await.expect("ready");
    let _ = Service::<Delivery>::call(&mut service, delivery()).await;
    let waiting = tokio::spawn(async move { until_ready::<_, Delivery>(&mut service).await.is_ok() });
    tokio::time::sleep(Duration::from_secs(4_000)).await;
    assert!(!waiting.is_finished(), "the runtime's time moved, the limit's did not");
    clock.advance(Duration::from_secs(3_600));
    assert!(waiting.await.expect("no panic"));
}

#[test]
fn what_can_never_pass_is_refused() {
    for (config, setting) in [
        (RateLimitConfig::per_second(0), "messages"),
        (RateLimitConfig::per_second(1).with_burst(0), "burst"),
        (RateLimitConfig::per(1, Duration::ZERO), "period"),
        (RateLimitConfig::per_second(u32::MAX), "period"),
        (RateLimitConfig::per(1, Duration::MAX), "burst"),
        (RateLimitConfig::per(1, Duration::from_secs(1 << 32)).with_burst(u32::MAX), "burst"),
    ] {
        let error = RateLimitLayer::new(config).expect_err("never passes");
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        assert_eq!(error.context().next(), Some(("setting", setting)), "{error}");
    }
    let layer = RateLimitLayer::per_second(5).expect("valid");
    assert_eq!(layer.clone().with_weight(6).expect_err("above the burst").kind(), ErrorKind::ConfigInvalid);
    assert_eq!(layer.clone().with_weight(0).expect_err("zero").kind(), ErrorKind::ConfigInvalid);
    assert!(layer.with_weight(NonZeroU32::new(5).expect("not 0").get()).is_ok());
}
