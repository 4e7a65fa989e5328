//! Events that must not be lost and must not be reordered: Kafka, NATS JetStream and in-process behind one small API.
//!
//! This crate is what most programs name. It re-exports the parts and adds [`Bus`], [`Consumer`] and connecting by URL; what
//! keeps the promises stands in the crates below.
//!
//! # Hello world
//! ```
//! use ebus::{Bus, Delivery, Handled, Message, Publish, raw};
//!
//! async fn greet(delivery: Delivery) -> Handled {
//!     println!("hello, {}", std::str::from_utf8(delivery.payload())?);
//!     Ok(())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), ebus::Error> {
//! let bus = Bus::connect("memory://").await?; // kafka://localhost:9092, nats://localhost:4222
//! let consumer = bus.consumer("greeters").on("greetings", raw(greet)).start().await?;
//! bus.publish(Publish::to("greetings", Message::new("world"))).await?;
//! # while consumer.counters().handled == 0 {
//! #     tokio::task::yield_now().await;
//! # }
//! # consumer.drain(std::time::Duration::from_secs(5)).await.committed?;
//! # Ok(())
//! # }
//! ```
#![cfg_attr(
    feature = "envelope",
    doc = r#"
# With events
Feature `envelope`: an [`Envelope`](envelope::Envelope) is an event's metadata around its payload, and
[`typed`](envelope::typed) makes a handler of a function that takes the decoded event.
```
use std::time::Duration;

use ebus::envelope::{Envelope, Event, Handled, typed};
use ebus::{Bus, RetryPolicy};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct OrderPlaced {
    total: u64,
}

# #[derive(Clone)]
# struct Db(tokio::sync::mpsc::UnboundedSender<u64>);
# impl Db {
#     async fn charge(&self, _order: &str, total: u64) -> Result<(), std::io::Error> {
#         let _ = self.0.send(total);
#         Ok(())
#     }
# }
async fn charge(db: Db, event: Event<OrderPlaced>) -> Handled {
    db.charge(event.key(), event.total).await?; // any error: the same event again, before the next one of its key
    Ok(())
}

# #[tokio::main(flavor = "current_thread")]
# async fn main() -> Result<(), ebus::Error> {
# let (charged, mut charges) = tokio::sync::mpsc::unbounded_channel();
# let db = Db(charged);
let bus = Bus::connect("memory://").await?;
let consumer = bus
    .consumer("billing")
    .on("orders", typed(charge).with(db))
    .retry(RetryPolicy::exponential().max_attempts(5))
    .dead_letter("orders.dlq")
    .max_in_flight(1_024)
    .start()
    .await?;

bus.publish(Envelope::event("order-42", "order.placed", 1, &OrderPlaced { total: 990 })?.to("orders")).await?;
# assert_eq!(charges.recv().await, Some(990));
// ... until the program is told to stop; then what runs may end, and nothing that finished runs again:
let report = consumer.drain(Duration::from_secs(30)).await;
report.committed?;
bus.close(Duration::from_secs(5)).await?;
# Ok(())
# }
```
"#
)]
//!
//! # Cargo features
//! None is on by default, and `memory://` is always there. Features only add.
//!
//! | Feature | Adds |
//! |---|---|
//! | `kafka` | the backend for `kafka://`; builds librdkafka, which needs a C compiler |
//! | `kafka-ssl`, `kafka-sasl`, `kafka-zstd`, ... | build switches of librdkafka, passed through |
//! | `nats` | the backend for `nats://` and `tls://` |
//! | `envelope` | events around a payload, typed handlers, the wire format `headers` |
//! | `envelope-json` | the wire format `json` |
//! | `rate-limit`, `retry`, `metrics` | a Tower layer each, in `layers` |
//! | `tower-errors` | `layers::from_tower`: finds errors again that tower's own layers boxed |
//! | `full` | all of these but the build switches of librdkafka |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod builder;
mod bus;
mod connect;
mod consumer;
mod into_publish;
mod life;
mod stack;

pub use builder::ConsumerBuilder;
pub use bus::Bus;
pub use connect::connect;
pub use consumer::Consumer;
pub use into_publish::IntoPublish;

pub use ebus_core::{
    Backend, BatchHandler, BatchOutcome, BoxError, Capability, Committed, Delivery, Epoch, Error, ErrorKind,
    Failures, Group, Handler, Headers, Key, Message, NextOffset, Outcome, PartitionId, PartitionInfo,
    Position, Publish, PublishFuture, PublishService, Publisher, ReadRange, Reader, Receipt, Retryability,
    StartPosition, Timestamp, Topic, TopicInfo, TopicSpec,
};
#[cfg(feature = "envelope")]
pub use ebus_envelope as envelope;
pub use ebus_envelope::{BatchHandled, Handled, HandlerError, Raw, raw};
#[cfg(feature = "kafka")]
pub use ebus_kafka as kafka;
#[cfg(any(feature = "metrics", feature = "rate-limit", feature = "retry", feature = "tower-errors"))]
pub use ebus_layers as layers;
pub use ebus_memory as memory;
#[cfg(feature = "nats")]
pub use ebus_nats as nats;
pub use ebus_pool::{
    AfterFailure, Batch, Counters, Doing, DrainReport, Left, ParkedKey, PartitionState, PoolState,
    RetryPolicy, Stuck, dead_letter,
};

/// What people see first compiles.
#[cfg(all(doctest, feature = "envelope"))]
#[doc = include_str!("../../../README.md")]
struct Readme;
