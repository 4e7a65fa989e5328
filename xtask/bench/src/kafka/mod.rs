//! Kafka beside rdkafka: the same broker, the same topics, the same settings where both have them.
//!
//! The raw side does what ours does for its caller: it waits for the delivery report of every message; it owns the key and
//! the payload of what it reads; it commits every 200 ms without waiting for it. It does not keep order per key through
//! failures, nor positions above a slow message.

mod cluster;
mod consume;
mod latency;
mod publish;
mod raw;

pub(crate) use consume::Consume;
pub(crate) use latency::EndToEnd;
pub(crate) use publish::Publish;
