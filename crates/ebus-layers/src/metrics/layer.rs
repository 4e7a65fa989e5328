//! The layer.

use std::fmt;
use std::sync::Arc;

use metrics::{Unit, describe_counter, describe_histogram};
use tower_layer::Layer;

use super::Metrics;
use super::side::{HANDLE, PUBLISH, Side};

/// Counts and times publishes and runs of handlers.
///
/// | Metric | Labels | |
/// |---|---|---|
/// | `ebus_published_total` | `topic`, `outcome`: `stored`, the kind of the error, `dropped`, `panic` | publishes that ended |
/// | `ebus_publish_seconds` | `topic` | from `call` to its end |
/// | `ebus_handled_total` | `topic`, `outcome`: `ack`, `retry`, `reject`, `error`, `cancelled`, `panic` | runs that ended |
/// | `ebus_handle_seconds` | `topic` | from `call` to its end |
///
/// `dropped` is a publish whose future was dropped (it may have been stored), `cancelled` a run that was. Topics above the first
/// 256 (or [`with_max_topics`](Self::with_max_topics)) share the label `other`.
///
/// Install the recorder before the first message: the metrics of a topic are looked up once. Errors become
/// [`Error`](ebus_core::Error); put `from_tower` between this and layers of tower, so that their
/// errors have a kind.
#[derive(Clone)]
pub struct MetricsLayer {
    publish: Arc<Side>,
    handle: Arc<Side>,
}

impl MetricsLayer {
    /// With labels for 256 topics.
    pub fn new() -> Self {
        Self::with_max_topics(256)
    }

    /// With labels for so many topics, publishing and handling each; the others share the label `other`.
    pub fn with_max_topics(max: usize) -> Self {
        describe_counter!(PUBLISH.total, Unit::Count, "publishes that ended, by topic and outcome");
        describe_histogram!(PUBLISH.seconds, Unit::Seconds, "time from call to the end of a publish");
        describe_counter!(HANDLE.total, Unit::Count, "runs of handlers that ended, by topic and outcome");
        describe_histogram!(HANDLE.seconds, Unit::Seconds, "time from call to the end of a handler's run");
        Self { publish: Arc::new(Side::new(PUBLISH, max)), handle: Arc::new(Side::new(HANDLE, max)) }
    }
}

impl Default for MetricsLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = Metrics<S>;

    fn layer(&self, inner: S) -> Metrics<S> {
        Metrics::new(inner, self.publish.clone(), self.handle.clone())
    }
}

impl fmt::Debug for MetricsLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsLayer").finish_non_exhaustive()
    }
}
