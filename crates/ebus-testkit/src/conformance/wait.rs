//! Waiting for a condition, with a deadline.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::failure::{Checked, Failure};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Waits until `is` gives something.
pub(super) async fn eventually<T, F>(what: &str, within: Duration, mut is: impl FnMut() -> F) -> Checked<T>
where
    F: Future<Output = Checked<Option<T>>>,
{
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = is().await? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(format!("not within {within:?}: {what}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A gate that runs wait at until a case opens it.
#[derive(Debug, Clone)]
pub(super) struct Gate(std::sync::Arc<tokio::sync::watch::Sender<bool>>);

impl Gate {
    pub(super) fn closed() -> Self {
        Self(std::sync::Arc::new(tokio::sync::watch::Sender::new(false)))
    }

    pub(super) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(super) fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    pub(super) async fn pass(&self) {
        let mut opened = self.0.subscribe();
        // The sender lives as long as this gate, so it cannot end otherwise.
        let _ = opened.wait_for(|open| *open).await;
    }
}
