//! How often and how long.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use ebus_core::{Error, ErrorKind};

/// How often, how long, and with which pauses a publish is tried. The pauses grow exponentially, and each is lengthened by up to
/// itself at random, so that what failed together does not come back together.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RetryConfig {
    /// How often in all, the first attempt included; at least 2. Default 5.
    pub max_attempts: u32,
    /// Until how long after its first failure a new attempt may begin. Default 30 s. An attempt in progress is not cut short.
    pub max_elapsed: Duration,
    /// The first pause. Default 50 ms.
    pub min_delay: Duration,
    /// The longest pause, before it is lengthened at random. Default 5 s.
    pub max_delay: Duration,
    /// By how much each pause is longer than the one before, at least 1. Default 2.
    pub factor: f32,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            max_elapsed: Duration::from_secs(30),
            min_delay: Duration::from_millis(50),
            max_delay: Duration::from_secs(5),
            factor: 2.0,
        }
    }
}

impl RetryConfig {
    /// How often in all, the first attempt included.
    #[must_use]
    pub fn with_max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Until how long after the first failure a new attempt may begin.
    #[must_use]
    pub fn with_max_elapsed(mut self, elapsed: Duration) -> Self {
        self.max_elapsed = elapsed;
        self
    }

    /// The first pause.
    #[must_use]
    pub fn with_min_delay(mut self, delay: Duration) -> Self {
        self.min_delay = delay;
        self
    }

    /// The longest pause.
    #[must_use]
    pub fn with_max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = delay;
        self
    }

    /// By how much each pause is longer than the one before.
    #[must_use]
    pub fn with_factor(mut self, factor: f32) -> Self {
        self.factor = factor;
        self
    }

    pub(super) fn validate(&self) -> Result<(), Error> {
        let mut wrong = Vec::new();
        if self.max_attempts < 2 {
            wrong.push(format!(
                "max_attempts is {}; give at least 2, or leave the layer out",
                self.max_attempts
            ));
        }
        if self.min_delay.is_zero() {
            wrong.push("min_delay is 0; give a pause".into());
        }
        if self.max_delay < self.min_delay {
            wrong.push(format!("max_delay {:?} is below min_delay {:?}", self.max_delay, self.min_delay));
        }
        if self.max_elapsed < self.min_delay {
            wrong.push(format!(
                "max_elapsed {:?} is below min_delay {:?}, so there would be no second attempt",
                self.max_elapsed, self.min_delay
            ));
        }
        if !(self.factor.is_finite() && self.factor >= 1.0) {
            wrong.push(format!("factor is {}; give at least 1", self.factor));
        }
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::ConfigInvalid, format!("retry: {}", wrong.join("; "))))
    }

    /// The pauses, one per further attempt.
    pub(super) fn delays(&self) -> ExponentialBackoff {
        ExponentialBuilder::new()
            .with_min_delay(self.min_delay)
            .with_max_delay(self.max_delay)
            .with_factor(self.factor)
            .with_max_times(self.max_attempts as usize - 1)
            .with_jitter()
            .build()
    }
}
