//! Reading a log forward: a lock is taken once per segment, and never at the end of the log.

use std::sync::Arc;

use crate::log::Log;
use crate::segment::{Segment, Stored};

/// Where a reader stands in a log; holds on to its segment, so that reading on takes no lock.
#[derive(Debug)]
pub(crate) struct Cursor {
    next: u64,
    segment: Option<Arc<Segment>>,
    index: usize,
}

/// What a reader finds.
pub(crate) enum Peek<'a> {
    Message(&'a Stored),
    /// All below the second offset is gone, and was not read from the first on.
    Gone(u64, u64),
    End,
}

impl Cursor {
    pub(crate) fn at(next: u64) -> Self {
        Self { next, segment: None, index: 0 }
    }

    /// The offset that is read next, or a lower one.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// The next message, which stays the next one until [`advance`](Self::advance).
    pub(crate) fn peek(&mut self, log: &Log) -> Peek<'_> {
        let here = self.segment.as_ref().is_some_and(|segment| segment.at(self.index).is_some());
        if !here {
            if self.next >= log.end() {
                return Peek::End;
            }
            // The segment may have been appended to since, or sealed; the lock of the log knows.
            match log.locate(self.next) {
                None => return Peek::End,
                Some(found) => {
                    self.segment = Some(found.segment);
                    self.index = found.index;
                    if let Some((from, to)) = found.gone {
                        self.next = to;
                        return Peek::Gone(from, to);
                    }
                }
            }
        }
        match self.segment.as_ref().and_then(|segment| segment.at(self.index)) {
            Some(stored) => Peek::Message(stored),
            None => Peek::End,
        }
    }

    /// Goes past the message that was found at `offset`.
    pub(crate) fn advance(&mut self, offset: u64) {
        self.next = offset + 1;
        self.index += 1;
    }
}
