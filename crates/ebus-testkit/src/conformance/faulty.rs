//! A publisher that is down until it is healed: a dead-letter topic that cannot be reached.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use ebus_core::{Error, ErrorKind, Publish, PublishFuture, Publisher, Receipt};
use tower_service::Service;

use super::wait::Gate;

/// How it is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Down {
    /// Every publish fails at once.
    Fails,
    /// Every publish waits, and is never sent.
    Hangs,
}

#[derive(Clone)]
pub(super) struct Faulty {
    inner: Publisher,
    down: Down,
    healed: Gate,
    refused: Arc<AtomicU64>,
}

impl Faulty {
    pub(super) fn new(inner: Publisher, down: Down) -> Self {
        Self { inner, down, healed: Gate::closed(), refused: Arc::default() }
    }

    pub(super) fn publisher(&self) -> Publisher {
        Publisher::new(self.clone())
    }

    pub(super) fn heal(&self) {
        self.healed.open();
    }

    /// Publishes that were not sent.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Service<Publish> for Faulty {
    type Response = Receipt;
    type Error = Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Receipt, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, publish: Publish) -> Self::Future {
        if self.healed.is_open() {
            let sent: PublishFuture = self.inner.call(publish);
            return Box::pin(sent);
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        let down = self.down;
        Box::pin(async move {
            if down == Down::Hangs {
                std::future::pending::<()>().await;
            }
            Err(Error::new(ErrorKind::Unavailable, "the dead-letter topic is down in this case")
                .with_operation("publish")
                .with_context("topic", publish.topic))
        })
    }
}
