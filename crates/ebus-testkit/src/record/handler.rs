//! A handler that records its runs.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ebus_core::{BoxError, Delivery, Group, Outcome};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{Origin, VersionOf, version_from_header};
use crate::history::{Event, History, Kind, Name, Outcome as Ended, key_text, name};

/// A handler that records `start` before anything of a run is done, and `end` after all of it: its future is done, or has
/// been dropped.
#[derive(Clone)]
pub struct RecordedHandler<H> {
    pub(super) inner: H,
    pub(super) history: History,
    group: Name,
    member: Name,
    version: VersionOf,
}

impl<H> RecordedHandler<H> {
    /// Records into `history` the runs of `inner` in this member of the group.
    pub fn new(inner: H, history: History, group: &Group, member: impl AsRef<str>) -> Self {
        Self {
            inner,
            history,
            group: name(group.as_str()),
            member: name(member.as_ref()),
            version: version_from_header,
        }
    }

    /// Takes versions from messages by this function instead of from the header.
    #[must_use]
    pub fn with_version(mut self, version: VersionOf) -> Self {
        self.version = version;
        self
    }

    /// The start of a run.
    pub(super) fn start(&self, delivery: &Delivery) -> Event {
        let mut event = Event::new(Kind::Start);
        event.group = Some(self.group.clone());
        event.topic = Some(name(delivery.topic().as_str()));
        event.partition = Some(delivery.partition().partition);
        event.offset = Some(delivery.offset());
        event.key = delivery.key().map(key_text);
        event.version = (self.version)(delivery.message());
        event.attempt = Some(delivery.attempt());
        event.member = Some(self.member.clone());
        event.epoch = Some(delivery.epoch().0);
        event.redriven = Origin::of(delivery.message()).is_some_and(|dead| {
            *dead.group == *self.group
                && *dead.topic == *delivery.topic().as_str()
                && (dead.partition, dead.offset) == (delivery.partition().partition, delivery.offset())
        });
        event
    }
}

impl<H> Service<Delivery> for RecordedHandler<H>
where
    H: Service<Delivery, Response = Outcome, Error: Into<BoxError>>,
{
    type Response = Outcome;
    type Error = H::Error;
    type Future = RecordedRun<H::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), H::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, delivery: Delivery) -> Self::Future {
        let mut event = self.start(&delivery);
        self.history.record(event.clone());
        event.kind = Kind::End;
        let mut run = Run { history: self.history.clone(), end: Some(event), working: true };
        let future = self.inner.call(delivery);
        run.working = false;
        RecordedRun { future, run }
    }
}

/// A run that is open. Dropped, it records that the run has ended, unless that is said already.
struct Run {
    history: History,
    end: Option<Event>,
    /// The handler's own code runs now: dropped in that state, it panicked.
    working: bool,
}

impl Run {
    fn ended(&mut self, outcome: Ended, error: Option<String>) {
        if let Some(mut event) = self.end.take() {
            event.outcome = Some(outcome);
            event.error = error;
            self.history.record(event);
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.ended(if self.working { Ended::Panic } else { Ended::Cancelled }, None);
    }
}

/// Says at once that a run panicked, before the pool learns of it.
struct Working<'a>(&'a mut Run);

impl<'a> Working<'a> {
    fn new(run: &'a mut Run) -> Self {
        run.working = true;
        Self(run)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.ended(Ended::Panic, None);
        }
        self.0.working = false;
    }
}

pin_project! {
    /// What [`RecordedHandler`] gives.
    ///
    /// # Cancel safety
    /// Dropped before it is done, it records `cancelled`.
    pub struct RecordedRun<F> {
        // Declared, and so dropped, before the run: the run ends when all of the future is gone.
        #[pin]
        future: F,
        run: Run,
    }
}

impl<F, E> Future for RecordedRun<F>
where
    F: Future<Output = Result<Outcome, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Outcome, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let working = Working::new(this.run);
        let polled = this.future.poll(cx);
        drop(working);
        let result = ready!(polled);
        match &result {
            Ok(Outcome::Ack) => this.run.ended(Ended::Ack, None),
            Ok(Outcome::Retry { error, .. }) => this.run.ended(Ended::Retry, Some(error.to_string())),
            Ok(Outcome::Reject { error }) => this.run.ended(Ended::Reject, Some(error.to_string())),
            // The pool takes it for a failed attempt, as `Retry` is.
            Err(_) => this.run.ended(Ended::Retry, None),
        }
        Poll::Ready(result)
    }
}

impl<H> fmt::Debug for RecordedHandler<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedHandler")
            .field("group", &self.group)
            .field("member", &self.member)
            .finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for RecordedRun<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedRun").field("end", &self.run.end).finish_non_exhaustive()
    }
}
