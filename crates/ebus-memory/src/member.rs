//! What a group and a log know of a member: its mailbox, and when it was last seen (G3, G9).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ebus_core::{Epoch, Error, FOR_EVER, PartitionId, Position};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::log::Log;

/// `within` from `from` on, whatever somebody gave as "for ever".
pub(crate) fn later(from: Instant, within: Duration) -> Instant {
    from + within.min(FOR_EVER)
}

/// A member of a group, numbered in the order of joining over the whole broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(pub(crate) u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a group says to a member.
#[derive(Debug)]
pub(crate) enum Mail {
    Assigned {
        log: Arc<Log>,
        epoch: Epoch,
        position: Position,
        trouble: Option<Error>,
    },
    Revoking {
        partition: PartitionId,
        epoch: Epoch,
        deadline: Instant,
    },
    Lost {
        partition: PartitionId,
        epoch: Epoch,
    },
    /// It was put out of the group because its `recv` rested too long.
    PutOut,
    /// It is dead, by fault injection.
    Crashed,
}

/// The part of a source that others reach.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) id: MemberId,
    pub(crate) revoke_within: Duration,
    origin: Instant,
    mail: Mutex<Vec<Mail>>,
    has_mail: AtomicBool,
    woken: Notify,
    receiving: AtomicBool,
    /// Nanoseconds since `origin` at which `recv` last began or ended.
    last_seen: AtomicU64,
    ended: AtomicBool,
}

impl Member {
    pub(crate) fn new(id: MemberId, revoke_within: Duration, origin: Instant, now: Instant) -> Self {
        let member = Self {
            id,
            revoke_within,
            origin,
            mail: Mutex::default(),
            has_mail: AtomicBool::new(false),
            woken: Notify::new(),
            receiving: AtomicBool::new(false),
            last_seen: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        };
        member.seen(now);
        member
    }

    /// Wakes its `recv`, or the next one.
    pub(crate) fn wake(&self) {
        self.woken.notify_one();
    }

    pub(crate) fn woken(&self) -> &Notify {
        &self.woken
    }

    pub(crate) fn post(&self, mail: Mail) {
        self.mail.lock().push(mail);
        self.has_mail.store(true, Ordering::Release);
        self.wake();
    }

    /// Takes the mail; without a lock when there is none.
    pub(crate) fn take_mail(&self) -> Vec<Mail> {
        if !self.has_mail.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut mail = self.mail.lock();
        self.has_mail.store(false, Ordering::Release);
        std::mem::take(&mut *mail)
    }

    /// The connection has ended.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn seen(&self, now: Instant) {
        let nanos = now.saturating_duration_since(self.origin).as_nanos();
        self.last_seen.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Since when `recv` rests; `None` while it is being called.
    pub(crate) fn resting_since(&self) -> Option<Instant> {
        if self.receiving.load(Ordering::Acquire) {
            return None;
        }
        Some(self.origin + Duration::from_nanos(self.last_seen.load(Ordering::Acquire)))
    }

    /// Marks `recv` as being called until the guard is dropped.
    pub(crate) fn receive(self: &Arc<Self>, now: Instant) -> Receiving {
        self.seen(now);
        self.receiving.store(true, Ordering::Release);
        Receiving(self.clone())
    }
}

/// A call of `recv`; ends when it returns or is dropped.
pub(crate) struct Receiving(Arc<Member>);

impl Drop for Receiving {
    fn drop(&mut self) {
        self.0.seen(Instant::now());
        self.0.receiving.store(false, Ordering::Release);
    }
}
