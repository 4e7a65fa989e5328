//! Handling many messages at once, without giving up what is promised for each (G1, G2, G4).
//!
//! A batch has many messages and each of them its own fate: what a handler says about one of them is not about the others.

use std::time::Duration;

use tower_service::Service;

use crate::{BoxError, Delivery, Error, Outcome};

/// Which messages of a batch failed, by their place in it; those that are not named are handled.
///
/// ```
/// use ebus_core::{Error, ErrorKind, Failures, Outcome};
///
/// let full = Error::new(ErrorKind::Handler, "the shelf is full");
/// let failures = Failures::new().with(3, Outcome::Retry { after: None, error: full });
/// assert_eq!(failures.len(), 1);
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "the failures decide what becomes of the messages"]
pub struct Failures(Vec<(usize, Outcome)>);

impl Failures {
    /// None: all messages are handled.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The message at this place, from 0, failed: it runs again, or goes to the dead-letter topic. Of two that name the same
    /// place the first one counts; [`Outcome::Ack`] names nobody.
    pub fn add(&mut self, place: usize, outcome: impl Into<Outcome>) {
        let outcome = outcome.into();
        if !matches!(outcome, Outcome::Ack) {
            self.0.push((place, outcome));
        }
    }

    /// With one more.
    pub fn with(mut self, place: usize, outcome: impl Into<Outcome>) -> Self {
        self.add(place, outcome);
        self
    }

    /// How many were named.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none was named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The places and what becomes of their messages, as they were named.
    pub fn iter(&self) -> impl Iterator<Item = &(usize, Outcome)> {
        self.0.iter()
    }

    /// The same, without a copy.
    pub fn into_vec(self) -> Vec<(usize, Outcome)> {
        self.0
    }
}

impl From<()> for Failures {
    fn from((): ()) -> Self {
        Self::new()
    }
}

/// What a handler decided about a batch.
#[derive(Debug, Clone)]
#[must_use = "the outcome decides what becomes of the messages"]
pub enum BatchOutcome {
    /// Each message has its own outcome: those named failed, the others are handled. One that comes behind a failed one of its
    /// own key counts as not begun, whatever is said of it.
    Each(Failures),
    /// The batch failed and nobody is named: each of its messages runs again, by itself, so that one that cannot be handled is
    /// found and does not take others with it again.
    Retry {
        /// How long to wait, instead of what the policy says.
        after: Option<Duration>,
        /// Why.
        error: Error,
    },
}

/// A handler of batches: a Tower service from deliveries of one topic to [`BatchOutcome`].
///
/// Implemented for every service of that shape; there is nothing to implement by hand.
///
/// # Contract
/// What [`Handler`](crate::Handler) says, and:
/// - The deliveries of one key stand together and in order. A handler that does them one after the other stops with a key at its
///   first failure: what comes behind it runs again, after it.
/// - An `Err` of `poll_ready` or of the future, and a panic, are [`BatchOutcome::Retry`].
pub trait BatchHandler:
    Service<Vec<Delivery>, Response = BatchOutcome, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static
{
}

impl<S> BatchHandler for S where
    S: Service<Vec<Delivery>, Response = BatchOutcome, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static
{
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn retry() -> Outcome {
        Outcome::Retry { after: None, error: Error::new(ErrorKind::Handler, "the shelf is full") }
    }

    #[test]
    fn p1_only_those_that_failed_are_named_and_each_of_them() {
        let mut failures = Failures::new().with(3, retry());
        failures.add(1, Outcome::Ack);
        failures.add(0, retry());
        assert!(!failures.is_empty());
        assert_eq!(failures.len(), 2);
        assert_eq!(failures.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [3, 0]);
        let named = failures.into_vec();
        assert!(matches!(named[..], [(3, Outcome::Retry { .. }), (0, Outcome::Retry { .. })]), "{named:?}");
        assert!(Failures::from(()).is_empty());
        assert_eq!(Failures::from(()).len(), 0);
    }
}
