//! Handlers of batches made of functions: what the function says of its arguments, said of the batch (G1, G2).

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ebus_core::{BatchOutcome, Failures, Outcome};
use pin_project_lite::pin_project;

use crate::HandlerError;

/// What the function of a handler of batches returns: which messages failed, by their place in its argument. One that names none,
/// because a batch is done as a whole, returns [`Handled`](crate::Handled).
///
/// `Err` fails the batch as a whole and names nobody: each of its messages runs again by itself, a permanent failure too, so that
/// only those that fail alone are held responsible.
pub type BatchHandled = Result<Failures, HandlerError>;

pin_project! {
    /// Runs the function of a handler of batches and says its [`BatchOutcome`].
    #[must_use = "futures do nothing unless polled"]
    pub struct BatchFuture<Fut> {
        #[pin]
        future: Option<Fut>,
        messages: usize,
        left_out: Option<LeftOut>,
    }
}

/// What the function was not given.
#[derive(Debug, Default)]
struct LeftOut {
    /// Those that could not be decoded.
    rejected: Vec<(usize, Outcome)>,
    /// Where those that the function was given stand in the batch.
    places: Vec<usize>,
}

impl<Fut> BatchFuture<Fut> {
    /// The function was given all messages.
    pub(crate) fn of_all(messages: usize, future: Fut) -> Self {
        Self { future: Some(future), messages, left_out: None }
    }

    /// The function was given those at these places, if there were any.
    #[cfg(feature = "envelope")]
    pub(crate) fn of_some(
        messages: usize,
        places: Vec<usize>,
        rejected: Vec<(usize, Outcome)>,
        future: Option<Fut>,
    ) -> Self {
        Self { future, messages, left_out: Some(LeftOut { rejected, places }) }
    }
}

impl<Fut, R> Future for BatchFuture<Fut>
where
    Fut: Future<Output = Result<R, HandlerError>>,
    R: Into<Failures>,
{
    type Output = Result<BatchOutcome, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let handled = match this.future.as_pin_mut() {
            Some(future) => ready!(future.poll(cx)).map(Into::into),
            None => Ok(Failures::new()),
        };
        Poll::Ready(Ok(match (handled, this.left_out.take()) {
            (Ok(failures), None) => BatchOutcome::Each(failures),
            (Ok(failures), Some(left_out)) => BatchOutcome::Each(left_out.with(failures, *this.messages)),
            (Err(failed), _) => match Outcome::from(failed) {
                Outcome::Retry { after, error } => BatchOutcome::Retry { after, error },
                permanent if *this.messages == 1 => BatchOutcome::Each(Failures::new().with(0, permanent)),
                Outcome::Reject { error } => BatchOutcome::Retry { after: None, error },
                Outcome::Ack => BatchOutcome::Each(Failures::new()),
            },
        }))
    }
}

impl LeftOut {
    /// Says of the batch what the function said of its argument.
    fn with(self, failures: Failures, messages: usize) -> Failures {
        let mut all = Failures::new();
        for (place, outcome) in failures.into_vec() {
            // A place that is not there stays one.
            let missing = || messages.saturating_add(place - self.places.len());
            all.add(self.places.get(place).copied().unwrap_or_else(missing), outcome);
        }
        for (place, outcome) in self.rejected {
            all.add(place, outcome);
        }
        all
    }
}

impl<Fut> fmt::Debug for BatchFuture<Fut> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchFuture")
            .field("messages", &self.messages)
            .field("left_out", &self.left_out)
            .finish_non_exhaustive()
    }
}
