//! How long events took, from the call of publish to the end of the handler that succeeded; from the history alone.

use std::time::Duration;

use ebus_testkit::history::{Event, Kind, Outcome};
use hdrhistogram::Histogram;

use super::plan::Plan;

/// Times of a run. Publishing is not held back, so a latency contains what waits before it: the backlog.
#[derive(Debug)]
pub(crate) struct Latency {
    /// Of all events.
    pub(crate) all: Summary,
    /// Of those whose key is not slow.
    pub(crate) quick: Summary,
    /// From the first call to the last receipt.
    pub(crate) publishing: Duration,
    /// From the first start to the last end.
    pub(crate) handling: Duration,
}

/// In milliseconds; 0 when there is none.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Summary {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

impl Latency {
    pub(crate) fn of(events: &[Event], topic: &str, plan: &Plan) -> Self {
        let mut called = vec![None; plan.events() as usize];
        let (mut all, mut quick) = (histogram(), histogram());
        let (mut publishing, mut handling) = (Span::default(), Span::default());
        for event in events.iter().filter(|event| event.topic.as_deref() == Some(topic)) {
            match event.kind {
                Kind::Call | Kind::Stored => publishing.take(event.at_ns),
                Kind::Start | Kind::End => handling.take(event.at_ns),
                _ => {}
            }
            let place =
                event.key.as_deref().zip(event.version).and_then(|(key, version)| plan.place(key, version));
            let Some(place) = place else { continue };
            let called = &mut called[plan.index(place)];
            match event.kind {
                Kind::Call => *called = Some(event.at_ns),
                Kind::End if event.outcome == Some(Outcome::Ack) => {
                    // Taken: a repeat is a duplicate, not a latency.
                    let Some(called) = called.take() else { continue };
                    let micros = event.at_ns.saturating_sub(called) / 1_000;
                    all.saturating_record(micros);
                    if !plan.is_slow(place) {
                        quick.saturating_record(micros);
                    }
                }
                _ => {}
            }
        }
        Self {
            all: summary(&all),
            quick: summary(&quick),
            publishing: publishing.length(),
            handling: handling.length(),
        }
    }
}

/// Microseconds up to an hour, to three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(3_600_000_000, 3).expect("the bounds are legal")
}

fn summary(of: &Histogram<u64>) -> Summary {
    if of.is_empty() {
        return Summary::default();
    }
    let ms = |micros: u64| micros as f64 / 1_000.0;
    Summary {
        p50_ms: ms(of.value_at_quantile(0.5)),
        p99_ms: ms(of.value_at_quantile(0.99)),
        max_ms: ms(of.max()),
    }
}

#[derive(Debug, Default)]
struct Span(Option<(u64, u64)>);

impl Span {
    fn take(&mut self, at: u64) {
        let (first, last) = self.0.unwrap_or((at, at));
        self.0 = Some((first.min(at), last.max(at)));
    }

    fn length(&self) -> Duration {
        self.0.map_or(Duration::ZERO, |(first, last)| Duration::from_nanos(last - first))
    }
}
