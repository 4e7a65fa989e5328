//! Kafka for ebus, on librdkafka.
//!
//! | Promise | Kept in |
//! |---|---|
//! | G1, G7: durable, idempotent, in the order of `call` | `clients.rs`, `producer.rs` |
//! | G3: late revocation, epochs in the commit's metadata | `member.rs`, `source/` |
//! | G4: a hand-over never stops the partitions that stay | two handles: `member.rs` has partitions, `source/` fetches |
//! | G5: bounds of what is in flight, prefetched and uncommitted | `in_flight.rs`, `clients.rs`, `source/` |
//! | G6: positions with what finished above the watermark | `positions.rs`, `source/` |
//! | G8, G9: typed settings, typed errors | `config*.rs`, `properties.rs`, `error.rs` |
//!
//! ```no_run
//! use ebus_core::{Backend, Message, Publish};
//! use ebus_kafka::{KafkaBackend, KafkaConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), ebus_core::Error> {
//! let backend = KafkaBackend::connect(KafkaConfig::new("localhost:9092")).await?;
//! let receipt = backend.publisher().publish(Publish::to("orders", Message::new("placed").with_key("order-42"))?).await?;
//! println!("stored at {}/{}", receipt.partition, receipt.offset);
//! # Ok(())
//! # }
//! ```

mod backend;
mod clients;
mod config;
mod config_check;
mod config_url;
mod convert;
mod error;
mod flight;
mod in_flight;
mod member;
mod positions;
mod producer;
mod properties;
mod reader;
mod source;
mod sys;
mod topics;

pub use backend::KafkaBackend;
pub use config::{Compression, GroupProtocol, KafkaConfig, TopicPolicy};
pub use flight::KafkaPublishFuture;
pub use producer::KafkaProducer;
