//! Handlers that take the delivery as it came.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::task::{Context, Poll};

use ebus_core::{BatchOutcome, Delivery, Failures, Outcome};
use tower_service::Service;

use crate::{BatchFuture, HandleFuture, Handled, HandlerError, NoState, With};

/// A handler of an `async fn(Delivery) -> Handled`, or with a state an `async fn(S, Delivery) -> Handled`.
///
/// ```
/// use ebus_core::Delivery;
/// use ebus_envelope::{Handled, raw};
///
/// async fn show(prefix: &'static str, delivery: Delivery) -> Handled {
///     println!("{prefix} {}", std::str::from_utf8(delivery.payload())?);
///     Ok(())
/// }
///
/// let handler = raw(show).with("got");
/// # fn is_handler(_: impl ebus_core::Handler) {}
/// # is_handler(handler);
/// ```
///
/// # In batches
/// A function that takes `Vec<Delivery>` makes a handler of batches. It returns [`BatchHandled`](crate::BatchHandled), or
/// `Handled` if it does a batch as a whole.
///
/// ```
/// use ebus_core::{Delivery, Failures};
/// use ebus_envelope::{BatchHandled, HandlerError, raw};
///
/// # #[derive(Clone)]
/// # struct Search;
/// # impl Search {
/// #     async fn index(&self, _: &[Delivery]) -> Result<Vec<Result<(), String>>, std::io::Error> { Ok(Vec::new()) }
/// # }
/// async fn index(search: Search, documents: Vec<Delivery>) -> BatchHandled {
///     let answers = search.index(&documents).await?; // an error here: each again, by itself
///     let mut failures = Failures::new();
///     for (place, answer) in answers.into_iter().enumerate() {
///         if let Err(why) = answer {
///             failures.add(place, HandlerError::retry(why)); // this one again, and what follows of its key
///         }
///     }
///     Ok(failures)
/// }
///
/// let handler = raw(index).with(Search);
/// # fn is_handler(_: impl ebus_core::BatchHandler) {}
/// # is_handler(handler);
/// ```
pub fn raw<F>(function: F) -> Raw<F> {
    Raw { function, state: NoState }
}

/// The handler that [`raw`] makes.
#[derive(Clone)]
pub struct Raw<F, S = NoState> {
    function: F,
    state: S,
}

impl<F> Raw<F> {
    /// With a state of which the function gets a clone for each run, as its first argument.
    pub fn with<S>(self, state: S) -> Raw<F, With<S>> {
        Raw { function: self.function, state: With(state) }
    }
}

impl<F, Fut> Service<Delivery> for Raw<F>
where
    F: FnMut(Delivery) -> Fut,
    Fut: Future<Output = Handled>,
{
    type Response = Outcome;
    type Error = Infallible;
    type Future = HandleFuture<Fut>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, delivery: Delivery) -> Self::Future {
        HandleFuture::running((self.function)(delivery))
    }
}

impl<F, S, Fut> Service<Delivery> for Raw<F, With<S>>
where
    F: FnMut(S, Delivery) -> Fut,
    S: Clone,
    Fut: Future<Output = Handled>,
{
    type Response = Outcome;
    type Error = Infallible;
    type Future = HandleFuture<Fut>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, delivery: Delivery) -> Self::Future {
        HandleFuture::running((self.function)(self.state.0.clone(), delivery))
    }
}

impl<F, Fut, R> Service<Vec<Delivery>> for Raw<F>
where
    F: FnMut(Vec<Delivery>) -> Fut,
    Fut: Future<Output = Result<R, HandlerError>>,
    R: Into<Failures>,
{
    type Response = BatchOutcome;
    type Error = Infallible;
    type Future = BatchFuture<Fut>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, batch: Vec<Delivery>) -> Self::Future {
        BatchFuture::of_all(batch.len(), (self.function)(batch))
    }
}

impl<F, S, Fut, R> Service<Vec<Delivery>> for Raw<F, With<S>>
where
    F: FnMut(S, Vec<Delivery>) -> Fut,
    S: Clone,
    Fut: Future<Output = Result<R, HandlerError>>,
    R: Into<Failures>,
{
    type Response = BatchOutcome;
    type Error = Infallible;
    type Future = BatchFuture<Fut>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, batch: Vec<Delivery>) -> Self::Future {
        BatchFuture::of_all(batch.len(), (self.function)(self.state.0.clone(), batch))
    }
}

// The state is not shown: it may hold a secret.
impl<F, S> fmt::Debug for Raw<F, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw").field("function", &std::any::type_name::<F>()).finish_non_exhaustive()
    }
}
