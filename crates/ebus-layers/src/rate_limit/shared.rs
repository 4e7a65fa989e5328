//! The limit itself, who waits for it, and what was given back.
//!
//! The limiter of governor tells when a cell may be free, but all who wait would wake at that moment and all but one go to
//! sleep again, and who comes late could overtake them for ever. So the waiting take places in time, one interval
//! apart. A place is no lock: one whose owner is not polled any more only stays unused.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

pub(super) struct Shared<C: Clock> {
    limiter: RateLimiter<NotKeyed, InMemoryState, C, StateInformationMiddleware>,
    clock: C,
    start: C::Instant,
    quota: Quota,
    /// Nanoseconds from `start` to the first moment at which nobody waits to ask.
    waiting_until: AtomicU64,
    /// Cells that were taken but not used, since the last time that the limiter was full.
    returned: AtomicU32,
}

/// The answer to [`Shared::ask`].
pub(super) enum Answer {
    /// Taken.
    Taken,
    /// Ask again after this time; a place is kept until then.
    After(Duration),
}

impl<C: Clock + Clone> Shared<C> {
    pub(super) fn new(quota: Quota, clock: C) -> Self {
        let limiter = RateLimiter::new(quota, InMemoryState::default(), clock.clone());
        let start = clock.now();
        Self { limiter, clock, start, quota, waiting_until: AtomicU64::new(0), returned: AtomicU32::new(0) }
    }
}

impl<C: Clock> Shared<C> {
    pub(super) fn burst(&self) -> NonZeroU32 {
        self.quota.burst_size()
    }

    /// Asks for `weight` cells; `waited` when the place of an earlier answer has come.
    pub(super) fn ask(&self, weight: NonZeroU32, waited: bool) -> Answer {
        let now = self.clock.now();
        let since_start = now.duration_since(self.start).as_u64();
        if !waited && self.waiting_until.load(Ordering::Relaxed) > since_start {
            return self.wait(weight, since_start, since_start);
        }
        match self.limiter.check_n(weight) {
            Ok(Ok(left)) => {
                // It was full: what was given back before is in it, and not to be had twice.
                if left.remaining_burst_capacity() + weight.get() >= self.burst().get() {
                    self.returned.store(0, Ordering::Relaxed);
                }
                Answer::Taken
            }
            Ok(Err(_)) if self.take_returned(weight) => Answer::Taken,
            Ok(Err(not_until)) => {
                let wait = u64::try_from(not_until.wait_time_from(now).as_nanos()).unwrap_or(u64::MAX);
                self.wait(weight, since_start, since_start.saturating_add(wait))
            }
            // Refused when the layer was made; should it come all the same, waiting is right and passing is not.
            Err(_) => Answer::After(Duration::from_secs(1)),
        }
    }

    /// What [`ask`](Self::ask) took was not used.
    pub(super) fn give_back(&self, weight: NonZeroU32) {
        self.returned.fetch_add(weight.get(), Ordering::Relaxed);
    }

    fn take_returned(&self, weight: NonZeroU32) -> bool {
        self.returned
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |returned| returned.checked_sub(weight.get()))
            .is_ok()
    }

    /// Takes the next place in time that is not before `earliest`.
    fn wait(&self, weight: NonZeroU32, now: u64, earliest: u64) -> Answer {
        let cell = self.quota.replenish_interval().as_nanos() as u64;
        let interval = cell.saturating_mul(u64::from(weight.get()));
        let mut until = self.waiting_until.load(Ordering::Relaxed);
        loop {
            let place = until.max(earliest);
            match self.waiting_until.compare_exchange_weak(
                until,
                place.saturating_add(interval),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Answer::After(Duration::from_nanos(place - now)),
                Err(other) => until = other,
            }
        }
    }
}
