//! Handlers from closures.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ebus_core::{Delivery, Error, ErrorKind, Outcome};
use tower_service::Service;

type Run = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A handler made of an async closure.
#[derive(Clone)]
pub(super) struct HandlerFn(Arc<dyn Fn(Delivery) -> Run + Send + Sync>);

pub(super) fn handler_fn<F, R>(handle: F) -> HandlerFn
where
    F: Fn(Delivery) -> R + Send + Sync + 'static,
    R: Future<Output = Outcome> + Send + 'static,
{
    HandlerFn(Arc::new(move |delivery| Box::pin(handle(delivery))))
}

impl HandlerFn {
    pub(super) fn run(&self, delivery: Delivery) -> Run {
        (self.0)(delivery)
    }
}

impl Service<Delivery> for HandlerFn {
    type Response = Outcome;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Outcome, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, delivery: Delivery) -> Self::Future {
        let run = self.run(delivery);
        Box::pin(async move { Ok(run.await) })
    }
}

pub(super) fn fails(why: &str) -> Outcome {
    Outcome::Retry { after: None, error: Error::new(ErrorKind::Handler, why) }
}

pub(super) fn rejects(why: &str) -> Outcome {
    Outcome::Reject { error: Error::new(ErrorKind::Handler, why) }
}
