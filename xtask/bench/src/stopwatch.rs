//! Latency over a broker under a stated load: from just before a message is published to when its handler is called.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ebus_core::Message;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::latency::Percentiles;
use crate::work::{Countdown, messages};

/// Messages a second, evenly.
pub(crate) const PER_SECOND: usize = 1_000;
/// The first ones, which find connections and groups new, do not count.
const WARM_UP: usize = PER_SECOND;
/// Those that count.
const COUNTED: usize = 5 * PER_SECOND;

/// The load in words.
pub(crate) fn load() -> String {
    format!("{PER_SECOND} messages a second for {} s after one that does not count", COUNTED / PER_SECOND)
}

/// Who publishes and who handles share it.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    sent: Vec<OnceLock<Instant>>,
    took: Vec<OnceLock<Duration>>,
    left: Countdown,
}

impl Stopwatch {
    pub(crate) fn new() -> Arc<Self> {
        const ALL: usize = WARM_UP + COUNTED;
        Arc::new(Self {
            sent: (0..ALL).map(|_| OnceLock::new()).collect(),
            took: (0..ALL).map(|_| OnceLock::new()).collect(),
            left: Countdown::new(ALL),
        })
    }

    /// A message with this payload is handled. Again is not counted.
    pub(crate) fn handled(&self, payload: &[u8]) {
        let number = payload.first_chunk().map(|bytes| u64::from_le_bytes(*bytes) as usize);
        let Some((sent, took)) = number.and_then(|n| self.sent.get(n)?.get().zip(self.took.get(n))) else {
            return;
        };
        if took.set(sent.elapsed()).is_ok() {
            self.left.one();
        }
    }

    /// Waits until all are handled.
    pub(crate) async fn done(&self) {
        self.left.done().await;
    }

    /// What they took.
    ///
    /// # Errors
    /// When some are not handled yet.
    pub(crate) fn percentiles(&self) -> Result<Percentiles> {
        let took: Option<Vec<_>> = self.took.iter().map(|took| took.get().copied()).collect();
        let took = took.context("not all messages were handled")?;
        Ok(Percentiles::of(took[WARM_UP..].to_vec()))
    }

    /// What to publish, when it is time.
    pub(crate) fn paced(self: &Arc<Self>) -> Paced {
        let mut ticks = interval(Duration::from_secs(1) / PER_SECOND as u32);
        // Who comes late catches up: the load is what was said.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        Paced { stopwatch: self.clone(), ticks, next: 0 }
    }
}

/// Messages that come when they are to be published, each with its number in front of its payload.
pub(crate) struct Paced {
    stopwatch: Arc<Stopwatch>,
    ticks: Interval,
    next: usize,
}

impl Paced {
    /// The next one; its time runs from now on.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        let sent = self.stopwatch.sent.get(self.next)?;
        self.ticks.tick().await;
        let messages = messages();
        let model = &messages[self.next % messages.len()];
        let mut payload = model.payload.to_vec();
        payload[..8].copy_from_slice(&(self.next as u64).to_le_bytes());
        self.next += 1;
        let message = Message::new(payload).with_optional_key(model.key.clone());
        sent.get_or_init(Instant::now);
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_message_is_timed_once_and_all_are_waited_for() {
        let stopwatch = Stopwatch::new();
        let mut paced = stopwatch.paced();
        while let Some(message) = paced.next().await {
            assert!(stopwatch.percentiles().is_err());
            stopwatch.handled(&message.payload);
            stopwatch.handled(&message.payload);
        }
        stopwatch.handled(b"other");
        stopwatch.done().await;
        assert!(stopwatch.percentiles().is_ok());
    }
}
