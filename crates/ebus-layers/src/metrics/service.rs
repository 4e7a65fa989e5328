//! The service around the inner one: for publishers and for handlers.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use ebus_core::{BoxError, Delivery, Error, Outcome, Publish, Receipt};
use tower_service::Service;

use super::MetricsFuture;
use super::future::Run;
use super::side::Side;

/// Counts and times calls; made by [`MetricsLayer`](super::MetricsLayer).
// No readiness of its own, so that the derived `Clone` is right.
#[derive(Clone)]
pub struct Metrics<S> {
    inner: S,
    publish: Arc<Side>,
    handle: Arc<Side>,
}

impl<S> Metrics<S> {
    pub(super) fn new(inner: S, publish: Arc<Side>, handle: Arc<Side>) -> Self {
        Self { inner, publish, handle }
    }
}

impl<S> Service<Publish> for Metrics<S>
where
    S: Service<Publish, Response = Receipt, Error: Into<BoxError>>,
{
    type Response = Receipt;
    type Error = Error;
    type Future = MetricsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(|error| Error::from_boxed(error.into()))
    }

    fn call(&mut self, publish: Publish) -> Self::Future {
        let run = Run::begin(&self.publish, &publish.topic);
        MetricsFuture::new(self.inner.call(publish), run)
    }
}

impl<S> Service<Delivery> for Metrics<S>
where
    S: Service<Delivery, Response = Outcome, Error: Into<BoxError>>,
{
    type Response = Outcome;
    type Error = Error;
    type Future = MetricsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(|error| Error::from_boxed(error.into()))
    }

    fn call(&mut self, delivery: Delivery) -> Self::Future {
        let run = Run::begin(&self.handle, delivery.topic());
        MetricsFuture::new(self.inner.call(delivery), run)
    }
}

impl<S: fmt::Debug> fmt::Debug for Metrics<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("inner", &self.inner).finish_non_exhaustive()
    }
}
