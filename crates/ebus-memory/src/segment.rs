//! A piece of a log that is appended to under the log's lock and read without any.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use ebus_core::Message;

/// The most messages of a segment.
const MAX_MESSAGES: usize = 1_024;
/// A segment is sealed when its messages have this many bytes, so that the memory that trimming frees late is bounded.
const MAX_BYTES: u64 = 1 << 20;
/// The first segment of a log; each next one is four times as large, up to the most.
const FIRST_MESSAGES: usize = 16;

/// A message at its place.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) offset: u64,
    /// Bytes of all messages of the log up to and including this one.
    pub(crate) bytes_to: u64,
    pub(crate) message: Message,
}

/// Slots that are each written once. What a slot holds never changes, so readers need no lock.
#[derive(Debug)]
pub(crate) struct Segment {
    /// How many messages the log had before this segment.
    pub(crate) first: u64,
    bytes_before: u64,
    slots: Box<[OnceLock<Stored>]>,
    sealed: AtomicBool,
}

impl Segment {
    /// The segment after `before`, or the first one.
    pub(crate) fn after(before: Option<&Segment>, first: u64, bytes_before: u64) -> Self {
        let slots = before.map_or(FIRST_MESSAGES, |before| (before.slots.len() * 4).min(MAX_MESSAGES));
        Self {
            first,
            bytes_before,
            slots: std::iter::repeat_with(OnceLock::new).take(slots).collect(),
            sealed: AtomicBool::new(false),
        }
    }

    /// Appends at `index`, the number of messages in it; the caller holds the lock of the log. True when it is full now.
    pub(crate) fn append(&self, index: usize, stored: Stored) -> bool {
        let full = index + 1 == self.slots.len() || stored.bytes_to - self.bytes_before >= MAX_BYTES;
        let written = self.slots[index].set(stored);
        debug_assert!(written.is_ok(), "the lock of the log gives each slot to one writer");
        if full {
            self.sealed.store(true, Ordering::Release);
        }
        full
    }

    pub(crate) fn at(&self, index: usize) -> Option<&Stored> {
        self.slots.get(index)?.get()
    }

    /// Whether no message will ever stand at `index` or above it.
    pub(crate) fn ends_before(&self, index: usize) -> bool {
        self.sealed.load(Ordering::Acquire) && self.at(index).is_none()
    }

    /// The index of the first message at `offset` or above; where the next one would stand when there is none.
    pub(crate) fn index_of(&self, offset: u64) -> usize {
        self.slots.partition_point(|slot| slot.get().is_some_and(|stored| stored.offset < offset))
    }

    /// The offset of its last message.
    pub(crate) fn last_offset(&self) -> Option<u64> {
        let len = self.slots.partition_point(|slot| slot.get().is_some());
        Some(self.at(len.checked_sub(1)?)?.offset)
    }
}
