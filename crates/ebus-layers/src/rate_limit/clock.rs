//! The clock that the waiting sleeps by, so that a test that pauses time moves both.

use std::time::Instant;

use governor::clock::Clock;

/// The runtime's clock; with tokio's time paused, the paused one. The system's monotonic clock outside of a runtime.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokioClock;

impl Clock for TokioClock {
    type Instant = Instant;

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}
