//! Handlers of batches from closures.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ebus_core::{BatchOutcome, Delivery, Group};
use tower_service::Service;

use super::ctx::Ctx;
use crate::record::{RecordedHandler, fates, firsts};

type Run = Pin<Box<dyn Future<Output = BatchOutcome> + Send>>;

/// A handler of batches made of an async closure.
#[derive(Clone)]
pub(super) struct BatchFn(Arc<dyn Fn(Vec<Delivery>) -> Run + Send + Sync>);

pub(super) fn batch_fn<F, R>(handle: F) -> BatchFn
where
    F: Fn(Vec<Delivery>) -> R + Send + Sync + 'static,
    R: Future<Output = BatchOutcome> + Send + 'static,
{
    BatchFn(Arc::new(move |batch| Box::pin(handle(batch))))
}

impl Service<Vec<Delivery>> for BatchFn {
    type Response = BatchOutcome;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<BatchOutcome, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, batch: Vec<Delivery>) -> Self::Future {
        let run = (self.0)(batch);
        Box::pin(async move { Ok(run.await) })
    }
}

/// `handler`, with the runs of its messages in the log of the case and in the history.
pub(super) fn observed(ctx: &Ctx, handler: BatchFn, group: &Group, member: &str) -> RecordedHandler<BatchFn> {
    let (log, name) = (ctx.log.clone(), member.to_owned());
    let logged = batch_fn(move |batch: Vec<Delivery>| {
        let (log, name) = (log.clone(), name.clone());
        let run = (handler.0)(batch.clone());
        async move {
            let said = run.await;
            for (place, outcome) in fates(&firsts(&batch), &said) {
                log.ended(&name, &batch[place], &outcome);
            }
            said
        }
    });
    RecordedHandler::new(logged, ctx.history.clone(), group, member)
}
