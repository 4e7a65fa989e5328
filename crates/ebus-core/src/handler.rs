//! What handles messages, and what it decides.

use std::time::Duration;

use tower_service::Service;

use crate::{BoxError, Delivery, Error};

/// What a handler decided about a message.
#[derive(Debug, Clone)]
#[must_use = "the outcome decides what becomes of the message"]
pub enum Outcome {
    /// Handled.
    Ack,
    /// Failed, and worth another attempt: the same message runs again before any later one of its key.
    Retry {
        /// How long to wait, instead of what the policy says.
        after: Option<Duration>,
        /// Why.
        error: Error,
    },
    /// Failed for good: it goes to the dead-letter topic without another attempt.
    Reject {
        /// Why.
        error: Error,
    },
}

/// A handler: a Tower service from [`Delivery`] to [`Outcome`].
///
/// Implemented for every service of that shape; there is nothing to implement by hand.
///
/// # Contract
/// - `poll_ready` that is pending makes the pool wait before it starts the next run of this handler; it may not depend on
///   one of this handler's own runs being polled by the same caller of `poll_ready`.
/// - An `Err` of `poll_ready` or of the future is a failed attempt, as `Retry` is.
/// - The future may be dropped at any await: at a hand-over that has passed its deadline, and when the partition is lost.
/// - A handler that blocks its thread blocks all keys of its shard: move such work to a thread of its own.
pub trait Handler:
    Service<Delivery, Response = Outcome, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static
{
}

impl<S> Handler for S where
    S: Service<Delivery, Response = Outcome, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static
{
}
