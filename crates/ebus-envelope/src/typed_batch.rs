//! Handlers that take a batch of decoded events (c06).

use std::convert::Infallible;
use std::future::Future;
use std::task::{Context, Poll};

use ebus_core::{BatchOutcome, Delivery, Failures, Key, Outcome};
use serde::de::DeserializeOwned;
use tower_service::Service;

use crate::{BatchFuture, Event, HandlerError, Typed, With};

/// What of a batch can be handled, and where it stands there.
struct Decoded<T> {
    messages: usize,
    events: Vec<Event<T>>,
    places: Vec<usize>,
    rejected: Vec<(usize, Outcome)>,
}

impl<T: DeserializeOwned> Decoded<T> {
    fn of(batch: Vec<Delivery>) -> Self {
        let messages = batch.len();
        let mut decoded =
            Self { messages, events: Vec::with_capacity(messages), places: Vec::new(), rejected: Vec::new() };
        // The messages of a key stand together.
        let mut held_back: Option<Key> = None;
        for (place, delivery) in batch.into_iter().enumerate() {
            if held_back.is_some() && delivery.key() == held_back.as_ref() {
                continue;
            }
            let key = delivery.key().cloned();
            match Event::decode(delivery) {
                Ok(event) => {
                    decoded.events.push(event);
                    decoded.places.push(place);
                }
                Err(error) => {
                    held_back = key;
                    decoded.rejected.push((place, Outcome::Reject { error }));
                }
            }
        }
        decoded
    }

    fn run<Fut>(self, call: impl FnOnce(Vec<Event<T>>) -> Fut) -> BatchFuture<Fut> {
        let Self { messages, events, places, rejected } = self;
        if rejected.is_empty() {
            return BatchFuture::of_all(messages, call(events));
        }
        let future = (!events.is_empty()).then(|| call(events));
        BatchFuture::of_some(messages, places, rejected, future)
    }
}

impl<F, T, Fut, R> Service<Vec<Delivery>> for Typed<F, T>
where
    F: FnMut(Vec<Event<T>>) -> Fut,
    T: DeserializeOwned,
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
        Decoded::of(batch).run(&mut self.function)
    }
}

impl<F, T, S, Fut, R> Service<Vec<Delivery>> for Typed<F, T, With<S>>
where
    F: FnMut(S, Vec<Event<T>>) -> Fut,
    T: DeserializeOwned,
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
        let state = self.state.0.clone();
        Decoded::of(batch).run(|events| (self.function)(state, events))
    }
}
