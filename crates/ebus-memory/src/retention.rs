//! How much a log holds, what makes room, and who waits for it (G1, G5, G8).
//!
//! A log keeps all it can: only when it is full, what every group that reads it has committed is trimmed, oldest first,
//! and only as much as the next message needs. If that is not enough, publishes wait in the order of `call` and are
//! stored as soon as a commit makes room. Nothing that a group still needs is ever dropped, and neither is a topic that
//! no group reads: it fills, and then its publishes wait for a group, or for a limit of the caller's.

use std::sync::Arc;

use ebus_core::{Message, PartitionId};
use tokio::sync::oneshot;

use crate::connection::Connection;
use crate::log::{Aftermath, State};
use crate::producer::Answer;

/// Bounds of a log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// A publish that waits for room, and holds its place in flight meanwhile, whether its future lives or not.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) message: Message,
    pub(crate) bytes: usize,
    pub(crate) copies: u32,
    pub(crate) connection: Arc<Connection>,
    answer: oneshot::Sender<Answer>,
}

impl Waiting {
    /// Takes over the place in flight that its caller had reserved.
    pub(crate) fn new(
        message: Message,
        bytes: usize,
        copies: u32,
        connection: Arc<Connection>,
    ) -> (Self, oneshot::Receiver<Answer>) {
        connection.began_waiting(bytes);
        let (answer, receiver) = oneshot::channel();
        (Self { message, bytes, copies, connection, answer }, receiver)
    }

    pub(crate) fn answer(self, id: &PartitionId, answer: Answer) {
        // A caller that dropped its future has chosen not to know.
        if let Err(Err(error)) = self.answer.send(answer) {
            tracing::warn!(partition = %id, %error, "a message whose publisher does not wait was not stored");
        }
        self.connection.ended_waiting(self.bytes);
    }
}

impl State {
    /// Whether a message of `bytes` fits, after trimming what may go.
    pub(crate) fn make_room(&mut self, bytes: u64, after: &mut Aftermath) -> bool {
        if self.fits(bytes) {
            return true;
        }
        let floor = self.floor();
        while self.oldest_offset().is_some_and(|oldest| oldest < floor) {
            self.trim_one(after);
            if self.fits(bytes) {
                return true;
            }
        }
        false
    }

    fn fits(&self, bytes: u64) -> bool {
        let (messages, held) = (self.count - self.trimmed_count, self.bytes - self.trimmed_bytes);
        messages == 0 || messages < self.limits.messages && held + bytes <= self.limits.bytes
    }

    /// All below it is committed by every group that reads the log; 0 when none does.
    fn floor(&self) -> u64 {
        self.groups.values().copied().min().unwrap_or(0)
    }

    pub(crate) fn oldest_offset(&self) -> Option<u64> {
        let front = self.segments.front()?;
        Some(front.at((self.trimmed_count - front.first) as usize)?.offset)
    }

    /// Trims the oldest message. Its memory goes with its segment, at most 1 MiB and one message later.
    pub(crate) fn trim_one(&mut self, after: &mut Aftermath) {
        let Some(front) = self.segments.front() else { return };
        let index = (self.trimmed_count - front.first) as usize;
        let Some(oldest) = front.at(index) else { return };
        self.trimmed_bytes = oldest.bytes_to;
        self.trimmed_to = oldest.offset + 1;
        self.trimmed_count += 1;
        if front.ends_before(index + 1) {
            after.garbage.extend(self.segments.pop_front());
        }
    }

    pub(crate) fn warn_full(&self, id: &PartitionId) {
        match self.groups.iter().min_by_key(|group| group.1) {
            Some((group, watermark)) => tracing::warn!(
                partition = %id, %group, watermark, end = self.next_offset,
                "the partition is full of what this group has not committed; publishes wait"
            ),
            None => tracing::warn!(
                partition = %id, end = self.next_offset,
                "the partition is full and no group reads it; publishes wait until one does"
            ),
        }
    }
}
