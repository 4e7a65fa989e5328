//! One call, timed from `call` to its end, whatever the end is.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ebus_core::{BoxError, Error, Outcome, Receipt, Topic};
use pin_project_lite::pin_project;
use tokio::time::Instant;

use super::side::{OfTopic, Side};

pin_project! {
    /// The inner future; its end is counted, and also that it was dropped.
    #[must_use = "futures do nothing unless polled"]
    pub struct MetricsFuture<F> {
        #[pin]
        inner: F,
        run: Run,
    }
}

impl<F> MetricsFuture<F> {
    pub(super) fn new(inner: F, run: Run) -> Self {
        Self { inner, run }
    }
}

impl<F, T, E> Future for MetricsFuture<F>
where
    F: Future<Output = Result<T, E>>,
    T: label::Labelled,
    E: Into<BoxError>,
{
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx)).map_err(|error| Error::from_boxed(error.into()));
        this.run.end(match &result {
            Ok(good) => good.label(),
            Err(error) => T::of_error(error),
        });
        Poll::Ready(result)
    }
}

impl<F> fmt::Debug for MetricsFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsFuture").finish_non_exhaustive()
    }
}

/// A call that has begun. Ends once; at the latest when it is dropped.
pub(super) struct Run {
    side: Arc<Side>,
    metrics: Option<Arc<OfTopic>>,
    begun: Instant,
}

impl Run {
    pub(super) fn begin(side: &Arc<Side>, topic: &Topic) -> Self {
        Self { side: side.clone(), metrics: Some(side.of(topic)), begun: Instant::now() }
    }

    fn end(&mut self, outcome: &'static str) {
        if let Some(metrics) = self.metrics.take() {
            metrics.record(&self.side.names, outcome, self.begun.elapsed());
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let outcome = if std::thread::panicking() { "panic" } else { self.side.names.dropped };
        self.end(outcome);
    }
}

mod label {
    use super::{Error, Outcome, Receipt};

    /// What a call gives, as the label `outcome`.
    pub trait Labelled {
        fn label(&self) -> &'static str;
        fn of_error(error: &Error) -> &'static str;
    }

    impl Labelled for Receipt {
        fn label(&self) -> &'static str {
            super::super::side::PUBLISH.good
        }

        fn of_error(error: &Error) -> &'static str {
            error.kind().as_str()
        }
    }

    impl Labelled for Outcome {
        fn label(&self) -> &'static str {
            match self {
                Self::Ack => super::super::side::HANDLE.good,
                Self::Retry { .. } => "retry",
                Self::Reject { .. } => "reject",
            }
        }

        fn of_error(_: &Error) -> &'static str {
            "error"
        }
    }
}
