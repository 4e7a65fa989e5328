//! A handler of batches that records the runs of its messages.
//!
//! What a handler does within a batch is not seen from outside. What is recorded is what it has promised: the messages of a key
//! one after the other, and none behind the first that failed. So the first of each key starts with the batch, and the others
//! when the batch has ended, each behind the end of the one before.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ebus_core::{BatchOutcome, BoxError, Delivery, Outcome};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::RecordedHandler;
use crate::history::{Event, History, Kind, Outcome as Ended};

/// Where in a batch each key begins; a message without a key is one by itself.
pub(crate) fn firsts(batch: &[Delivery]) -> Vec<bool> {
    let same = |a: &Delivery, b: &Delivery| a.key().is_some() && a.key() == b.key();
    (0..batch.len()).map(|place| place == 0 || !same(&batch[place - 1], &batch[place])).collect()
}

/// What became of those that have begun, by what the handler says: in each key's part all up to the first that failed.
pub(crate) fn fates(firsts: &[bool], said: &BatchOutcome) -> Vec<(usize, Outcome)> {
    let mut fates = Vec::new();
    let mut failed = false;
    for (place, first) in firsts.iter().enumerate() {
        failed &= !first;
        if failed {
            continue;
        }
        let outcome = match said {
            BatchOutcome::Retry { after, error } => Outcome::Retry { after: *after, error: error.clone() },
            BatchOutcome::Each(failures) => {
                let named = failures.iter().find(|(at, _)| *at == place);
                named.map_or(Outcome::Ack, |(_, outcome)| outcome.clone())
            }
        };
        failed = !matches!(outcome, Outcome::Ack);
        fates.push((place, outcome));
    }
    fates
}

impl<H> Service<Vec<Delivery>> for RecordedHandler<H>
where
    H: Service<Vec<Delivery>, Response = BatchOutcome, Error: Into<BoxError>>,
{
    type Response = BatchOutcome;
    type Error = H::Error;
    type Future = RecordedBatch<H::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), H::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, batch: Vec<Delivery>) -> Self::Future {
        let firsts = firsts(&batch);
        let starts: Vec<Event> = batch.iter().map(|delivery| self.start(delivery)).collect();
        for (start, _) in starts.iter().zip(&firsts).filter(|(_, first)| **first) {
            self.history.record(start.clone());
        }
        let mut runs = Runs { history: self.history.clone(), starts, firsts, working: true };
        let future = self.inner.call(batch);
        runs.working = false;
        RecordedBatch { future, runs }
    }
}

/// The runs of a batch that is open. Dropped, they record that those that had begun have ended, unless that is said already.
struct Runs {
    history: History,
    /// Empty when the end is recorded.
    starts: Vec<Event>,
    firsts: Vec<bool>,
    /// The handler's own code runs now: dropped in that state, it panicked.
    working: bool,
}

impl Runs {
    fn ended(&mut self, said: &BatchOutcome) {
        let starts = std::mem::take(&mut self.starts);
        for (place, outcome) in fates(&self.firsts, said) {
            if !self.firsts[place] {
                self.history.record(starts[place].clone());
            }
            let (ended, error) = match outcome {
                Outcome::Ack => (Ended::Ack, None),
                Outcome::Retry { error, .. } => (Ended::Retry, Some(error.to_string())),
                Outcome::Reject { error } => (Ended::Reject, Some(error.to_string())),
            };
            self.end(&starts[place], ended, error);
        }
    }

    /// All that have begun have ended like this.
    fn all_ended(&mut self, ended: Ended) {
        let starts = std::mem::take(&mut self.starts);
        for (start, _) in starts.iter().zip(&self.firsts).filter(|(_, first)| **first) {
            self.end(start, ended, None);
        }
    }

    fn end(&self, start: &Event, ended: Ended, error: Option<String>) {
        let mut end = start.clone();
        (end.kind, end.outcome, end.error) = (Kind::End, Some(ended), error);
        self.history.record(end);
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        if !self.starts.is_empty() {
            let panicked = self.working || std::thread::panicking();
            self.all_ended(if panicked { Ended::Panic } else { Ended::Cancelled });
        }
    }
}

/// Says at once that a batch panicked, before the pool learns of it.
struct Working<'a>(&'a mut Runs);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.all_ended(Ended::Panic);
        }
        self.0.working = false;
    }
}

pin_project! {
    /// What [`RecordedHandler`] gives for a batch.
    ///
    /// # Cancel safety
    /// Dropped before it is done, it records `cancelled`.
    pub struct RecordedBatch<F> {
        // Declared, and so dropped, before the runs: they end when all of the future is gone.
        #[pin]
        future: F,
        runs: Runs,
    }
}

impl<F, E> Future for RecordedBatch<F>
where
    F: Future<Output = Result<BatchOutcome, E>>,
    E: Into<BoxError>,
{
    type Output = Result<BatchOutcome, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.runs.working = true;
        let working = Working(this.runs);
        let polled = this.future.poll(cx);
        drop(working);
        let result = ready!(polled);
        match &result {
            Ok(said) => this.runs.ended(said),
            // The pool takes it for a failure of the whole batch.
            Err(_) => this.runs.all_ended(Ended::Retry),
        }
        Poll::Ready(result)
    }
}

impl<F> fmt::Debug for RecordedBatch<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedBatch").field("messages", &self.runs.firsts.len()).finish_non_exhaustive()
    }
}
