//! What driver, shards and handle share, and the publishing of dead letters (G1).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ebus_core::{Error, ErrorKind, Message, Outcome};
use futures_util::FutureExt;

use crate::config::PoolConfig;
use crate::dead_letter::{Obituary, Origin, letter};
use crate::retry::RetryPolicy;
use crate::runner::Ended;
use crate::slots::Slots;
use crate::state::AtomicCounters;

/// What driver, shards and handle share.
pub(crate) struct Shared {
    pub(crate) config: PoolConfig,
    pub(crate) slots: Slots,
    pub(crate) counters: AtomicCounters,
    pub(crate) dead_letter_error: Mutex<Option<Error>>,
}

impl Shared {
    fn set_dead_letter_error(&self, error: Option<Error>) {
        *self.dead_letter_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    pub(crate) fn dead_letter_error(&self) -> Option<Error> {
        self.dead_letter_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Publishes until the receipt is there. The message is settled after that, never before.
    pub(crate) async fn publish_dead_letter(
        self: Arc<Self>,
        origin: Origin,
        message: Message,
        why: Obituary,
    ) -> Ended {
        let Some((topic, publisher)) = &self.config.dead_letter else {
            return Ended::Outcome(Outcome::Reject { error: why.error });
        };
        let mut publisher = publisher.clone();
        let mut short = false;
        let mut delays = RetryPolicy::exponential().cap(Duration::from_secs(10)).delays();
        loop {
            let publish = publisher.publish(letter(topic, &origin, &message, &why, short));
            let published = std::panic::AssertUnwindSafe(publish).catch_unwind().await;
            let error = match published {
                Ok(Ok(_receipt)) => {
                    self.set_dead_letter_error(None);
                    return Ended::Outcome(Outcome::Ack);
                }
                Ok(Err(error)) => error,
                Err(_) => Error::new(ErrorKind::Unexpected, "the publisher of dead letters panicked"),
            };
            if error.kind() == ErrorKind::TooLarge && !short {
                short = true;
                continue;
            }
            tracing::warn!(group = %origin.group, partition = %origin.partition, offset = origin.offset, to = %topic,
                error = %error.chain(), "dead letter not published; its key waits until it is");
            self.set_dead_letter_error(Some(error));
            tokio::time::sleep(delays.next().unwrap_or_default()).await;
        }
    }
}
