//! The service around the inner one.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use ebus_core::{BoxError, Error, Publish, Receipt};
use tower_service::Service;

use super::lanes::{Entered, Lanes};
use super::{RetryConfig, RetryFuture};

/// Publishes again what may safely be tried again; made by [`RetryLayer`](super::RetryLayer). Clones are one publisher.
pub struct Retry<S: Service<Publish>> {
    inner: S,
    pub(super) lanes: Arc<Lanes<S>>,
}

impl<S: Service<Publish> + Clone> Retry<S> {
    pub(super) fn new(inner: S, config: RetryConfig) -> Self {
        let lanes = Arc::new(Lanes::new(inner.clone(), config));
        Self { inner, lanes }
    }
}

impl<S> Service<Publish> for Retry<S>
where
    S: Service<Publish, Response = Receipt, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
{
    type Response = Receipt;
    type Error = Error;
    type Future = RetryFuture<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(|error| Error::from_boxed(error.into()))
    }

    fn call(&mut self, publish: Publish) -> RetryFuture<S> {
        let inner = &mut self.inner;
        // What is held back takes the service that is ready, and its place in flight, with it; a clone is not ready.
        let hold = || {
            let fresh = inner.clone();
            std::mem::replace(inner, fresh)
        };
        match self.lanes.enter(publish, hold) {
            Entered::Send(ticket) => RetryFuture::sent(self.inner.call(ticket.publish.clone()), ticket),
            Entered::Held(reply) => RetryFuture::told(reply),
        }
    }
}

// No readiness of its own: that of the inner clone is reset by its own `Clone`. By hand for the bounds.
impl<S: Service<Publish> + Clone> Clone for Retry<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), lanes: self.lanes.clone() }
    }
}

impl<S: Service<Publish> + fmt::Debug> fmt::Debug for Retry<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry").field("inner", &self.inner).finish_non_exhaustive()
    }
}
