//! How long an ownership lasts without a word from the broker (G3).

use std::sync::Arc;
#[cfg(not(ebus_loom))]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[cfg(ebus_loom)]
use loom::sync::atomic::{AtomicU64, Ordering};

/// A deadline that the source moves on and the pool looks at before each run. Clones share it.
///
/// Past it nothing starts, and the partition is as good as lost.
#[derive(Debug, Clone)]
pub struct Lease(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    origin: Instant,
    nanos: AtomicU64,
}

impl Lease {
    /// Lasts until the source says otherwise: for backends whose broker tells every loss.
    pub const fn unlimited() -> Self {
        Self(None)
    }

    /// Lasts until `deadline`, unless it is moved on.
    pub fn until(deadline: Instant) -> Self {
        let origin = Instant::now().min(deadline);
        let lease = Self(Some(Arc::new(Shared { origin, nanos: AtomicU64::new(0) })));
        lease.extend(deadline);
        lease
    }

    /// Whether it can end at all. If not, nobody needs to read a clock.
    pub fn is_limited(&self) -> bool {
        self.0.is_some()
    }

    /// Moves the deadline; never back.
    pub fn extend(&self, deadline: Instant) {
        if let Some(shared) = &self.0 {
            let nanos = deadline.saturating_duration_since(shared.origin).as_nanos();
            shared.nanos.fetch_max(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::AcqRel);
        }
    }

    /// Whether a run may start at `now`.
    pub fn is_current(&self, now: Instant) -> bool {
        self.deadline().is_none_or(|deadline| now < deadline)
    }

    /// The deadline as it stands; `None` if there is none.
    pub fn deadline(&self) -> Option<Instant> {
        let shared = self.0.as_ref()?;
        Some(shared.origin + Duration::from_nanos(shared.nanos.load(Ordering::Acquire)))
    }
}

#[cfg(all(test, not(ebus_loom)))]
mod tests {
    use super::*;

    #[test]
    fn ends_and_is_moved_on_but_never_back() {
        let now = Instant::now();
        let lease = Lease::until(now + Duration::from_secs(1));
        let other = lease.clone();
        assert!(other.is_current(now));
        assert!(!other.is_current(now + Duration::from_secs(1)));
        lease.extend(now + Duration::from_secs(3));
        assert!(other.is_current(now + Duration::from_secs(2)));
        lease.extend(now);
        assert!(other.is_current(now + Duration::from_secs(2)));
    }

    #[test]
    fn without_limit_never_ends() {
        let lease = Lease::unlimited();
        lease.extend(Instant::now());
        assert!(lease.is_current(Instant::now() + Duration::from_secs(1 << 30)));
        assert!(!lease.is_limited());
        assert_eq!(lease.deadline(), None);
    }

    #[test]
    fn p3_says_when_it_ends_and_that_it_does() {
        let now = Instant::now();
        let lease = Lease::until(now + Duration::from_secs(5));
        assert!(lease.is_limited());
        assert_eq!(lease.deadline(), Some(now + Duration::from_secs(5)));
        assert!(!Lease::until(now).is_current(now), "it was over when it was given");
    }
}

#[cfg(all(test, ebus_loom))]
mod model {
    use loom::thread;

    use super::*;

    /// Whoever moves it on at the same moment: who looks sees it move on, and the furthest deadline stays.
    #[test]
    fn p3_it_is_moved_on_and_never_back() {
        let now = Instant::now();
        loom::model(move || {
            let lease = Lease::until(now + Duration::from_secs(1));
            let threads = [3, 2].map(|seconds| {
                let lease = lease.clone();
                thread::spawn(move || lease.extend(now + Duration::from_secs(seconds)))
            });
            let seen = [(); 3].map(|()| lease.deadline());
            assert!(seen.is_sorted(), "it was moved back");
            threads.into_iter().for_each(|thread| thread.join().expect("it moved the deadline on"));
            assert_eq!(lease.deadline(), Some(now + Duration::from_secs(3)));
        });
    }
}
