//! The layer: it has the state, so that all services that it makes share one limit.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use ebus_core::Error;
use governor::clock::Clock;
use tower_layer::Layer;

use super::config::{invalid, positive};
use super::shared::Shared;
use super::{RateLimit, RateLimitConfig, TokioClock};

/// Limits the rate of calls. All services made by it and by its clones share the limit.
///
/// Readiness waits for the limit, in the order in which it was asked for, and then for the inner service. A clone that is dropped
/// between readiness and call gives back what it took. Waiting needs a tokio runtime with time.
///
/// ```
/// use ebus_layers::{RateLimitConfig, RateLimitLayer};
///
/// let layer = RateLimitLayer::per_second(5_000)?;
/// let strict = RateLimitLayer::new(RateLimitConfig::per_second(5_000).with_burst(10))?;
/// let bulky = strict.clone().with_weight(4)?; // the same limit; each message counts as four
/// assert!(strict.with_weight(11).is_err()); // above the burst it would wait for ever
/// # Ok::<(), ebus_core::Error>(())
/// ```
pub struct RateLimitLayer<C: Clock = TokioClock> {
    shared: Arc<Shared<C>>,
    weight: NonZeroU32,
}

impl RateLimitLayer {
    /// So many messages a second, and as many at once after a pause.
    ///
    /// # Errors
    /// `ConfigInvalid` for 0, and above ten million.
    pub fn per_second(messages: u32) -> Result<Self, Error> {
        Self::new(RateLimitConfig::per_second(messages))
    }

    /// With this configuration, by the runtime's clock.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the setting.
    pub fn new(config: RateLimitConfig) -> Result<Self, Error> {
        Self::with_clock(config, TokioClock)
    }
}

impl<C: Clock + Clone> RateLimitLayer<C> {
    /// With this configuration, by another clock. Waiting sleeps by the runtime's timer and then looks at this clock again.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the setting.
    pub fn with_clock(config: RateLimitConfig, clock: C) -> Result<Self, Error> {
        Ok(Self { shared: Arc::new(Shared::new(config.quota()?, clock)), weight: NonZeroU32::MIN })
    }
}

impl<C: Clock> RateLimitLayer<C> {
    /// Each message counts as so many; the limit is still shared with the layer that this one was cloned from.
    ///
    /// # Errors
    /// `ConfigInvalid` for 0, and above the burst: such a message would wait for ever.
    pub fn with_weight(self, weight: u32) -> Result<Self, Error> {
        let weight = positive("weight", weight)?;
        let burst = self.shared.burst();
        if weight > burst {
            return Err(invalid(
                "weight",
                format_args!(
                    "{weight} is above the burst of {burst}, so nothing would ever pass; give a larger burst"
                ),
            ));
        }
        Ok(Self { shared: self.shared, weight })
    }
}

impl<S, C: Clock> Layer<S> for RateLimitLayer<C> {
    type Service = RateLimit<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit::new(inner, self.shared.clone(), self.weight)
    }
}

impl<C: Clock> Clone for RateLimitLayer<C> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), weight: self.weight }
    }
}

impl<C: Clock> fmt::Debug for RateLimitLayer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer")
            .field("burst", &self.shared.burst())
            .field("weight", &self.weight)
            .finish_non_exhaustive()
    }
}
