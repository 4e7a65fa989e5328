//! How long one poll of a shard lasts: bounded by time, not by what handlers happen to do in it (G9).
//!
//! Whatever shares the shard's thread waits until its poll ends: the driver with its heartbeats and deadlines too, because
//! what the shard sends wakes it on this very thread. Reading the clock after each of millions of quick calls would cost as
//! much as the calls, so it is read after 16 of them, and after each one as soon as they turn out to be slow.

use std::time::{Duration, Instant};

/// How long a poll goes on: long enough to spread its cost over thousands of quick calls, short beside any heartbeat.
const POLL: Duration = Duration::from_millis(1);
/// Calls without an await that last longer together block their thread.
const BLOCKED: Duration = Duration::from_millis(100);
/// Quick calls between two looks at the clock.
const STRIDE: u32 = 16;
/// Calls are slow when so many of them, on average, fill a poll.
const SLOW: Duration = Duration::from_micros(20);

/// Of one shard.
#[derive(Debug)]
pub(crate) struct Pace {
    began: Instant,
    looked: Instant,
    calls: u32,
    stride: u32,
}

impl Pace {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { began: now, looked: now, calls: 0, stride: STRIDE }
    }

    /// A poll begins.
    pub(crate) fn begin(&mut self) {
        *self = Self { stride: self.stride, ..Self::new() };
    }

    /// User code was called: whether the poll should end.
    #[inline]
    pub(crate) fn called(&mut self, shard: usize) -> bool {
        self.calls += 1;
        self.calls >= self.stride && self.look(shard)
    }

    #[cold]
    fn look(&mut self, shard: usize) -> bool {
        let now = Instant::now();
        let took = now - self.looked;
        // Of calls that were quick until now it may be one: what is said is that the thread was blocked, not how often.
        if took > BLOCKED {
            tracing::warn!(
                shard,
                millis = took.as_millis() as u64,
                calls = self.calls,
                "handlers blocked their thread, and with it every key of their shard; move such work to spawn_blocking"
            );
        }
        self.stride = if took > SLOW * self.calls { 1 } else { (self.stride * 2).min(STRIDE) };
        self.looked = now;
        self.calls = 0;
        now - self.began >= POLL
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tracing::span;

    use super::*;

    /// Counts warnings.
    struct Warnings(Arc<AtomicUsize>);

    impl tracing::Subscriber for Warnings {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() == tracing::Level::WARN
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, SeqCst);
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn p9_calls_that_block_their_thread_are_warned_of() {
        let warned = Arc::new(AtomicUsize::new(0));
        tracing::subscriber::with_default(Warnings(warned.clone()), || {
            let mut pace = Pace::new();
            pace.begin();
            (1..STRIDE).for_each(|_| assert!(!pace.called(0), "none has looked"));
            std::thread::sleep(BLOCKED + Duration::from_millis(1));
            assert_eq!(warned.load(SeqCst), 0, "none has looked");
            assert!(pace.called(0), "it ends the poll");
            assert_eq!(warned.load(SeqCst), 1, "one of calls that were quick until now");
            // What waits is not a call: the thread did something else, or rested.
            std::thread::sleep(BLOCKED + Duration::from_millis(1));
            let begun = Instant::now();
            pace.begin();
            std::thread::sleep(BLOCKED / 5);
            assert!(pace.called(0));
            // A busy machine may sleep for longer.
            if begun.elapsed() < BLOCKED {
                assert_eq!(warned.load(SeqCst), 1, "slow, and does not block for so long");
            }
        });
    }

    #[test]
    fn slow_calls_end_a_poll_soon_and_quick_ones_do_not() {
        let mut pace = Pace::new();
        let calls = (1..).find(|_| {
            std::thread::sleep(Duration::from_millis(1));
            pace.called(0)
        });
        assert_eq!(calls, Some(STRIDE), "the first look");
        pace.begin();
        let calls = (1..).find(|_| {
            std::thread::sleep(Duration::from_millis(1));
            pace.called(0)
        });
        assert_eq!(calls, Some(1), "slow before");
        pace.begin();
        let quick = (0..1_000_000).take_while(|_| !pace.called(0)).count();
        assert!(quick >= 1_000, "{quick} calls that do nothing filled a poll");
    }
}
