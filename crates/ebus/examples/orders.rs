//! Typed handlers, retries, dead letters and a clean end: what a small service looks like.
//!
//! ```sh
//! cargo run -p ebus --example orders --features envelope
//! cargo run -p ebus --example orders --features envelope,kafka -- kafka://localhost:9092
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ebus::envelope::{Envelope, Event, typed};
use ebus::{Bus, Error, ErrorKind, Handled, HandlerError, RetryPolicy, Topic, TopicSpec};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct OrderPlaced {
    total: i64,
}

/// What the handlers share; a real one would hold a connection pool.
#[derive(Default)]
struct Ledger {
    charged: AtomicU64,
    done: tokio::sync::Notify,
}

async fn charge(ledger: Arc<Ledger>, event: Event<OrderPlaced>) -> Handled {
    if event.total < 0 {
        // Trying again cannot help: to the dead letters at once.
        return Err(HandlerError::permanent(format!("{} has a negative total", event.key())));
    }
    if event.total == 500 && event.attempt() < 3 {
        // The same event again, before the next one of its key.
        return Err(HandlerError::retry("the bank does not answer"));
    }
    println!("{}: charged {} at attempt {}", event.key(), event.total, event.attempt());
    ledger.charged.fetch_add(1, Relaxed);
    ledger.done.notify_one();
    Ok(())
}

async fn regret(event: Event<OrderPlaced>) -> Handled {
    let why = event.envelope().headers().first_str(ebus::dead_letter::ERROR).unwrap_or("no reason given");
    println!("{}: given up: {why}", event.key());
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory://".into());
    let bus = Bus::connect(url).await?;
    for topic in ["orders", "orders.dlq"] {
        bus.create_topic(&TopicSpec::new(Topic::new(topic)?, 8)).await?;
    }

    let ledger = Arc::new(Ledger::default());
    let billing = bus
        .consumer("billing")
        .on("orders", typed(charge).with(ledger.clone()))
        .retry(RetryPolicy::exponential().first(Duration::from_millis(50)).max_attempts(5))
        .dead_letter("orders.dlq")
        .start()
        .await?;
    let regrets = bus.consumer("regrets").on("orders.dlq", typed(regret)).start().await?;

    for (order, total) in
        [("order-1", 990), ("order-2", 500), ("order-3", -1), ("order-2", 510), ("order-1", 20)]
    {
        let placed = Envelope::event(order, "order.placed", 1, &OrderPlaced { total })?;
        bus.publish(placed.to("orders")).await?;
    }

    let finished = async {
        while ledger.charged.load(Relaxed) < 4 || regrets.counters().handled < 1 {
            let _ = tokio::time::timeout(Duration::from_millis(50), ledger.done.notified()).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(60), finished).await.is_err() {
        for stuck in billing.state().await.stuck {
            eprintln!("{} offset {}: {:?}", stuck.partition, stuck.offset, stuck.last_error);
        }
        return Err(Error::new(ErrorKind::Timeout, "the orders were not handled within a minute"));
    }

    for consumer in [billing, regrets] {
        let report = consumer.drain(Duration::from_secs(10)).await;
        println!(
            "{}: handled {}, dead letters {}",
            consumer.group(),
            report.counters.handled,
            report.counters.dead_letters
        );
        report.committed?;
    }
    bus.close(Duration::from_secs(5)).await
}
