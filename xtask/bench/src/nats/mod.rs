//! NATS JetStream beside async-nats: the same server, streams of the same shape.
//!
//! The raw side does what ours does for its caller: it waits for the acknowledgement of every message; it owns the key and
//! the payload of what it reads; it acknowledges. It does not keep order per key, nor positions above a slow message.

mod consume;
mod latency;
mod publish;
mod raw;
mod server;

pub(crate) use consume::Consume;
pub(crate) use latency::EndToEnd;
pub(crate) use publish::Publish;
pub(crate) use raw::{Acks, Ids};
