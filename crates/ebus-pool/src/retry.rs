//! How long a failed message waits, and how often it is tried.

use std::time::Duration;

use backon::{BackoffBuilder, ConstantBuilder, ExponentialBuilder};

/// When a failed message runs again. It waits at the head of its key lane and holds no slot meanwhile (G4).
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    delays: Delays,
    max_attempts: Option<u32>,
}

#[derive(Debug, Clone)]
enum Delays {
    Exponential { first: Duration, cap: Duration },
    Fixed(Duration),
}

/// The delays of one message, one after the other; each is asked for once.
pub(crate) type Backoff = Box<dyn Iterator<Item = Duration> + Send>;

impl RetryPolicy {
    /// Doubles from 100 ms up to 30 s, with jitter; without a limit of attempts.
    pub fn exponential() -> Self {
        Self {
            delays: Delays::Exponential { first: Duration::from_millis(100), cap: Duration::from_secs(30) },
            max_attempts: None,
        }
    }

    /// The same delay each time; without a limit of attempts.
    pub fn fixed(delay: Duration) -> Self {
        Self { delays: Delays::Fixed(delay), max_attempts: None }
    }

    /// At most this many runs of a message, the first included; then it goes to the dead-letter topic.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// The first delay; of a fixed policy, each.
    #[must_use]
    pub fn first(mut self, delay: Duration) -> Self {
        match &mut self.delays {
            Delays::Exponential { first, cap } => {
                *first = delay;
                *cap = (*cap).max(delay);
            }
            Delays::Fixed(fixed) => *fixed = delay,
        }
        self
    }

    /// The longest delay; of a fixed policy, it cuts that one.
    #[must_use]
    pub fn cap(mut self, delay: Duration) -> Self {
        match &mut self.delays {
            Delays::Exponential { first, cap } => {
                *cap = delay;
                *first = (*first).min(delay);
            }
            Delays::Fixed(fixed) => *fixed = (*fixed).min(delay),
        }
        self
    }

    pub(crate) fn attempts(&self) -> Option<u32> {
        self.max_attempts
    }

    pub(crate) fn backoff(&self) -> Backoff {
        match self.delays {
            Delays::Exponential { first, cap } => Box::new(
                ExponentialBuilder::default()
                    .with_min_delay(first)
                    .with_max_delay(cap)
                    .with_jitter()
                    .without_max_times()
                    .build(),
            ),
            Delays::Fixed(delay) => {
                Box::new(ConstantBuilder::default().with_delay(delay).without_max_times().build())
            }
        }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::exponential()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_cap_and_never_ends() {
        let (first, cap) = (Duration::from_millis(10), Duration::from_millis(80));
        let delays: Vec<_> = RetryPolicy::exponential().first(first).cap(cap).backoff().take(100).collect();
        assert_eq!(delays.len(), 100);
        assert!(delays[0] >= first && delays[0] < first * 3, "{:?}", delays[0]);
        assert!(delays[99] >= cap && delays[99] <= cap + cap, "{:?}", delays[99]);
    }

    #[test]
    fn fixed_is_fixed() {
        let delay = Duration::from_millis(7);
        assert!(RetryPolicy::fixed(delay).backoff().take(50).all(|d| d == delay));
    }
}
