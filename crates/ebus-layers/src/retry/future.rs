//! What the caller holds.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ebus_core::{BoxError, Error, ErrorKind, Publish, Receipt, Retryability};
use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tower_service::Service;

use super::lanes::{Reply, Ticket};
use super::recover::recover;

pin_project! {
    /// Resolves with the broker's acknowledgement, after as many attempts as it takes.
    ///
    /// # Cancel safety
    /// Dropping it does not un-publish.
    #[must_use = "futures do nothing unless polled"]
    pub struct RetryFuture<S>
    where
        S: Service<Publish>,
    {
        #[pin]
        state: State<S>,
    }
}

pin_project! {
    #[project = Project]
    enum State<S>
    where
        S: Service<Publish>,
    {
        // The message is on its way. The ticket is there until it leaves this state.
        Sent { #[pin] future: S::Future, ticket: Option<Ticket<S>> },
        // It is held back, or being sent again by a task.
        Told { reply: oneshot::Receiver<Reply<S>> },
    }
}

impl<S: Service<Publish>> RetryFuture<S> {
    pub(super) fn sent(future: S::Future, ticket: Ticket<S>) -> Self {
        Self { state: State::Sent { future, ticket: Some(ticket) } }
    }

    pub(super) fn told(reply: oneshot::Receiver<Reply<S>>) -> Self {
        Self { state: State::Told { reply } }
    }
}

impl<S> Future for RetryFuture<S>
where
    S: Service<Publish, Response = Receipt, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
{
    type Output = Result<Receipt, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                Project::Sent { future, ticket } => {
                    let result = ready!(future.poll(cx)).map_err(|error| Error::from_boxed(error.into()));
                    let ticket = ticket.take();
                    let error = match result {
                        Err(error) if error.retryability() == Retryability::Safe => error,
                        end => return Poll::Ready(end),
                    };
                    let Some(ticket) = ticket else { return Poll::Ready(Err(error)) };
                    match begin(ticket, error) {
                        Ok(reply) => State::Told { reply },
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
                Project::Told { reply } => match ready!(Pin::new(reply).poll(cx)) {
                    Ok(Reply::Sent(future, ticket)) => State::Sent { future, ticket: Some(ticket) },
                    Ok(Reply::Done(result)) => return Poll::Ready(result),
                    Err(_) => return Poll::Ready(Err(cut_off())),
                },
            };
            state.set(next);
        }
    }
}

/// Hands the message to a task that sends it again, if that is still allowed.
fn begin<S>(ticket: Ticket<S>, error: Error) -> Result<oneshot::Receiver<Reply<S>>, Error>
where
    S: Service<Publish, Response = Receipt, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
{
    let Ok(runtime) = Handle::try_current() else {
        return Err(error.with_context("retry", "not tried again: there is no tokio runtime here"));
    };
    let recovering = ticket.recover().map_err(|_overtaken| {
        error
            .clone()
            .with_retryability(Retryability::Never)
            .with_context("retry", "not tried again: a later message of its key was sent")
    })?;
    let (reply, told) = oneshot::channel();
    runtime.spawn(recover(recovering, error, reply));
    Ok(told)
}

fn cut_off() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the task that was to send the message ended early, with its runtime or by a panic below; the message may have been \
         stored, look before you send it again",
    )
    .with_operation("publish")
}

impl<S: Service<Publish>> fmt::Debug for RetryFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture").finish_non_exhaustive()
    }
}
