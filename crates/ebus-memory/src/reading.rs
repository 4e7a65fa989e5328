//! Reading the partitions that a source owns: fairly, in batches, within the uncommitted span (G4, G5).

use std::sync::Arc;

use ebus_core::{Epoch, Error, ErrorKind, Inbound, Owned, Ownership, PartitionId, SourceEvent};

use crate::cursor::{Cursor, Peek};
use crate::log::Log;
use crate::member::Member;

/// The most messages of one partition before the next one has its turn.
const TURN: usize = 256;

/// One partition that is owned.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) owned: Owned,
    pub(crate) log: Arc<Log>,
    pub(crate) paused: bool,
    pub(crate) revoking: bool,
    /// Under which the group knows the ownership.
    pub(crate) epoch: Epoch,
    /// The span was full when it was last read; settling makes room.
    full: bool,
    cursor: Cursor,
}

/// All partitions that are owned, and whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Readings {
    list: Vec<Reading>,
    turn: usize,
}

impl Readings {
    pub(crate) fn add(&mut self, owned: Owned, epoch: Epoch, log: Arc<Log>, from: u64) {
        let cursor = Cursor::at(from);
        self.list.push(Reading { owned, log, paused: false, revoking: false, epoch, full: false, cursor });
    }

    pub(crate) fn remove(&mut self, owned: Owned, member: &Arc<Member>) -> Option<Reading> {
        let index = self.list.iter().position(|reading| reading.owned == owned)?;
        let reading = self.list.swap_remove(index);
        reading.log.disarm(member);
        Some(reading)
    }

    /// The one that the group knows as this.
    pub(crate) fn find(&mut self, partition: &PartitionId, epoch: Epoch) -> Option<&mut Reading> {
        self.list.iter_mut().find(|reading| reading.epoch == epoch && reading.log.id == *partition)
    }

    pub(crate) fn get(&mut self, owned: Owned) -> Option<&mut Reading> {
        self.list.iter_mut().find(|reading| reading.owned == owned)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Reading> {
        self.list.iter()
    }

    /// Appends up to `room` messages; how many. What was trimmed unread is told, never skipped in silence.
    pub(crate) fn read(
        &mut self,
        ownership: &mut Ownership,
        room: usize,
        out: &mut Vec<SourceEvent>,
        troubles: &mut Vec<Error>,
    ) -> usize {
        let (mut read, mut idle) = (0, 0);
        while read < room && idle < self.list.len() {
            self.turn %= self.list.len();
            let reading = &mut self.list[self.turn];
            self.turn += 1;
            let (taken, moved) = reading.turn(ownership, TURN.min(room - read), out, troubles);
            idle = if moved { 0 } else { idle + 1 };
            read += taken;
        }
        read
    }

    /// Has `member` woken by the next message of any partition that may be read. False when there is one already.
    pub(crate) fn arm(&self, member: &Arc<Member>) -> bool {
        let wanted = |reading: &&Reading| reading.may_read() && !reading.full;
        self.list.iter().filter(wanted).all(|reading| reading.log.arm(reading.cursor.next(), member))
    }
}

impl Reading {
    fn may_read(&self) -> bool {
        !self.paused && !self.revoking
    }

    /// Takes up to `most` messages; how many, and whether it got on at all.
    fn turn(
        &mut self,
        ownership: &mut Ownership,
        most: usize,
        out: &mut Vec<SourceEvent>,
        troubles: &mut Vec<Error>,
    ) -> (usize, bool) {
        if !self.may_read() {
            return (0, false);
        }
        self.full = false;
        let (mut taken, mut moved) = (0, false);
        while taken < most {
            let (offset, message) = match self.cursor.peek(&self.log) {
                Peek::Message(stored) => (stored.offset, &stored.message),
                Peek::Gone(from, to) => {
                    troubles.push(gone(&self.log, from, to));
                    continue;
                }
                Peek::End => break,
            };
            if !ownership.has_room(self.owned, offset) {
                self.full = true;
                ownership.hold(self.owned, offset);
                break;
            }
            // A refusal cannot be: a cursor only goes up, and its ownership is current as long as it is read.
            let tracked = ownership.track(self.owned, offset);
            debug_assert!(tracked.is_ok(), "{tracked:?}");
            if let Ok(Some(token)) = tracked {
                out.push(SourceEvent::Message(Inbound { token, message: message.clone() }));
                taken += 1;
            }
            moved = true;
            self.cursor.advance(offset);
        }
        (taken, moved)
    }
}

fn gone(log: &Log, from: u64, to: u64) -> Error {
    let message =
        format!("offsets {from} to {to} were trimmed before they were read; reading goes on after them");
    let error =
        Error::new(ErrorKind::NotFound, message).with_operation("recv").with_context("partition", &log.id);
    tracing::warn!(%error, "messages are gone");
    error
}
