//! One life for a connection and the consumers on it: closed once, in order, with one result (G6, G9; i01, i02).

use std::sync::{Arc, Weak};
use std::time::Duration;

use ebus_core::{Backend, Error, FOR_EVER};
use ebus_pool::Pool;
use futures_util::FutureExt;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;

/// What all clones of a bus and its consumers share.
pub(crate) struct Life {
    pub(crate) backend: Arc<dyn Backend>,
    consumers: Mutex<Consumers>,
    closed: OnceCell<Result<(), Error>>,
}

#[derive(Default)]
struct Consumers {
    closing: bool,
    pools: Vec<Weak<Pool>>,
}

impl Life {
    pub(crate) fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend, consumers: Mutex::default(), closed: OnceCell::new() }
    }

    /// Whether `operation` may still begin.
    pub(crate) fn check(&self, operation: &'static str) -> Result<(), Error> {
        if self.closed.initialized() { Err(Error::closed(operation)) } else { Ok(()) }
    }

    /// Whether a consumer may still start: not once closing has begun.
    pub(crate) fn check_start(&self) -> Result<(), Error> {
        if self.consumers.lock().closing { Err(Error::closed("start")) } else { Ok(()) }
    }

    /// Remembers a pool for the end. False when that has begun: then nobody will drain it.
    pub(crate) fn add(&self, pool: &Arc<Pool>) -> bool {
        let mut consumers = self.consumers.lock();
        if consumers.closing {
            return false;
        }
        consumers.pools.retain(|pool| pool.strong_count() > 0);
        consumers.pools.push(Arc::downgrade(pool));
        true
    }

    pub(crate) async fn close(&self, within: Duration) -> Result<(), Error> {
        self.closed.get_or_init(|| self.finish(within)).await.clone()
    }

    async fn finish(&self, within: Duration) -> Result<(), Error> {
        let pools: Vec<Arc<Pool>> = {
            let mut consumers = self.consumers.lock();
            consumers.closing = true;
            consumers.pools.iter().filter_map(Weak::upgrade).collect()
        };
        let within = within.min(FOR_EVER);
        let deadline = Instant::now() + within;
        let drained = join_all(pools.iter().map(|pool| drain(pool, within))).await;
        let committed = drained.into_iter().find_map(Result::err);
        // Publishing ends last: what handlers and dead letters published while they ended is sent too.
        let rest = deadline.saturating_duration_since(Instant::now()).max(within / 4);
        let closed = self.backend.close(rest).await;
        committed.map_or(closed, Err)
    }
}

/// Drains a pool that is still running; one that has ended has told its owner how.
async fn drain(pool: &Pool, within: Duration) -> Result<(), Error> {
    if pool.ended().now_or_never().is_some() {
        return Ok(());
    }
    let report = pool.drain(within).await;
    for left in &report.left {
        let (queued, failing, cancelled) = (left.queued, left.failing, left.cancelled);
        tracing::warn!(partition = %left.partition, queued, failing, cancelled, "left unfinished at close");
    }
    report.committed
}

impl std::fmt::Debug for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Life")
            .field("backend", &self.backend.capability().backend)
            .field("closed", &self.closed.initialized())
            .finish_non_exhaustive()
    }
}
