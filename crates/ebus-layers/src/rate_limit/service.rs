//! The service around the inner one.

use std::fmt;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use governor::clock::Clock;
use tokio::time::{Instant, Sleep};
use tower_service::Service;

use super::TokioClock;
use super::shared::{Answer, Shared};

/// Limits the rate of calls to `S`; made by [`RateLimitLayer`](super::RateLimitLayer).
///
/// # Cancel safety
/// What one `poll_ready` took stays taken for the next one: a wait that is dropped and begun again loses nothing.
///
/// # Panics
/// `call` without readiness, as the contract of `Service` allows: passing would break the limit.
pub struct RateLimit<S, C: Clock = TokioClock> {
    inner: S,
    shared: Arc<Shared<C>>,
    weight: NonZeroU32,
    state: State,
    /// Made at the first wait, and used again.
    sleep: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Waiting,
    /// Taken and not used yet: not taken a second time, given back on drop.
    Taken,
}

impl<S, C: Clock> RateLimit<S, C> {
    pub(super) fn new(inner: S, shared: Arc<Shared<C>>, weight: NonZeroU32) -> Self {
        Self { inner, shared, weight, state: State::Idle, sleep: None }
    }

    fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.state != State::Taken {
            let waited = self.state == State::Waiting;
            if let (true, Some(sleep)) = (waited, &mut self.sleep) {
                ready!(sleep.as_mut().poll(cx));
            }
            match self.shared.ask(self.weight, waited) {
                Answer::Taken => self.state = State::Taken,
                Answer::After(wait) => {
                    let until = Instant::now() + wait;
                    match &mut self.sleep {
                        Some(sleep) => sleep.as_mut().reset(until),
                        None => self.sleep = Some(Box::pin(tokio::time::sleep_until(until))),
                    }
                    self.state = State::Waiting;
                }
            }
        }
        Poll::Ready(())
    }
}

impl<S, C, R> Service<R> for RateLimit<S, C>
where
    S: Service<R>,
    C: Clock,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // The limit first: a place of the inner service is not held while others could use it.
        ready!(self.poll_taken(cx));
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        assert!(self.state == State::Taken, "call before poll_ready of RateLimit was ready");
        self.state = State::Idle;
        self.inner.call(request)
    }
}

// By hand: a clone has taken nothing, and its inner clone is not ready either.
impl<S: Clone, C: Clock> Clone for RateLimit<S, C> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.shared.clone(), self.weight)
    }
}

impl<S, C: Clock> Drop for RateLimit<S, C> {
    fn drop(&mut self) {
        if self.state == State::Taken {
            self.shared.give_back(self.weight);
        }
    }
}

impl<S: fmt::Debug, C: Clock> fmt::Debug for RateLimit<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("inner", &self.inner)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
