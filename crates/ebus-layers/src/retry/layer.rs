//! The layer.

use ebus_core::{Error, Publish};
use tower_layer::Layer;
use tower_service::Service;

use super::{Retry, RetryConfig};

/// Publishes again what failed with an error that is [`Safe`](ebus_core::Retryability::Safe) to try again.
///
/// - Later calls of the same topic and key are held back meanwhile, and follow in their order: order per key is kept. Other
///   keys go on.
/// - What a later message of its key has overtaken already is not sent again: its error goes to the caller, as
///   [`Never`](ebus_core::Retryability::Never). So of a key with many messages in flight only the last one is retried.
/// - When attempts or time are used up, the last error is given with [`Exhausted`](ebus_core::Retryability::Exhausted).
/// - Dropping the future does not un-publish: attempts go on, and what is held back is still sent.
/// - What is held back keeps its place in the inner service's bound of messages in flight.
///
/// Needs a tokio runtime; without one nothing is tried again, and the error says so. Not for handlers: their retry is the lane's.
#[derive(Debug, Clone, Default)]
pub struct RetryLayer {
    config: RetryConfig,
}

impl RetryLayer {
    /// With this configuration.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming every setting that is wrong.
    pub fn new(config: RetryConfig) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self { config })
    }
}

impl<S: Service<Publish> + Clone> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry::new(inner, self.config.clone())
    }
}
