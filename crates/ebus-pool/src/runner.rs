//! A topic's handler in one shard, erased once, so that a run costs no box unless it waits (G9: panics end here).

use std::any::Any;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use ebus_core::{BatchOutcome, BoxError, Delivery, Error, ErrorKind, Outcome};
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::parked::ParkedKey;

/// How a run ended.
pub(crate) enum Ended<O = Outcome> {
    Outcome(O),
    Panicked(Error),
    /// Its dead letter has its receipt, and its key is kept as parked.
    Parked(Box<ParkedKey>),
}

impl<O> Ended<O> {
    fn log(&self, what: &'static str) {
        if let Self::Panicked(error) = self {
            tracing::error!(%error, "{what}");
        }
    }
}

/// What a handler says of a run, if the run failed before it could say anything.
pub(crate) trait Failed {
    fn by(error: Error) -> Self;
}

impl Failed for Outcome {
    fn by(error: Error) -> Self {
        Self::Retry { after: None, error }
    }
}

impl Failed for BatchOutcome {
    fn by(error: Error) -> Self {
        Self::Retry { after: None, error }
    }
}

/// A run that did not end at once.
pub(crate) type PendingRun<O = Outcome> = Pin<Box<dyn Future<Output = Ended<O>> + Send>>;

/// What [`Runner::start`] came to.
pub(crate) enum Started<O = Outcome> {
    Ended(Ended<O>),
    Pending(PendingRun<O>),
}

/// Runs what comes of one topic: deliveries, or batches of them.
pub(crate) trait Runner<I = Delivery, O = Outcome>: Send {
    /// Whether a run may start; pending wakes the shard. A handler that fails or panics here is replaced by a new clone.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended<O>>>;

    /// Starts a run and polls it once, after `poll_ready` said so.
    fn start(&mut self, input: I, cx: &mut Context<'_>) -> Started<O>;

    /// Nothing waits for readiness any more: a handler that stands in a queue for it, such as that of a concurrency limit,
    /// leaves it, so that whoever is behind it gets its turn.
    fn let_go(&mut self);
}

pub(crate) struct HandlerRunner<H: Service<I>, I> {
    /// Never made ready: new clones are taken from it. There until this is dropped.
    template: Option<H>,
    /// None when the last clone panicked: the next run tries again.
    handler: Option<H>,
    /// The box of the last run that ended at once, to be used again.
    spare: Option<Pin<Box<Run<H::Future>>>>,
    input: PhantomData<fn(I)>,
}

impl<H: Service<I> + Clone, I> HandlerRunner<H, I> {
    pub(crate) fn new(handler: H) -> Self {
        Self { template: Some(handler.clone()), handler: Some(handler), spare: None, input: PhantomData }
    }

    /// Drops the clone that is used, and takes a new one.
    fn renew(&mut self) {
        drop_guarded(self.handler.take());
        match guarded::<_, Outcome>(|| self.template.clone()) {
            Ok(handler) => self.handler = handler,
            Err(ended) => ended.log("the handler could not be cloned; the next run tries again"),
        }
    }
}

impl<H: Service<I>, I> Drop for HandlerRunner<H, I> {
    /// Each by itself: a handler that panics when it is dropped must not end the shard that replaces it.
    fn drop(&mut self) {
        drop_guarded(self.handler.take());
        drop_guarded(self.template.take());
    }
}

impl<H, I, O> Runner<I, O> for HandlerRunner<H, I>
where
    H: Service<I, Response = O, Error: Into<BoxError>, Future: Send + 'static> + Clone + Send,
    O: Failed,
{
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended<O>>> {
        if self.handler.is_none() {
            match guarded(|| self.template.clone()) {
                Ok(handler) => self.handler = handler,
                Err(ended) => return Poll::Ready(Err(ended)),
            }
        }
        let Some(handler) = &mut self.handler else { return Poll::Ready(Err(no_handler())) };
        let ended = match guarded(|| handler.poll_ready(cx)) {
            Ok(Poll::Ready(Ok(()))) => return Poll::Ready(Ok(())),
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(Err(error))) => failed(error),
            Err(ended) => ended,
        };
        self.renew();
        Poll::Ready(Err(ended))
    }

    fn start(&mut self, input: I, cx: &mut Context<'_>) -> Started<O> {
        let Some(handler) = &mut self.handler else { return Started::Ended(no_handler()) };
        let mut run = self.spare.take().unwrap_or_else(|| Box::pin(Run { future: None }));
        // One guard around all that a run is that ends at once.
        let mut called = false;
        let polled = guarded(|| {
            let future = handler.call(input);
            called = true;
            run.as_mut().project().future.set(Some(future));
            run.as_mut().poll_unguarded(cx)
        });
        match polled {
            Ok(Poll::Ready(result)) => {
                self.spare = Some(run);
                Started::Ended(ended(result))
            }
            Ok(Poll::Pending) => Started::Pending(run),
            Err(panicked) => {
                drop_guarded(run);
                if !called {
                    self.renew();
                }
                Started::Ended(panicked)
            }
        }
    }

    fn let_go(&mut self) {
        self.renew();
    }
}

pin_project! {
    /// A handler's future: dropped as soon as it ended; if it panicked, with the run.
    struct Run<F> {
        #[pin]
        future: Option<F>,
    }
}

impl<F: Future> Run<F> {
    /// Pending for ever once it has ended.
    fn poll_unguarded(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut slot = self.project().future;
        let Some(future) = slot.as_mut().as_pin_mut() else { return Poll::Pending };
        let polled = future.poll(cx);
        if polled.is_ready() {
            slot.set(None);
        }
        polled
    }
}

impl<F, O, E> Future for Run<F>
where
    F: Future<Output = Result<O, E>>,
    O: Failed,
    E: Into<BoxError>,
{
    type Output = Ended<O>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended<O>> {
        guarded(|| self.poll_unguarded(cx)).map_or_else(Poll::Ready, |polled| polled.map(ended))
    }
}

/// What a handler's run said.
fn ended<O: Failed, E: Into<BoxError>>(result: Result<O, E>) -> Ended<O> {
    result.map_or_else(failed, Ended::Outcome)
}

/// An error of the service itself, such as a layer's time-out, is a failed attempt.
fn failed<O: Failed, E: Into<BoxError>>(error: E) -> Ended<O> {
    guarded(|| Error::from_boxed(error.into()))
        .map_or_else(|ended| ended, |error| Ended::Outcome(O::by(error)))
}

/// `renew` did not succeed, and the run was not asked for by `poll_ready` since.
fn no_handler<O>() -> Ended<O> {
    let message = "the handler could not be cloned; its clone must not panic";
    Ended::Panicked(Error::new(ErrorKind::Handler, message).with_operation("handle"))
}

/// Calls the user's code: what panics in it is the failure of one message (G9). Every call of it from a shard goes through
/// here, what it returns and its drop included.
pub(crate) fn guarded<T, O>(call: impl FnOnce() -> T) -> Result<T, Ended<O>> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let error = panic_error(panic.as_ref());
        // The payload is the user's too.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(panic)));
        Ended::Panicked(error)
    })
}

/// Drops something of the user's; a panic in it is logged.
pub(crate) fn drop_guarded<T>(of_the_user: T) {
    if let Err(ended) = guarded::<_, Outcome>(|| drop(of_the_user)) {
        ended.log("a handler or its future panicked while it was dropped");
    }
}

fn panic_error(panic: &(dyn Any + Send)) -> Error {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let message = format!("the handler panicked: {}", text.unwrap_or("no message"));
    Error::new(ErrorKind::Handler, message).with_operation("handle")
}

/// Drops a run; a panic in a destructor of the handler's is logged.
pub(crate) fn drop_run<O>(run: PendingRun<O>) {
    drop_guarded(run);
}
