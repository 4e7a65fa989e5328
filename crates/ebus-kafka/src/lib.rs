//! Kafka for ebus, on librdkafka.
//!
//! | Promise | Kept in |
//! |---|---|
//! | G1, G7: durable, idempotent, in the order of `call` | `clients.rs`, `producer.rs` |
//! | G7, G9: an answer by the deadline, and nothing given up | `deadlines.rs`, `in_flight.rs` |
//! | G2 across dead letters: parked keys, in a compacted topic | `parking/` |
//! | G3: late revocation, epochs in the commit's metadata | `member.rs`, `source/` |
//! | G3: a session clock of our own, which the lease of each delivery follows | `source/session.rs` |
//! | G4: a hand-over never stops the partitions that stay | two handles: `member.rs` has partitions, `source/` fetches |
//! | G5: bounds of what is in flight, prefetched and uncommitted | `in_flight.rs`, `clients.rs`, `source/` |
//! | G6: positions with what finished above the watermark | `positions.rs`, `source/` |
//! | G8, G9: typed settings, typed errors | `config*.rs`, `properties.rs`, `error.rs` |
//!
//! # Publishing while the broker is away
//! - A publish is answered within [`delivery_timeout`](KafkaConfig::with_delivery_timeout): `Timeout` means that it may have been
//!   stored, or be stored once the broker is back. It is never stored twice by this connection, and never behind a later version of
//!   its key: librdkafka gives nothing up, however long the outage.
//! - What has been answered so still counts in [`in_flight_messages`](KafkaConfig::with_in_flight_messages) and
//!   [`in_flight_bytes`](KafkaConfig::with_in_flight_bytes). When nothing else is left there, publishing fails at once with
//!   `Unavailable`: not sent, not stored.
//! - What the topic would not take (`max.message.bytes`, or a compacted topic and no key) is refused before it is sent, if the topic's
//!   settings may be described; sizes count before compression.
//! - Anything else that a broker refuses for good (a timestamp too far ahead, a batch too large for a topic whose settings may not be
//!   described) lets librdkafka begin a new producer epoch. What was sent before and has no answer then, because its broker was cut
//!   off at that very time, is sent again and may be stored twice.
//! - Brokers forget a producer that is silent for `producer.id.expiration.ms` (a day). What was in flight at the beginning of a
//!   longer outage may be stored twice.
//! - `close` sends what it can within its time. What is left is given up: its publish fails with `Timeout` if it may have been
//!   stored, else `Unavailable`. `close` itself fails if it gave up a publish that had no answer yet.
//! - When librdkafka fails for good (the broker refuses an idempotent producer, say), each publish fails with what it said, and
//!   a new connection is needed.
//!
//! # Membership
//! - A lease lasts four fifths of [`session_timeout`](KafkaConfig::with_session_timeout) from the last commit that the coordinator
//!   accepted; an idle member commits its unchanged positions to prove that it is there. Past the lease nothing starts, all
//!   partitions are lost, and what the broker still gives to this member is taken over again.
//! - With [`GroupProtocol::Consumer`] the session is the broker's (`group.consumer.session.timeout.ms`): set `session_timeout` to no
//!   more than that.
//! - With an [`instance_id`](KafkaConfig::with_instance_id) a clean restart within the session moves nothing. A second process of
//!   that name fences the first (classic) or is refused while the first is there (consumer protocol): whoever loses ends with
//!   `Fenced`.
//! - Without one, a member of a classic group has a name of its own, `ebus-` and random digits, shown as its `group.instance.id`: it is
//!   given back by leaving, and who was away keeps nobody waiting.
//! - With the classic protocol, a member that has rejoined commits nothing until the slowest member has let go of what it is to give
//!   up: the broker answers nothing on a connection that waits in a rebalance. Killed meanwhile, so much runs again. The consumer
//!   protocol has no such pause.
//! - Where a new topic begins with `latest` or a time is decided once for the group, by the member that owns its first partition.
//! - Consumers of other languages may share a group if they use cooperative-sticky; a group with members that only know another
//!   assignor cannot be joined, which is told as `Unsupported`. What they commit has no finished set: what finished above their
//!   offset runs again.
//! - A topic that is made anew under its name is begun anew: at once when a read fails, within 10 s otherwise. Brokers before
//!   2.8 have no topic ids; there a log that is made anew and is already longer goes unnoticed.
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
mod deadlines;
mod elsewhere;
mod error;
mod flight;
mod in_flight;
mod known;
mod member;
mod parking;
mod places;
mod positions;
mod producer;
mod properties;
mod reader;
mod serving;
mod source;
mod sys;
mod takes;
mod topics;

pub use backend::KafkaBackend;
pub use config::{Compression, GroupProtocol, KafkaConfig, TopicPolicy};
pub use flight::KafkaPublishFuture;
pub use producer::KafkaProducer;
