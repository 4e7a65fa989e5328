//! One message on its way: what its future waits for and its delivery report fills.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use ebus_core::{Error, Receipt, Topic};
use parking_lot::Mutex;

/// Shared by a future and librdkafka: the one allocation of ours per message.
#[derive(Debug)]
pub(crate) struct Flight {
    /// Bytes to give back when it lands.
    pub(crate) bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Flying(Option<Waker>),
    /// It has its answer, and whether that was given before its report came.
    Landed(Result<(u32, u64), Error>, Early),
    Taken(Early),
}

/// The answer came by the deadline; the message is still librdkafka's.
type Early = bool;

impl Flight {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes, state: Mutex::new(State::Flying(None)) }
    }

    /// What became of it: partition and offset, or why not. Once. True if it was [answered](Self::answer) before, which stands.
    pub(crate) fn land(&self, result: Result<(u32, u64), Error>) -> bool {
        let before = {
            let mut state = self.state.lock();
            match *state {
                State::Flying(_) => std::mem::replace(&mut *state, State::Landed(result, false)),
                State::Landed(_, early) | State::Taken(early) => return early,
            }
        };
        if let State::Flying(Some(waker)) = before {
            waker.wake();
        }
        false
    }

    /// Fails it for its future, while the message stays on its way. False when it has its answer.
    pub(crate) fn answer(&self, error: impl FnOnce() -> Error) -> bool {
        let before = {
            let mut state = self.state.lock();
            if !matches!(*state, State::Flying(_)) {
                return false;
            }
            std::mem::replace(&mut *state, State::Landed(Err(error()), true))
        };
        if let State::Flying(Some(waker)) = before {
            waker.wake();
        }
        true
    }

    /// Whether it has its answer.
    pub(crate) fn has_landed(&self) -> bool {
        !matches!(*self.state.lock(), State::Flying(_))
    }
}

/// Resolves with the broker's acknowledgement of one message.
///
/// # Cancel safety
/// Dropping it does not un-publish: the message is on its way since `call`.
///
/// # Errors
/// `Timeout`: it may have been stored, or be stored later, in its order; it is never sent twice. Also where it is stored, and no
/// broker said at which offset: the text says so. `Unavailable`: it is not stored. `NotFound`: there is no such topic. `TooLarge`, `Denied`,
/// `Closed`, `Overloaded`: it is not stored.
#[derive(Debug)]
#[must_use = "the broker's answer is in it"]
pub struct KafkaPublishFuture {
    topic: Topic,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Flight(Arc<Flight>),
    Refused(Option<Error>),
}

impl KafkaPublishFuture {
    pub(crate) fn of(topic: Topic, flight: Arc<Flight>) -> Self {
        Self { topic, inner: Inner::Flight(flight) }
    }

    pub(crate) fn refused(topic: Topic, error: Error) -> Self {
        let error = error.with_context("topic", &topic);
        Self { topic, inner: Inner::Refused(Some(error)) }
    }
}

fn polled_again() -> Error {
    Error::new(ebus_core::ErrorKind::Unexpected, "the publish was polled after it had resolved")
        .with_operation("publish")
}

impl Future for KafkaPublishFuture {
    type Output = Result<Receipt, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let flight = match &mut self.inner {
            Inner::Refused(error) => return Poll::Ready(Err(error.take().unwrap_or_else(polled_again))),
            Inner::Flight(flight) => flight,
        };
        let mut state = flight.state.lock();
        let result = match &mut *state {
            State::Flying(Some(waker)) => {
                waker.clone_from(cx.waker());
                return Poll::Pending;
            }
            State::Flying(none) => {
                *none = Some(cx.waker().clone());
                return Poll::Pending;
            }
            State::Landed(_, early) | State::Taken(early) => {
                let taken = State::Taken(*early);
                std::mem::replace(&mut *state, taken)
            }
        };
        drop(state);
        Poll::Ready(match result {
            State::Landed(Ok((partition, offset)), _) => {
                Ok(Receipt::new(self.topic.clone(), partition, offset))
            }
            State::Landed(Err(error), _) => Err(error.with_context("topic", &self.topic)),
            _ => Err(polled_again()),
        })
    }
}
