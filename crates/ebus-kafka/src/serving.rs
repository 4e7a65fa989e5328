//! The thread that serves a producer (G7, G9): reports and logs of librdkafka, and the deadlines of what is not answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, Producer, PurgeConfig};

use crate::deadlines::Deadlines;
use crate::elsewhere::Elsewhere;
use crate::producer::Reports;
use crate::topics::Control;

/// How long one turn waits for reports.
pub(crate) const POLL: Duration = Duration::from_millis(100);

/// The thread that serves reports, logs, errors and deadlines.
pub(crate) struct Serving {
    pub(crate) client: Arc<Elsewhere<BaseProducer<Reports>>>,
    pub(crate) control: Control,
    pub(crate) deadlines: Arc<Deadlines>,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) closed: Arc<AtomicBool>,
    pub(crate) grace: Duration,
    /// librdkafka has said that nothing is sent any more.
    pub(crate) has_failed: bool,
}

impl Serving {
    pub(crate) fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            self.client.poll(POLL);
            self.turn();
        }
        if !self.closed.load(Ordering::Acquire) {
            self.send_the_rest();
        }
        self.deadlines.end();
    }

    fn turn(&mut self) {
        self.control.serve();
        self.deadlines.sweep(Instant::now());
        if let Some((code, reason)) = self.client.client().fatal_error() {
            if !std::mem::replace(&mut self.has_failed, true) {
                tracing::error!(%code, reason, "publishing to Kafka has failed for good; open a new connection");
            }
            // It keeps what is not sent for ever. What was sent is answered by the broker, or by its deadline.
            self.client.purge(PurgeConfig::default().queue());
        }
    }

    /// Without `close`.
    fn send_the_rest(&mut self) {
        let end = Instant::now() + self.grace;
        while self.client.in_flight_count() > 0 && self.client.flush(POLL).is_err() {
            self.turn();
            if Instant::now() < end {
                continue;
            }
            tracing::warn!(
                unacknowledged = self.client.in_flight_count(),
                "a Kafka connection was dropped without close, and not everything was acknowledged in time"
            );
            self.client.purge(PurgeConfig::default().queue().inflight());
            // The reports of what was purged.
            let _ = self.client.flush(Duration::from_millis(500));
            break;
        }
    }
}
