//! The words and traits of ebus.
//!
//! What a backend, the pool and a user's code say to each other: [`Message`] and [`Publish`] on the way in,
//! [`Source`], [`Token`] and [`Settlement`] on the way out, [`Delivery`] and [`Outcome`] for handlers. Beside the
//! words stand the two pieces of bookkeeping that the promises rest on and that no backend writes for itself:
//!
//! - [`Ledger`]: what of a partition is finished, and how far the low watermark may move (G1, G6);
//! - [`Ownership`]: which partition is owned under which [`Epoch`], so that a [`Token`] of a former ownership is
//!   void (G3).
//!
//! This crate knows no backend, no codec and no runtime. Instants are `std::time::Instant`s taken from the
//! runtime's clock, so that a test that pauses time moves them.

mod backend;
mod batch;
mod capability;
mod delivery;
mod error;
mod group;
mod handler;
mod headers;
mod inherited;
mod key;
mod lease;
mod ledger;
mod message;
#[cfg(ebus_loom)]
#[doc(hidden)]
pub mod model;
mod offsets;
mod ownership;
mod parking;
mod partition;
mod position;
mod publish;
mod publisher;
mod source;
mod token;
mod topic;

pub use backend::{
    Backend, Committed, FOR_EVER, PartitionInfo, ReadRange, Reader, SourceOptions, StartPosition, TopicInfo,
    TopicSpec,
};
pub use batch::{BatchHandler, BatchOutcome, Failures};
pub use capability::Capability;
pub use delivery::Delivery;
pub use error::{BoxError, Error, ErrorKind, Retryability};
pub use group::Group;
pub use handler::{Handler, Outcome};
pub use headers::Headers;
pub use key::Key;
pub use lease::Lease;
pub use ledger::{Full, Ledger, LedgerLimits, Refused, Tracked};
pub use message::{Message, Timestamp};
pub use offsets::{NextOffset, OffsetSet};
pub use ownership::{Ownership, Settled};
pub use parking::{Parking, no_parked_keys};
pub use partition::PartitionId;
pub use position::{LogMark, Position, PositionError};
pub use publish::{Publish, Receipt};
pub use publisher::{PublishFuture, PublishService, Publisher};
pub use source::{Assigned, Inbound, Source, SourceEvent};
pub use token::{Epoch, Owned, Settlement, Slot, Token};
pub use topic::Topic;
