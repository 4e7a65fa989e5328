//! The one module with `unsafe`: what rdkafka's safe wrapper lacks or would panic on.
//!
//! - [`admin`]: topics and their ids.
//! - [`commit`]: commits whose answer is heard without waiting for it.
//! - [`committed`]: a group's offsets with their metadata as bytes. The wrapper's `metadata()` panics on what is not UTF-8, and
//!   any consumer of the group may have written such (G9).
//! - [`configs`]: the settings of a topic.
//! - [`ends`]: where all partitions of a topic begin and end, by one call.
//! - [`group`]: whether a group is in a rebalance, and this member one of its members.
//! - [`queue`]: messages of a partition by the batch. The wrapper makes an event and a reference count per message, and panics
//!   on a header name that is not UTF-8.
//! - [`produce`]: whether a failed message may be stored.
//!
//! Everything exported from here is safe to call.
#![allow(unsafe_code)]

pub(crate) mod admin;
pub(crate) mod commit;
pub(crate) mod committed;
pub(crate) mod configs;
pub(crate) mod ends;
pub(crate) mod group;
pub(crate) mod produce;
pub(crate) mod queue;
