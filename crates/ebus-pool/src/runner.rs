//! A topic's handler in one shard, erased once, so that a run costs no box unless it waits (G9: panics end here).

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use ebus_core::{BoxError, Delivery, Error, ErrorKind, Handler, Outcome};
use pin_project_lite::pin_project;

/// How a run ended.
pub(crate) enum Ended {
    Outcome(Outcome),
    Panicked(Error),
}

/// A run that did not end at once.
pub(crate) type PendingRun = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// What [`Runner::start`] came to.
pub(crate) enum Started {
    Ended(Ended),
    Pending(PendingRun),
}

/// Runs deliveries of one topic.
pub(crate) trait Runner: Send {
    /// Whether a run may start; pending wakes the shard. A handler that fails or panics here is replaced by a new clone.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>>;

    /// Starts a run and polls it once, after `poll_ready` said so.
    fn start(&mut self, delivery: Delivery, cx: &mut Context<'_>) -> Started;
}

pub(crate) struct HandlerRunner<H: Handler> {
    /// Never made ready: new clones are taken from it.
    template: H,
    handler: H,
    /// The box of the last run that ended at once, to be used again.
    spare: Option<Pin<Box<Run<H::Future>>>>,
}

impl<H: Handler> HandlerRunner<H> {
    pub(crate) fn new(handler: H) -> Self {
        Self { template: handler.clone(), handler, spare: None }
    }
}

impl<H: Handler> Runner for HandlerRunner<H> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let ended = match catch_unwind(AssertUnwindSafe(|| self.handler.poll_ready(cx))) {
            Ok(Poll::Ready(Ok(()))) => return Poll::Ready(Ok(())),
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(Err(error))) => failed(error.into()),
            Err(panic) => panicked(panic.as_ref()),
        };
        self.handler = self.template.clone();
        Poll::Ready(Err(ended))
    }

    fn start(&mut self, delivery: Delivery, cx: &mut Context<'_>) -> Started {
        let future = match catch_unwind(AssertUnwindSafe(|| self.handler.call(delivery))) {
            Ok(future) => future,
            Err(panic) => {
                self.handler = self.template.clone();
                return Started::Ended(panicked(panic.as_ref()));
            }
        };
        let mut run = self.spare.take().unwrap_or_else(|| Box::pin(Run { future: None }));
        run.as_mut().project().future.set(Some(future));
        match run.as_mut().poll(cx) {
            Poll::Ready(ended) => {
                self.spare = Some(run);
                Started::Ended(ended)
            }
            Poll::Pending => Started::Pending(run),
        }
    }
}

pin_project! {
    /// A handler's future, guarded: it is dropped as soon as it ended or panicked.
    struct Run<F> {
        #[pin]
        future: Option<F>,
    }
}

impl<F, E> Future for Run<F>
where
    F: Future<Output = Result<Outcome, E>>,
    E: Into<BoxError>,
{
    type Output = Ended;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let mut slot = self.project().future;
        let Some(future) = slot.as_mut().as_pin_mut() else {
            return Poll::Ready(Ended::Panicked(Error::new(
                ErrorKind::Unexpected,
                "the run had ended before",
            )));
        };
        let ended = match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(Ok(outcome))) => Ended::Outcome(outcome),
            Ok(Poll::Ready(Err(error))) => failed(error.into()),
            Err(panic) => panicked(panic.as_ref()),
        };
        match catch_unwind(AssertUnwindSafe(|| slot.set(None))) {
            Ok(()) => Poll::Ready(ended),
            Err(panic) => Poll::Ready(panicked(panic.as_ref())),
        }
    }
}

/// An error of the service itself, such as a layer's time-out, is a failed attempt.
fn failed(error: BoxError) -> Ended {
    Ended::Outcome(Outcome::Retry { after: None, error: Error::from_boxed(error) })
}

fn panicked(panic: &(dyn Any + Send)) -> Ended {
    Ended::Panicked(panic_error(panic))
}

fn panic_error(panic: &(dyn Any + Send)) -> Error {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let message = format!("the handler panicked: {}", text.unwrap_or("no message"));
    Error::new(ErrorKind::Handler, message).with_operation("handle")
}

/// Drops a run; a panic in a destructor of the handler's is logged.
pub(crate) fn drop_run(run: PendingRun) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(run))) {
        let error = panic_error(panic.as_ref());
        tracing::error!(%error, "a handler's future panicked while it was dropped");
    }
}
