//! Wrappers that record a history and change nothing.
//!
//! They stand outside: [`Recorded`] around a backend sees what a publisher is given and answers, and what passes between a
//! source and the pool; [`RecordedHandler`] around a handler sees the runs. So what they record is what a user would see.

mod backend;
mod batch;
mod handler;
mod parking;
mod publisher;
mod source;

pub use backend::Recorded;
pub use batch::RecordedBatch;
#[cfg(feature = "conformance")]
pub(crate) use batch::{fates, firsts};
pub use handler::{RecordedHandler, RecordedRun};
pub use publisher::{Origin, RecordedPublish, RecordedPublisher};
pub use source::RecordedSource;

use ebus_core::Message;

/// The header in which a test says which version of its key's aggregate a message is.
pub const VERSION_HEADER: &str = "ebus-version";

/// Finds the version of a message.
pub type VersionOf = fn(&Message) -> Option<u64>;

/// The version in the header [`VERSION_HEADER`].
pub fn version_from_header(message: &Message) -> Option<u64> {
    message.headers.first_str(VERSION_HEADER)?.parse().ok()
}
