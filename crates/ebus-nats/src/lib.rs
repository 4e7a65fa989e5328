//! The NATS JetStream backend of ebus.
//!
//! ```no_run
//! use ebus_core::{Backend, Message, Publish, Topic, TopicSpec};
//! use ebus_nats::{NatsBackend, NatsConfig};
//!
//! # async fn example() -> Result<(), ebus_core::Error> {
//! let backend = NatsBackend::connect(NatsConfig::from_url("nats://127.0.0.1:4222")?).await?;
//! let orders = Topic::new("orders")?;
//! backend.create_topic(&TopicSpec::new(orders.clone(), 8)).await?;
//! let message = Message::new("paid").with_key("order-42");
//! let receipt = backend.publisher().publish(Publish::new(orders, message)).await?;
//! println!("{}/{}", receipt.partition, receipt.offset);
//! # Ok(())
//! # }
//! ```
//!
//! # How things are kept
//! | in ebus | in JetStream |
//! |---|---|
//! | topic `a.b` | stream `a=b` with subjects `a.b.0` to `a.b.<P-1>`, `limits` retention, no limits; P and the hash (murmur2, as the Java clients of Kafka) in its metadata |
//! | what a connection that ended left uncertain | an empty message under its id on the subject `a.b.void` of the same stream, or for a batch on one of `a.b.void=.*`; no partition is either |
//! | a stream that somebody else made | a topic of one partition |
//! | offset | the stream's sequence, from 1: partitions share it, so the offsets of one partition grow with gaps |
//! | message | see the module `convert`: plain headers natively, time and key in `Nats-Msg-Id` (`Ebus <milliseconds> <key> <what is unique>`), in most members of batches the same in `Ebus-Id`, or in `Ebus` where the id is the caller's or the key longer than 64 bytes |
//! | group | key-value bucket `ebus`: `p.<group>.<topic>.<partition>` is the record of a partition, `h.<group>.<member>` the heartbeat of a member, `g.<group>` the manifest |
//! | parked keys | in the same bucket: `k.<group>.<topic>.<partition>` is the list of a partition, `r.<group>.<topic>.<partition>.<hash>` a request to its owner |
//! | reading | a pull consumer without acknowledgements, in memory, per ownership: `<group>_<partition>_<epoch>_<instance>` |
//!
//! # What keeps which promise
//! - G1, no loss: a publish resolves on the stream's acknowledgement; a consumer whose sequence jumps, fails or ends, and
//!   any reconnect, is answered by a new one that continues after the last message taken (`consumer`, `intake`).
//! - G2 across dead letters: parked keys are written by compare-and-set and fenced by epoch (`parking`).
//! - G3, no overlap: commit, heartbeat and fence are one compare-and-set (`own`, `group`, `store`); the owner stops at two
//!   thirds of its lease, counted from when it sent its last accepted write; others wait for all of it on their own clock
//!   (`watch`).
//! - G4: members share the partitions without a leader (`share`, `roster`, `balance`); a hand-over stops its partition only.
//! - G5, bounded: messages and bytes in flight (`gate`), the span of each partition (`intake`).
//! - G6, few duplicates: what finished above the watermark is part of every commit (`record`).
//! - G7, publish order: one task hands messages on in the order of `call` and never sends one twice (`pump`).
//!
//! # Batches
//! Since nats-server 2.14, messages that are pipelined are acknowledged together, while this connection is the only publisher
//! of the stream (`batch`, `pump::batches`, `place`). A topic that was made for it cannot be served by an older server any
//! more: [`NatsConfig::batches`] turns it off. Streams that exist are used as they are.
//!
//! # What ids cost
//! A message by itself has an id, so that bytes of a broken connection that come late change nothing. In a batch only a stream with
//! replicas, or one that an older version made, or that discards what is younger than three minutes, needs one for each: any other
//! refuses what comes late of a batch. The server keeps the ids of the
//! stream's `duplicate_window`, 2 minutes if nobody changes it: **230 B (with keys of 10 B) x messages a second x window** of its memory, on each replica
//! (28 MB at 1,000/s, 2.8 GB at 100,000/s), and it reads that many messages when it starts, 3.3 us each (0.4 s, 40 s), before the
//! stream can be used. A shorter window on a stream with much traffic costs less, and protects against bytes that are late by no more
//! than that. What reads a whole stream, such as a mirror of it, sees the empty messages of `<topic>.void` and `<topic>.void=.*` too.
//!
//! # Members of a group
//! Any number of members share the partitions of a group's topics evenly, moving no more than needed; those that find none
//! left wait. After a clean leave the others go on within a second; after a crash once nothing was heard of the member for
//! its [lease](NatsConfig::lease) (3 s on a single server, 15 s in a cluster) and a fifth of it more. A member that is cut off
//! from the server cancels its runs at two thirds of the lease. All members of a group should have the same lease; between
//! two, the longer one counts.
//!
//! When the bucket or a record is gone, the members that run say so as `Trouble`, and those that start fail with
//! `NotFound`: nothing begins anew by itself. **A bucket that is missing when no member runs is a new one**, in which every group
//! is new; back it up as the streams are. A record that is damaged begins again at the first message, which repeats and loses
//! nothing.
//!
//! # Limits
//! - The number of partitions of a topic cannot be changed.
//! - Headers that are not legal, such as text that is not UTF-8, which only publishers of other make can send, end a connection of
//!   async-nats. Such a message costs its reader two connections; then it and what is around it are read one by one, and it is handed
//!   on with the bytes of its headers.
//! - A message is at most `max_payload` of the server (1 MiB by default) less 512 bytes for its frame.
//!
//! # Versions of the server
//! | nats-server | what needs it |
//! |---|---|
//! | 2.9 | everything else: connecting to an older one is refused with `Unsupported` |
//! | 2.10 | topics of several partitions (metadata of streams): creating one on an older server is refused with `Unsupported` |
//!
//! What the server says of itself in its greeting is what counts; one that says nothing readable is too old.
//!
//! # Permissions
//! A member needs to publish to `<topic>.*`, `<topic>.void=.*`, `$JS.API.STREAM.INFO.<stream>`, `$JS.API.STREAM.MSG.GET.<stream>`,
//! `$JS.API.CONSUMER.CREATE.<stream>.>`, `$JS.API.CONSUMER.DELETE.<stream>.*`, `$JS.API.CONSUMER.INFO.<stream>.*`,
//! `$JS.API.CONSUMER.MSG.NEXT.<stream>.*`, `$JS.API.STREAM.INFO.KV_<bucket>`, `$JS.API.STREAM.MSG.GET.KV_<bucket>` and
//! `$KV.<bucket>.>`, and to subscribe to `_INBOX.>`. Who creates topics, or the bucket at the first use, needs
//! `$JS.API.STREAM.CREATE.<stream>` too.
//!
//! Who only looks which keys are parked needs to publish to `$JS.API.STREAM.INFO.<stream>` and `$JS.API.STREAM.MSG.GET.KV_<bucket>`; to
//! have one redriven, to `$KV.<bucket>.>` too.
//!
//! What is not permitted fails with `Denied`, or is said as `Trouble` where nobody asked; a publish says so at its time-out.
//!
//! Without these it works, and less well: subscribing to `$KV.<bucket>.h.>` lets a member hear of others at once
//! instead of within half a second; publishing to `$JS.API.STREAM.PURGE.KV_<bucket>` lets it remove the markers of members that left.

mod ack;
mod address;
mod auth;
mod backend;
mod balance;
mod batch;
mod beat;
mod config;
mod connection;
mod consumer;
mod convert;
mod denials;
mod digits;
mod error;
mod flight;
mod gate;
mod group;
mod hash;
mod headers;
mod intake;
mod join;
mod keys;
mod names;
mod own;
mod parking;
mod part;
mod peers;
mod place;
mod producer;
mod pull;
mod pump;
mod raw;
mod reader;
mod record;
mod roster;
mod route;
mod seek;
mod share;
mod source;
mod start;
mod store;
mod stream;
mod watch;

pub use backend::NatsBackend;
pub use config::{MissingTopic, NatsConfig};
pub use producer::{NatsProducer, NatsPublish};
