//! The log of one partition: appended to in the order of `call`, read without a lock (G2, G7).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ebus_core::{Group, LogMark, Message, PartitionId, PartitionInfo, Receipt, StartPosition, Timestamp};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::connection::Connection;
use crate::cursor::{Cursor, Peek};
use crate::error;
use crate::member::Member;
use crate::producer::Answer;
use crate::retention::{Limits, Waiting};
use crate::segment::{Segment, Stored};

/// The log of one partition.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) id: PartitionId,
    pub(crate) mark: LogMark,
    /// The offset after the last message, for readers that are at the end: moved on under the lock.
    end: AtomicU64,
    state: Mutex<State>,
}

/// What the lock of a log guards. Its counters run over all messages that the log ever had.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) limits: Limits,
    pub(crate) segments: VecDeque<Arc<Segment>>,
    pub(crate) next_offset: u64,
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    /// Of `count`, `bytes` and offsets, what was trimmed.
    pub(crate) trimmed_count: u64,
    pub(crate) trimmed_bytes: u64,
    pub(crate) trimmed_to: u64,
    /// What each group that reads the log has committed.
    pub(crate) groups: HashMap<Group, u64>,
    /// Publishes that wait for room, in the order of `call`.
    pub(crate) waiting: VecDeque<Waiting>,
    /// Members that wait for the next message.
    armed: Vec<Arc<Member>>,
    /// The topic is gone, or was made anew.
    removed: bool,
}

/// What became of an append.
pub(crate) enum Appended {
    Stored(u64),
    Waiting(oneshot::Receiver<Answer>),
    Closed,
    Removed,
}

/// Where a reader goes on, and what was trimmed before it came.
pub(crate) struct Located {
    pub(crate) segment: Arc<Segment>,
    pub(crate) index: usize,
    pub(crate) gone: Option<(u64, u64)>,
}

/// What is done after the lock is given back: nobody is woken and nothing is freed under it.
#[derive(Default)]
#[must_use]
pub(crate) struct Aftermath {
    pub(crate) woken: Vec<Arc<Member>>,
    pub(crate) answers: Vec<(Waiting, Answer)>,
    pub(crate) garbage: Vec<Arc<Segment>>,
}

impl Log {
    pub(crate) fn new(id: PartitionId, mark: LogMark, limits: Limits) -> Self {
        let state = State {
            limits,
            segments: VecDeque::new(),
            next_offset: 0,
            count: 0,
            bytes: 0,
            trimmed_count: 0,
            trimmed_bytes: 0,
            trimmed_to: 0,
            groups: HashMap::new(),
            waiting: VecDeque::new(),
            armed: Vec::new(),
            removed: false,
        };
        Self { id, mark, end: AtomicU64::new(0), state: Mutex::new(state) }
    }

    /// Appends, or queues behind what waits. `copies` is 1 but under fault injection.
    pub(crate) fn append(
        &self,
        message: Message,
        bytes: usize,
        connection: &Arc<Connection>,
        copies: u32,
    ) -> Appended {
        let mut after = Aftermath::default();
        let mut state = self.state.lock();
        let appended = if connection.is_closed() {
            Appended::Closed
        } else if state.removed {
            Appended::Removed
        } else if state.waiting.is_empty() && state.make_room(bytes as u64, &mut after) {
            for _ in 1..copies {
                state.push(message.clone(), bytes as u64);
            }
            let offset = state.push(message, bytes as u64);
            after.woken.append(&mut state.armed);
            self.end.store(state.next_offset, Ordering::Release);
            Appended::Stored(offset)
        } else {
            if state.waiting.is_empty() {
                state.warn_full(&self.id);
            }
            let (waiting, receiver) = Waiting::new(message, bytes, copies, connection.clone());
            state.waiting.push_back(waiting);
            Appended::Waiting(receiver)
        };
        drop(state);
        after.settle(&self.id);
        appended
    }

    /// Stores what waits and fits now, in pieces, so that the lock is never held for long.
    fn store_waiting(&self) {
        const PIECE: usize = 256;
        loop {
            let mut after = Aftermath::default();
            let mut state = self.state.lock();
            while after.answers.len() < PIECE
                && let Some(bytes) = state.waiting.front().map(|waiting| waiting.bytes as u64)
                && state.make_room(bytes, &mut after)
                && let Some(mut waiting) = state.waiting.pop_front()
            {
                for _ in 1..waiting.copies {
                    state.push(waiting.message.clone(), bytes);
                }
                let offset = state.push(std::mem::replace(&mut waiting.message, Message::new("")), bytes);
                let receipt = Receipt::new(self.id.topic.clone(), self.id.partition, offset);
                after.answers.push((waiting, Ok(receipt)));
            }
            if !after.answers.is_empty() {
                after.woken.append(&mut state.armed);
            }
            self.end.store(state.next_offset, Ordering::Release);
            drop(state);
            let done = after.answers.len() < PIECE;
            after.settle(&self.id);
            if done {
                return;
            }
        }
    }

    /// Finds where a group begins, and holds the log from there on: nothing is trimmed in between.
    pub(crate) fn register(&self, group: &Group, start: StartPosition) -> u64 {
        let mut state = self.state.lock();
        let at = match start {
            StartPosition::Latest => state.next_offset,
            // The earliest, and for a time from there on, once the log is held and without its lock.
            _ => state.trimmed_to,
        };
        state.groups.insert(group.clone(), at);
        drop(state);
        let StartPosition::Time(time) = start else { return at };
        let at = self.first_since(at, time);
        self.committed(group, at);
        at
    }

    /// The offset of the first message at `from` or above that was made at `time` or later; the end when there is none.
    fn first_since(&self, from: u64, time: Timestamp) -> u64 {
        let mut cursor = Cursor::at(from);
        loop {
            match cursor.peek(self) {
                Peek::Message(stored) if stored.message.timestamp >= time => return stored.offset,
                Peek::Message(stored) => {
                    let offset = stored.offset;
                    cursor.advance(offset);
                }
                Peek::Gone(..) => {}
                // Not the end of the log by now: a message that came since may be one.
                Peek::End => return cursor.next(),
            }
        }
    }

    /// What a registered group has committed, or goes on from: it may make room.
    pub(crate) fn committed(&self, group: &Group, watermark: u64) {
        let has_waiting = {
            let mut state = self.state.lock();
            if let Some(at) = state.groups.get_mut(group) {
                *at = watermark;
            }
            !state.waiting.is_empty()
        };
        if has_waiting {
            self.store_waiting();
        }
    }

    /// A group that reads the log no more.
    pub(crate) fn forget(&self, group: &Group) {
        self.state.lock().groups.remove(group);
        self.store_waiting();
    }

    /// The offset after the last message, as a hint without the lock.
    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// The first message at `offset` or above; `None` when there is none yet.
    pub(crate) fn locate(&self, offset: u64) -> Option<Located> {
        let state = self.state.lock();
        let from = offset.max(state.trimmed_to);
        let (segment, index) = state.find(from)?;
        Some(Located { segment, index, gone: (offset < from).then_some((offset, from)) })
    }

    /// Asks for `member` to be woken by the next message. False when there is one at `offset` or above already.
    pub(crate) fn arm(&self, offset: u64, member: &Arc<Member>) -> bool {
        let mut state = self.state.lock();
        if state.find(offset).is_some() {
            return false;
        }
        if !state.armed.iter().any(|other| Arc::ptr_eq(other, member)) {
            state.armed.push(member.clone());
        }
        true
    }

    /// Asks no more.
    pub(crate) fn disarm(&self, member: &Arc<Member>) {
        self.state.lock().armed.retain(|other| !Arc::ptr_eq(other, member));
    }

    /// What there is of it.
    pub(crate) fn info(&self) -> PartitionInfo {
        let state = self.state.lock();
        let end = state.next_offset;
        let first = state.find(state.trimmed_to).and_then(|(segment, index)| Some(segment.at(index)?.offset));
        PartitionInfo { earliest: first.unwrap_or(end), end: ebus_core::NextOffset(end) }
    }

    /// What is trimmed, and the offset after the last message.
    pub(crate) fn bounds(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.trimmed_to, state.next_offset)
    }

    /// For fault injection: all below it is committed by every group that reads the log. `None` when no group does.
    pub(crate) fn kept_by_all(&self) -> Option<u64> {
        self.state.lock().groups.values().min().copied()
    }

    /// Takes what waits of a connection back, because it closes; how many.
    pub(crate) fn give_up(&self, connection: &Arc<Connection>) -> usize {
        let mut after = Aftermath::default();
        let mut state = self.state.lock();
        let (gone, stay): (VecDeque<_>, _) =
            state.waiting.drain(..).partition(|waiting| Arc::ptr_eq(&waiting.connection, connection));
        state.waiting = stay;
        drop(state);
        let count = gone.len();
        for waiting in gone {
            after
                .answers
                .push((waiting, Err(error::not_stored(&self.id.topic, "its connection was closed"))));
        }
        after.settle(&self.id);
        self.store_waiting();
        count
    }

    /// After this no append of a connection that was closed before can be in progress.
    pub(crate) fn barrier(&self) {
        drop(self.state.lock());
    }

    /// Ends it: its topic is gone.
    pub(crate) fn remove(&self) {
        let mut after = Aftermath::default();
        let mut state = self.state.lock();
        state.removed = true;
        after.woken.append(&mut state.armed);
        for waiting in state.waiting.drain(..) {
            after.answers.push((waiting, Err(error::not_stored(&self.id.topic, "its topic was removed"))));
        }
        drop(state);
        after.settle(&self.id);
    }

    /// For fault injection: drops all below `offset`, whatever groups need.
    pub(crate) fn trim(&self, offset: u64) {
        let mut after = Aftermath::default();
        let mut state = self.state.lock();
        while state.oldest_offset().is_some_and(|oldest| oldest < offset) {
            state.trim_one(&mut after);
        }
        state.trimmed_to = state.trimmed_to.max(offset.min(state.next_offset));
        drop(state);
        after.settle(&self.id);
        self.store_waiting();
    }

    /// For fault injection: the next message comes this many offsets later, as after a compaction or an aborted
    /// transaction.
    pub(crate) fn skip(&self, offsets: u64) {
        let mut state = self.state.lock();
        state.next_offset += offsets;
        self.end.store(state.next_offset, Ordering::Release);
    }
}

impl State {
    fn push(&mut self, message: Message, bytes: u64) -> u64 {
        let offset = self.next_offset;
        let tail = self.segments.back();
        let index = tail.map_or(0, |tail| (self.count - tail.first) as usize);
        let tail = match tail {
            Some(tail) if !tail.ends_before(index) => tail,
            before => {
                let segment = Segment::after(before.map(Arc::as_ref), self.count, self.bytes);
                self.segments.push_back(Arc::new(segment));
                self.segments.back().expect("one was pushed just now")
            }
        };
        let index = (self.count - tail.first) as usize;
        self.count += 1;
        self.bytes += bytes;
        self.next_offset += 1;
        tail.append(index, Stored { offset, bytes_to: self.bytes, message });
        offset
    }

    /// The first message at `offset` or above that was not trimmed.
    fn find(&self, offset: u64) -> Option<(Arc<Segment>, usize)> {
        if offset >= self.next_offset {
            return None;
        }
        let offset = offset.max(self.trimmed_to);
        let at =
            self.segments.partition_point(|segment| segment.last_offset().is_some_and(|last| last < offset));
        let segment = self.segments.get(at)?;
        let index = segment.index_of(offset);
        segment.at(index).is_some().then(|| (segment.clone(), index))
    }
}

impl Aftermath {
    fn settle(self, id: &PartitionId) {
        for member in self.woken {
            member.wake();
        }
        for (waiting, answer) in self.answers {
            waiting.answer(id, answer);
        }
        drop(self.garbage);
    }
}
