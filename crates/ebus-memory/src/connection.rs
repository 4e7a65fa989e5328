//! One connection to a broker: its bounds in flight, its members, and its end (G5, G9).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ebus_core::{Error, ErrorKind};
use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell};

use crate::broker::MemoryBroker;
use crate::gate::Gate;
use crate::member::Member;

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) gate: Gate,
    closed: AtomicBool,
    /// Publishes that wait for room in a log.
    waiting: AtomicUsize,
    settled: Notify,
    members: Mutex<Vec<Weak<Member>>>,
    result: OnceCell<Result<(), Error>>,
}

impl Connection {
    pub(crate) fn new(max_messages: usize, max_bytes: usize) -> Self {
        Self {
            gate: Gate::new(max_messages, max_bytes),
            closed: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            settled: Notify::new(),
            members: Mutex::default(),
            result: OnceCell::new(),
        }
    }

    /// Whether publishing has ended. Asked under the lock of a log, the answer holds until that lock is given back.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn began_waiting(&self, bytes: usize) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.gate.add_bytes(bytes);
    }

    pub(crate) fn ended_waiting(&self, bytes: usize) {
        self.gate.leave(1, bytes);
        if self.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.settled.notify_waiters();
        }
    }

    /// Remembers a member, so that the end of the connection is its end too.
    ///
    /// # Errors
    /// `Closed`.
    pub(crate) fn add(&self, member: &Arc<Member>) -> Result<(), Error> {
        let mut members = self.members.lock();
        if self.is_closed() {
            return Err(Error::closed("source"));
        }
        members.retain(|member| member.strong_count() > 0);
        members.push(Arc::downgrade(member));
        Ok(())
    }

    /// Ends publishing, waits for what waits, then ends the sources; all callers get the one result.
    pub(crate) async fn close(
        self: &Arc<Self>,
        broker: &MemoryBroker,
        within: Duration,
    ) -> Result<(), Error> {
        self.result.get_or_init(|| self.finish(broker, within)).await.clone()
    }

    async fn finish(self: &Arc<Self>, broker: &MemoryBroker, within: Duration) -> Result<(), Error> {
        {
            let _members = self.members.lock();
            self.closed.store(true, Ordering::Release);
        }
        self.gate.wake_all();
        let logs = broker.logs();
        logs.iter().for_each(|log| log.barrier());
        // The sources go on until all is stored: they may be what a full log waits for.
        let stored = tokio::time::timeout(within, self.all_stored()).await.is_ok();
        let given_up: usize = if stored { 0 } else { logs.iter().map(|log| log.give_up(self)).sum() };
        let members = std::mem::take(&mut *self.members.lock());
        members.iter().filter_map(Weak::upgrade).for_each(|member| member.end());
        if given_up == 0 {
            return Ok(());
        }
        let message =
            format!("{given_up} messages were not stored: their partitions are full; they got an error each");
        Err(Error::new(ErrorKind::Timeout, message)
            .with_operation("close")
            .with_context("within", format_args!("{within:?}")))
    }

    async fn all_stored(&self) {
        let mut settled = std::pin::pin!(self.settled.notified());
        loop {
            settled.as_mut().enable();
            if self.waiting.load(Ordering::Acquire) == 0 {
                return;
            }
            settled.as_mut().await;
            settled.set(self.settled.notified());
        }
    }
}
