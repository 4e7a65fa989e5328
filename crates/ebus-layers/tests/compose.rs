//! All layers together, and tower's own between them.
#![cfg(all(feature = "metrics", feature = "rate-limit", feature = "retry", feature = "tower-errors"))]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Probe, delivery, publish, readiness_is_respected, until_ready};
use ebus_core::{
    BoxError, Delivery, Error, ErrorKind, Handler, Outcome, Publish, Publisher, Receipt, Retryability,
};
use ebus_layers::{MetricsLayer, RateLimitLayer, RetryConfig, RetryLayer, from_tower};
use tokio::time::Instant;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

fn is_handler<H: Handler>(handler: H) -> H {
    handler
}

fn retry() -> RetryLayer {
    RetryLayer::new(RetryConfig::default().with_max_attempts(3)).expect("valid")
}

#[tokio::test(start_paused = true)]
async fn readiness_is_respected_through_all_layers() {
    let probe = Probe::default();
    let publisher = ServiceBuilder::new()
        .layer(MetricsLayer::new())
        .map_err(from_tower)
        .timeout(Duration::from_secs(1))
        .layer(retry())
        .layer(RateLimitLayer::per_second(10).expect("valid"))
        .concurrency_limit(4)
        .service(probe.clone());
    readiness_is_respected::<_, Publish>(publisher, || publish("k", 1)).await;
    let handler = ServiceBuilder::new()
        .layer(MetricsLayer::new())
        .map_err(from_tower)
        .layer(RateLimitLayer::per_second(10).expect("valid"))
        .concurrency_limit(4)
        .timeout(Duration::from_secs(1))
        .service(probe.clone());
    readiness_is_respected::<_, Delivery>(is_handler(handler), delivery).await;
    assert_eq!(probe.calls().load(Ordering::Relaxed), 8);
}

#[tokio::test(start_paused = true)]
async fn retry_is_within_the_total_timeout_and_the_rate_counts_each_attempt() {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let backend = service_fn(move |publish: Publish| {
        let call = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            if call < 2 {
                return Err(Error::new(ErrorKind::Overloaded, "full"));
            }
            tokio::time::sleep(Duration::from_secs(call)).await;
            Ok(Receipt::new(publish.topic, 0, call))
        }
    });
    let stack = ServiceBuilder::new()
        .layer(MetricsLayer::new())
        .map_err(from_tower)
        .timeout(Duration::from_secs(10))
        .layer(retry())
        .layer(RateLimitLayer::new(ebus_layers::RateLimitConfig::per_second(1).with_burst(1)).expect("valid"))
        .concurrency_limit(1)
        .service(backend);
    let mut publisher = Publisher::new(stack);
    let begun = Instant::now();
    assert_eq!(publisher.publish(publish("k", 1)).await.expect("stored").offset, 2);
    assert!(begun.elapsed() >= Duration::from_secs(2 + 2), "two waits for the rate: {:?}", begun.elapsed());

    calls.store(20, Ordering::Relaxed);
    let error = publisher.publish(publish("k", 2)).await.expect_err("20 s are too long");
    assert_eq!((error.kind(), error.retryability()), (ErrorKind::Timeout, Retryability::Never));
}

#[tokio::test(start_paused = true)]
async fn shed_load_is_overloaded_and_safe() {
    let backend = service_fn(|publish: Publish| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok::<_, BoxError>(Receipt::new(publish.topic, 0, 0))
    });
    let mut stack =
        ServiceBuilder::new().map_err(from_tower).load_shed().concurrency_limit(1).service(backend);
    until_ready(&mut stack).await.expect("always");
    let first = stack.call(publish("k", 1));
    until_ready(&mut stack).await.expect("always");
    let error = stack.call(publish("k", 2)).await.expect_err("shed");
    assert_eq!((error.kind(), error.retryability()), (ErrorKind::Overloaded, Retryability::Safe));
    first.await.expect("stored");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_stack_gives_its_places_back() {
    let limit = tower::limit::ConcurrencyLimit::new(Probe::default(), 1);
    let mut one = ServiceBuilder::new().layer(MetricsLayer::new()).layer(retry()).service(limit);
    let mut two = one.clone();
    until_ready::<_, Publish>(&mut one).await.expect("ready");
    assert!(!common::is_ready::<_, Publish>(&mut two));
    drop(one);
    until_ready::<_, Publish>(&mut two).await.expect("the place is back");
    Service::<Publish>::call(&mut two, publish("k", 1)).await.expect("stored");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_times_out_is_a_failed_attempt() {
    let handler = ServiceBuilder::new()
        .map_err(from_tower)
        .timeout(Duration::from_millis(10))
        .service(service_fn(|_: Delivery| std::future::pending::<Result<Outcome, Error>>()));
    assert_eq!(
        is_handler(handler).oneshot(delivery()).await.expect_err("too long").kind(),
        ErrorKind::Timeout
    );
}
