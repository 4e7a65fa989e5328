//! Handlers that take a decoded event. What cannot be decoded is rejected: a dead letter, never a loop (c06).

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::task::{Context, Poll};

use ebus_core::{Delivery, Outcome};
use serde::de::DeserializeOwned;
use tower_service::Service;

use crate::{Event, HandleFuture, Handled, NoState, With};

/// A handler of an `async fn(Event<T>) -> Handled`, or with a state an `async fn(S, Event<T>) -> Handled`.
///
/// The envelope's format is found out for each message. What is no envelope, or whose payload is no `T`, is
/// [`Outcome::Reject`] with an error of kind `Decode`: it goes to the dead letters without a second attempt. A topic
/// with several types of event needs a `T` that can be any of them, such as an untagged enum.
///
/// ```
/// # #[cfg(feature = "headers")] {
/// use ebus_envelope::{Event, Handled, HandlerError, typed};
///
/// #[derive(serde::Deserialize)]
/// struct Registered {
///     mail: String,
/// }
///
/// async fn welcome(event: Event<Registered>) -> Handled {
///     if !event.mail.contains('@') {
///         return Err(HandlerError::permanent(format!("user {} has no mail address", event.key())));
///     }
///     Ok(())
/// }
///
/// let handler = typed(welcome);
/// # fn is_handler(_: impl ebus_core::Handler) {}
/// # is_handler(handler);
/// # }
/// ```
///
/// # In batches
/// A function that takes `Vec<Event<T>>` makes a handler of batches. It returns [`BatchHandled`](crate::BatchHandled), or `Handled`
/// if it does a batch as a whole. What cannot be decoded is rejected and not in its argument, and neither is what follows of
/// that key: that runs again behind the dead letter. Places are those in the argument.
///
/// ```
/// # #[cfg(feature = "headers")] {
/// use ebus_envelope::{Event, Handled, typed};
///
/// # #[derive(serde::Deserialize)]
/// # struct Registered { mail: String }
/// # #[derive(Clone)]
/// # struct Db;
/// # impl Db {
/// #     async fn insert(&self, _: impl Iterator<Item = &str>) -> Result<(), std::io::Error> { Ok(()) }
/// # }
/// async fn store(db: Db, events: Vec<Event<Registered>>) -> Handled {
///     db.insert(events.iter().map(|event| event.mail.as_str())).await?; // in one transaction
///     Ok(())
/// }
///
/// let handler = typed(store).with(Db);
/// # fn is_handler(_: impl ebus_core::BatchHandler) {}
/// # is_handler(handler);
/// # }
/// ```
pub fn typed<F, T>(function: F) -> Typed<F, T> {
    Typed { function, state: NoState, event: PhantomData }
}

/// The handler that [`typed`] makes.
pub struct Typed<F, T, S = NoState> {
    pub(crate) function: F,
    pub(crate) state: S,
    event: PhantomData<fn(T)>,
}

impl<F, T> Typed<F, T> {
    /// With a state of which the function gets a clone for each run, as its first argument.
    pub fn with<S>(self, state: S) -> Typed<F, T, With<S>> {
        Typed { function: self.function, state: With(state), event: PhantomData }
    }
}

impl<F, T, Fut> Service<Delivery> for Typed<F, T>
where
    F: FnMut(Event<T>) -> Fut,
    T: DeserializeOwned,
    Fut: Future<Output = Handled>,
{
    type Response = Outcome;
    type Error = Infallible;
    type Future = HandleFuture<Fut>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, delivery: Delivery) -> Self::Future {
        match Event::decode(delivery) {
            Ok(event) => HandleFuture::running((self.function)(event)),
            Err(error) => HandleFuture::known(Outcome::Reject { error }),
        }
    }
}

impl<F, T, S, Fut> Service<Delivery> for Typed<F, T, With<S>>
where
    F: FnMut(S, Event<T>) -> Fut,
    T: DeserializeOwned,
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
        match Event::decode(delivery) {
            Ok(event) => HandleFuture::running((self.function)(self.state.0.clone(), event)),
            Err(error) => HandleFuture::known(Outcome::Reject { error }),
        }
    }
}

// By hand: `T` need not be `Clone`, no value of it is here.
impl<F: Clone, T, S: Clone> Clone for Typed<F, T, S> {
    fn clone(&self) -> Self {
        Self { function: self.function.clone(), state: self.state.clone(), event: PhantomData }
    }
}

// The state is not shown: it may hold a secret.
impl<F, T, S> fmt::Debug for Typed<F, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Typed")
            .field("function", &std::any::type_name::<F>())
            .field("event", &std::any::type_name::<T>())
            .finish_non_exhaustive()
    }
}
