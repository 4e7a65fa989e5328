//! Reading a range beside all groups.

use std::sync::Arc;

use async_trait::async_trait;
use ebus_core::{Error, Message, Reader};

use crate::cursor::{Cursor, Peek};
use crate::log::Log;

/// Reads a range of one log; what is no more there is skipped.
#[derive(Debug)]
pub(crate) struct MemoryReader {
    log: Arc<Log>,
    cursor: Cursor,
    to: u64,
}

impl MemoryReader {
    /// From `from` up to `to`, or up to what there is now.
    pub(crate) fn new(log: Arc<Log>, from: u64, to: u64) -> Self {
        let to = to.min(log.bounds().1);
        Self { log, cursor: Cursor::at(from), to }
    }
}

#[async_trait]
impl Reader for MemoryReader {
    async fn next(&mut self, most: usize, out: &mut Vec<(u64, Message)>) -> Result<usize, Error> {
        let before = out.len();
        while out.len() - before < most && self.cursor.next() < self.to {
            let offset = match self.cursor.peek(&self.log) {
                Peek::Message(stored) if stored.offset < self.to => {
                    out.push((stored.offset, stored.message.clone()));
                    stored.offset
                }
                Peek::Gone(..) => continue,
                Peek::Message(_) | Peek::End => break,
            };
            self.cursor.advance(offset);
        }
        Ok(out.len() - before)
    }
}
