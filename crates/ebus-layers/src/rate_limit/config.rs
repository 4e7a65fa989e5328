//! How much a rate limit lets through.

use std::num::NonZeroU32;
use std::time::Duration;

use ebus_core::{Error, ErrorKind};
use governor::Quota;

/// Below this much time per message, rounding to whole nanoseconds would change the rate by more than one percent.
const LEAST_INTERVAL: Duration = Duration::from_nanos(100);

/// How many messages in how much time, and how many at once after a pause.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateLimitConfig {
    /// So many messages, at least 1,
    pub messages: u32,
    /// in this much time.
    pub period: Duration,
    /// How many may go at once after a pause, at least 1; as many as `messages` if not set.
    pub burst: Option<u32>,
}

impl RateLimitConfig {
    /// So many messages a second.
    pub fn per_second(messages: u32) -> Self {
        Self::per(messages, Duration::from_secs(1))
    }

    /// So many messages in this much time.
    pub fn per(messages: u32, period: Duration) -> Self {
        Self { messages, period, burst: None }
    }

    /// How many may go at once after a pause.
    #[must_use]
    pub fn with_burst(mut self, burst: u32) -> Self {
        self.burst = Some(burst);
        self
    }

    pub(super) fn quota(&self) -> Result<Quota, Error> {
        let messages = positive("messages", self.messages)?;
        let burst = positive("burst", self.burst.unwrap_or(self.messages))?;
        let interval = self.period / messages.get();
        if interval < LEAST_INTERVAL {
            return Err(invalid(
                "period",
                format!(
                    "{} messages in {:?} is more than ten million a second; do without a rate limit",
                    self.messages, self.period
                ),
            ));
        }
        // governor counts time in 64 bits of nanoseconds.
        let full = interval.checked_mul(burst.get()).map(|full| full.as_nanos());
        if full.is_none_or(|nanos| nanos > u128::from(u64::MAX / 4)) {
            return Err(invalid(
                "burst",
                "it takes more than a hundred years to fill; give a shorter period or burst",
            ));
        }
        Quota::with_period(interval)
            .map(|quota| quota.allow_burst(burst))
            .ok_or_else(|| invalid("period", "it is zero; give a period"))
    }
}

pub(super) fn positive(setting: &'static str, value: u32) -> Result<NonZeroU32, Error> {
    NonZeroU32::new(value)
        .ok_or_else(|| invalid(setting, "it is 0, so nothing would ever pass; give at least 1"))
}

pub(super) fn invalid(setting: &'static str, rule: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::ConfigInvalid, format!("rate limit: illegal {setting}: {rule}"))
        .with_context("setting", setting)
}
