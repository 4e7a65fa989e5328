//! What driver, shards and handle share, and the publishing of dead letters (G1).

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ebus_core::{Error, ErrorKind, Lease, Message, Receipt, Topic};
use futures_util::FutureExt;
use tokio::sync::Semaphore;

use crate::config::PoolConfig;
use crate::dead_letter::{Obituary, Origin, letter};
use crate::lane::now;
use crate::parked::AllLists;
use crate::retry::RetryPolicy;
use crate::slots::Slots;
use crate::state::AtomicCounters;

/// What driver, shards and handle share.
pub(crate) struct Shared {
    pub(crate) config: PoolConfig,
    pub(crate) slots: Slots,
    pub(crate) counters: AtomicCounters,
    pub(crate) dead_letter_errors: DeadLetterErrors,
    /// What lists of parked keys take.
    pub(crate) lists: Arc<AllLists>,
    /// Places for redrives.
    pub(crate) redrives: Arc<Semaphore>,
    /// What gathers for batches shall wait for nothing.
    pub(crate) press: AtomicBool,
}

/// When to look again at a lease that has run out and may yet be moved on.
pub(crate) const LEASE_RECHECK: Duration = Duration::from_millis(50);

/// Why the dead letters that wait could not be published, each by itself: one that went through says nothing of another.
#[derive(Default)]
pub(crate) struct DeadLetterErrors(Mutex<Failing>);

#[derive(Default)]
struct Failing {
    next: u64,
    errors: BTreeMap<u64, Error>,
}

impl DeadLetterErrors {
    fn with<T>(&self, f: impl FnOnce(&mut Failing) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The last failure of those that wait.
    pub(crate) fn last(&self) -> Option<Error> {
        self.with(|failing| failing.errors.last_key_value().map(|(_, error)| error.clone()))
    }
}

/// The failure of one dead letter; gone when it was published, and when its run was cancelled.
struct Waiting<'a> {
    errors: &'a DeadLetterErrors,
    at: Option<u64>,
}

impl Waiting<'_> {
    fn failed(&mut self, error: Error) {
        let before = self.at;
        self.at = self.errors.with(|failing| {
            before.map(|at| failing.errors.remove(&at));
            failing.next += 1;
            failing.errors.insert(failing.next, error);
            Some(failing.next)
        });
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(at) = self.at {
            self.errors.with(|failing| failing.errors.remove(&at));
        }
    }
}

impl Shared {
    pub(crate) fn dead_letter_error(&self) -> Option<Error> {
        self.dead_letter_errors.last()
    }

    /// Publishes until the receipt is there. The message is settled after that, never before. Each attempt has a clone of the
    /// publisher of its own, since one that panicked may be no good any more; what panics in an attempt is its failure. Past the
    /// lease no attempt starts: the next owner may have handled the message by then (G3).
    pub(crate) async fn publish_dead_letter(
        &self,
        topic: &Topic,
        origin: &Origin,
        message: &Message,
        why: &Obituary,
        lease: Lease,
    ) -> Receipt {
        let Some((_, publisher)) = &self.config.dead_letter else {
            debug_assert!(false, "nothing is given up without a place for it");
            return std::future::pending().await;
        };
        let mut waiting = Waiting { errors: &self.dead_letter_errors, at: None };
        let mut short = false;
        let mut delays = RetryPolicy::exponential().cap(Duration::from_secs(10)).delays();
        loop {
            while !lease.is_current(now()) {
                tokio::time::sleep(LEASE_RECHECK).await;
            }
            let publish = async {
                let mut publisher = publisher.clone();
                publisher.publish(letter(topic, origin, message, why, short)).await
            };
            let error = match AssertUnwindSafe(publish).catch_unwind().await {
                Ok(Ok(receipt)) => return receipt,
                Ok(Err(error)) => error,
                Err(_) => Error::new(ErrorKind::Unexpected, "the publisher of dead letters panicked"),
            };
            if error.kind() == ErrorKind::TooLarge && !short {
                short = true;
                continue;
            }
            tracing::warn!(group = %origin.group, partition = %origin.partition, offset = origin.offset, to = %topic,
                error = %error.chain(), "dead letter not published; its key waits until it is");
            waiting.failed(error);
            tokio::time::sleep(delays.next().unwrap_or_default()).await;
        }
    }
}
