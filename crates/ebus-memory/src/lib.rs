//! The in-process broker of ebus: a partitioned log with groups, and no server.
//!
//! It is a real broker in all but durability, and the executable specification of the traits of `ebus-core`: what a
//! [`Source`](ebus_core::Source) promises can be read here in the smallest form that keeps all of it. It is also the
//! default backend, so it is built for speed: a publish is one short critical section of its partition, and reading
//! takes no lock except once per segment of the log.
//!
//! | Promise | Kept in |
//! |---|---|
//! | G1, G8: nothing unread is dropped, a full log holds publishers back | `log.rs`, `retention.rs` |
//! | G2, G7: `call` appends, in order, to the partition of the key | `producer.rs`, `log.rs`, `convert` |
//! | G2 across dead letters: parked keys | `parking.rs` |
//! | G3: epochs, late revocation, fenced commits | `group.rs`, `source.rs` |
//! | G5: bounds of messages in flight, of the log and of the uncommitted span | `gate.rs`, `retention.rs`, `reading.rs` |
//! | G6: positions with what finished above the watermark | `group.rs`, `source.rs` |
//! | G9: close, idle members, bad positions | `connection.rs`, `group.rs`, `committed.rs` |
//!
//! ```
//! use ebus_core::{Backend, Message, Publish};
//! use ebus_memory::{MemoryBackend, MemoryConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), ebus_core::Error> {
//! let backend = MemoryBackend::new(MemoryConfig::default())?;
//! let message = Message::new("placed").with_key("order-42");
//! let receipt = backend.publisher().publish(Publish::to("orders", message)?).await?;
//! assert_eq!(receipt.offset, 0);
//! # Ok(())
//! # }
//! ```
//!
//! # Broker and connection
//! A [`MemoryBroker`] holds topics, groups and positions. A [`MemoryBackend`] is one connection to it, with bounds of its
//! own; a clone is the same connection. Closing a connection leaves the broker as it is: [`MemoryBroker::connect`] opens
//! the next one, which finds all topics, groups and positions.
//!
//! # Runtime
//! Sources need a tokio runtime with time. No task is spawned: time-outs of a group are seen by whichever member is
//! receiving.

mod assign;
mod backend;
mod broker;
mod committed;
mod config;
mod connection;
mod convert;
mod cursor;
mod error;
mod fault;
mod gate;
mod group;
mod log;
mod member;
mod parking;
mod producer;
mod reader;
mod reading;
mod retention;
mod segment;
mod source;
mod topic;

pub use backend::MemoryBackend;
pub use broker::MemoryBroker;
pub use config::{MemoryConfig, TopicPolicy};
pub use fault::{Chaos, Fault, Faults};
pub use member::MemberId;
pub use producer::{MemoryProducer, MemoryPublishFuture};
