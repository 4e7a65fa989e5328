//! One parked key.

use ebus_core::{Epoch, Key, NextOffset, PartitionId, Timestamp};

use crate::dead_letter::floor_char_boundary;

/// The most bytes of an error's text that the list keeps; the dead letter has all of it.
const MOST_ERROR: usize = 120;

/// A key whose messages go to the dead-letter topic until it is redriven.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParkedKey {
    /// The key.
    pub key: Key,
    /// Its partition.
    pub partition: PartitionId,
    /// The message that it was parked for.
    pub offset: u64,
    /// Under which ownership it was parked. Dead letters of earlier ones are none of this parking: their owner did not know yet that
    /// it had lost the partition.
    pub epoch: Epoch,
    /// All of its parked messages below this offset were redriven.
    pub redriven: NextOffset,
    /// Where in the dead-letter topic its dead letters are.
    pub letters: PartitionId,
    /// Where there the first one stands that was not redriven.
    pub next_letter: u64,
    /// When it was parked.
    pub since: Timestamp,
    /// Why; of a redrive that was given up, why that was. Cut to 120 bytes, in one line.
    pub error: String,
    /// The last redrive was given up at the message that is next.
    pub stopped: bool,
    /// It is parked no more. Its place is kept until the source has delivered all that was redriven, so that none of it runs again.
    pub(crate) done: bool,
}

impl ParkedKey {
    pub(crate) fn new(
        key: Key,
        partition: PartitionId,
        (offset, epoch): (u64, Epoch),
        letters: PartitionId,
        next_letter: u64,
        since: Timestamp,
        error: &str,
    ) -> Self {
        let redriven = NextOffset(offset);
        let error = cut(error);
        Self {
            key,
            partition,
            offset,
            epoch,
            redriven,
            letters,
            next_letter,
            since,
            error,
            stopped: false,
            done: false,
        }
    }

    /// The message at this offset was redriven; `next_letter` stands behind its letter.
    pub(crate) fn advance(&mut self, offset: u64, next_letter: u64) {
        self.redriven = NextOffset::after(offset);
        self.next_letter = next_letter;
        self.stopped = false;
    }

    /// All below this offset was redriven: it is parked no more.
    pub(crate) fn finish(&mut self, below: u64) {
        self.redriven = NextOffset(below);
        (self.done, self.stopped) = (true, false);
    }

    /// Its redrive was given up at the letter in this place.
    pub(crate) fn stop(&mut self, letter: u64, error: &str) {
        self.next_letter = letter;
        self.stopped = true;
        self.error = cut(error);
    }
}

/// Of a text what fits into one line.
fn cut(text: &str) -> String {
    let text = &text[..floor_char_boundary(text, MOST_ERROR)];
    text.replace(|c: char| c.is_control(), " ")
}
