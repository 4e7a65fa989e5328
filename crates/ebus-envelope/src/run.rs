//! The future of a handler made of a function: the function's own future, unboxed, or an outcome that is known already.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use ebus_core::Outcome;
use pin_project_lite::pin_project;

use crate::Handled;

pin_project! {
    /// Runs the function of a handler and says its [`Outcome`]. No box per message.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct HandleFuture<Fut> {
        #[pin]
        state: State<Fut>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = Project]
    enum State<Fut> {
        Running { #[pin] future: Fut },
        Known { outcome: Option<Outcome> },
    }
}

impl<Fut> HandleFuture<Fut> {
    pub(crate) fn running(future: Fut) -> Self {
        Self { state: State::Running { future } }
    }

    #[cfg(feature = "envelope")]
    pub(crate) fn known(outcome: Outcome) -> Self {
        Self { state: State::Known { outcome: Some(outcome) } }
    }
}

impl<Fut: Future<Output = Handled>> Future for HandleFuture<Fut> {
    type Output = Result<Outcome, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Project::Running { future } => future.poll(cx).map(|handled| {
                Ok(match handled {
                    Ok(()) => Outcome::Ack,
                    Err(failed) => failed.into(),
                })
            }),
            // Polled after its end, as no caller may: pending, because a panic here would be a second failure.
            Project::Known { outcome } => {
                outcome.take().map_or(Poll::Pending, |outcome| Poll::Ready(Ok(outcome)))
            }
        }
    }
}
