//! The layers of ebus beside tower's own, around a publisher and around a handler.
//!
//! The publisher here stands for a backend's: it refuses every third message once, and takes it the second time.
//!
//! ```sh
//! cargo run -p ebus-layers --example compose --all-features
//! ```

use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ebus_core::{
    Delivery, Epoch, Error, ErrorKind, Message, Outcome, PartitionId, Publish, Publisher, Receipt, Topic,
};
use ebus_layers::{MetricsLayer, RateLimitConfig, RateLimitLayer, RetryConfig, RetryLayer, from_tower};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let metrics = MetricsLayer::new();

    let calls = Arc::new(AtomicU64::new(0));
    let backend = service_fn({
        let calls = calls.clone();
        move |publish: Publish| store(&calls, publish)
    });

    // Outermost first. What waits for readiness here, waits before `call`: the timeout does not count it.
    let stack = ServiceBuilder::new()
        .layer(metrics.clone())
        .map_err(from_tower)
        .timeout(Duration::from_secs(5))
        .layer(RetryLayer::new(RetryConfig::default().with_min_delay(Duration::from_millis(1)))?)
        .layer(RateLimitLayer::new(RateLimitConfig::per_second(200).with_burst(20))?)
        .concurrency_limit(64)
        .service(backend);
    let mut publisher = Publisher::new(stack);

    let begun = Instant::now();
    for n in 0..60 {
        let message = Message::new(format!("version {n}")).with_key("order-42");
        let receipt = publisher.publish(Publish::to("orders", message)?).await?;
        assert_eq!(receipt.offset, n, "stored in order, each once");
    }
    println!("60 messages in {} calls and {:?}", calls.load(Ordering::Relaxed), begun.elapsed());

    let mut handler = ServiceBuilder::new()
        .layer(metrics)
        .map_err(from_tower)
        .layer(RateLimitLayer::per_second(1_000)?)
        .timeout(Duration::from_millis(20))
        .service(service_fn(|delivery: Delivery| async move {
            if delivery.payload() == b"slow" {
                std::future::pending::<()>().await;
            }
            Ok::<_, Error>(Outcome::Ack)
        }));
    for payload in ["quick", "slow"] {
        let partition = Arc::new(PartitionId::new(Topic::new("orders")?, 0));
        let delivery = Delivery::new(partition, Epoch(1), 0, 1, Message::new(payload));
        let outcome = ServiceExt::<Delivery>::ready(&mut handler).await?.call(delivery).await;
        println!(
            "{payload}: {}",
            outcome.map_or_else(|error| error.to_string(), |outcome| format!("{outcome:?}"))
        );
    }
    Ok(())
}

fn store(calls: &AtomicU64, publish: Publish) -> Ready<Result<Receipt, Error>> {
    let call = calls.fetch_add(1, Ordering::Relaxed);
    ready(if call % 4 == 2 {
        Err(Error::new(ErrorKind::Overloaded, "the queue is full; try again later"))
    } else {
        // Of every four calls one is refused.
        Ok(Receipt::new(publish.topic, 0, call - (call + 1) / 4))
    })
}
