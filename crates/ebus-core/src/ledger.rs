//! What of a partition is finished, and how far the low watermark may move (G1, G6).
//!
//! Pure bookkeeping for one partition under one epoch. No I/O, no clock.

use crate::inherited::Inherited;
use crate::position::{MAX_FRAME_LEN, varint_len};
use crate::{NextOffset, OffsetSet, Position};

/// The longest position text where neither the user nor the backend names one: below the 4,096 bytes that Kafka's brokers
/// take as commit metadata by default (`offset.metadata.max.bytes`), which is the least of all backends.
const LEAST_POSITION_LEN: usize = 3_500;

/// Bytes by which the bound of a re-read can pass the bound under which the same messages were read at first: the distance
/// to the next one counted twice (10 bytes at most), and the halves of two runs. What is new leaves them free, so that
/// whoever owns the partition next has room for all that was read before.
const REREAD_BYTES: usize = 12;

/// Entries that have gone before the others are moved to their place: 1 KiB; fewer in tests, so that short ones get there.
const LEAST_GONE: usize = if cfg!(test) { 4 } else { 64 };

/// Limits of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LedgerLimits {
    /// The most messages between the low watermark and the highest one read: what one stuck message can hold up.
    ///
    /// The text of the position can stop intake before that, see [`Full::Text`]. 16,384 messages whose offsets follow each
    /// other take 2,900 characters at most and fit everywhere. With gaps between the offsets (transactions, compaction, a
    /// stream shared by many partitions) a message takes up to 2 characters where the gaps are below 128, 3.4 where
    /// they are below 16,384: all 16,384 messages fit the 64 KiB of NATS and memory, while in the 3,500 characters that
    /// Kafka keeps there is room for about 1,700 and 1,000 messages.
    pub max_span: usize,
    /// The longest position text in bytes; `None` is what the backend keeps for sure.
    pub max_position_len: Option<usize>,
}

impl Default for LedgerLimits {
    /// 16,384 messages, and as much text as the backend keeps.
    fn default() -> Self {
        Self { max_span: 16_384, max_position_len: None }
    }
}

impl LedgerLimits {
    /// With this many messages of uncommitted span, at least 1.
    #[must_use]
    pub fn with_max_span(mut self, messages: usize) -> Self {
        self.max_span = messages.max(1);
        self
    }

    /// With this many bytes of position text, whatever the backend says: a commit that the broker finds too long is refused.
    #[must_use]
    pub fn with_max_position_len(mut self, bytes: usize) -> Self {
        self.max_position_len = Some(bytes);
        self
    }

    /// For backends: with this many bytes of position text where the user named none.
    #[must_use]
    pub fn or_max_position_len(mut self, bytes: usize) -> Self {
        self.max_position_len.get_or_insert(bytes);
        self
    }
}

/// Why no further message of a partition is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Full {
    /// [`max_span`](LedgerLimits::max_span) messages are between the low watermark and what was read.
    Span,
    /// The text of the position could outgrow [`max_position_len`](LedgerLimits::max_position_len), because the offsets have
    /// gaps: the span is smaller than what was asked for.
    Text,
}

/// What to do with a message that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracked {
    /// It is not finished: hand it on.
    Deliver,
    /// A former owner finished it: skip it.
    FinishedBefore,
}

/// A message that must not be handed on: its offset is not above all that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The offset.
    pub offset: u64,
}

/// The ledger of one partition under one epoch.
///
/// The low watermark moves over the longest finished prefix **in order of arrival**; offsets may have gaps of any size. It
/// never moves back. What former owners finished above the watermark is part of every position until reading has passed it.
///
/// Tracking is O(1). Finishing is O(1) where offsets are dense, O(log span) across gaps.
#[derive(Debug, Clone)]
pub struct Ledger {
    max_span: usize,
    /// Bytes that a set may have before it is made text.
    max_set_bytes: usize,
    /// In order of arrival. A vector, of which those before `first` have gone: cheaper per message than a ring.
    entries: Vec<Entry>,
    first: usize,
    read_to: NextOffset,
    inherited: Inherited,
    unfinished: usize,
    cost: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: u64,
    cost: u8,
    finished: bool,
}

impl Ledger {
    /// A ledger that starts at `position`.
    pub fn new(position: &Position, limits: LedgerLimits) -> Self {
        let max_position_len = limits.max_position_len.unwrap_or(LEAST_POSITION_LEN);
        Self {
            max_span: limits.max_span,
            max_set_bytes: max_position_len.saturating_sub(MAX_FRAME_LEN) / 4 * 3,
            entries: Vec::new(),
            first: 0,
            read_to: position.watermark,
            inherited: Inherited::new(position),
            unfinished: 0,
            cost: 0,
        }
    }

    /// Whether a message at `offset` may be read now: the span has room, and no outcome of what is tracked can make the
    /// position's text longer than its limit. While nothing is tracked there is always room, and always for what former
    /// owners with the same limits had read. O(1).
    pub fn has_room(&self, offset: u64) -> bool {
        self.full(offset).is_none()
    }

    /// Why a message at `offset` may not be read now; `None` when it may. O(1).
    pub fn full(&self, offset: u64) -> Option<Full> {
        let span = self.span();
        if span == 0 {
            return None;
        }
        if span >= self.max_span {
            return Some(Full::Span);
        }
        let inherited_end = self.inherited.end().unwrap_or(0);
        let end = inherited_end.max(offset.saturating_add(1));
        let bitmap = end.saturating_sub(self.watermark().0).div_ceil(8);
        let reserved = if offset < inherited_end { 0 } else { REREAD_BYTES };
        let fits = bitmap <= self.max_set_bytes as u64
            || self.most_run_bytes(offset).saturating_add(reserved) <= self.max_set_bytes;
        (!fits).then_some(Full::Text)
    }

    /// The most bytes that runs of finished offsets can take: each tracked offset's distance to the one before it is part
    /// of one number, every other offset can begin a run, and what is inherited stands behind them.
    fn most_run_bytes(&self, offset: u64) -> usize {
        let next = varint_len(offset.saturating_sub(self.read_to.0).saturating_add(1));
        self.cost + next + (self.span() + 2) / 2 + self.inherited.cost(self.read_to.0)
    }

    /// Takes up a message that was read. Messages come in ascending order of offset.
    ///
    /// # Errors
    /// `Refused` when `offset` is tracked already, finished already, below what was read, or one that has no next.
    #[inline]
    pub fn track(&mut self, offset: u64) -> Result<Tracked, Refused> {
        if offset < self.read_to.0 || offset == u64::MAX {
            return Err(Refused { offset });
        }
        let cost = varint_len(offset - self.read_to.0 + 1) as u8;
        let finished = self.inherited.pass(offset);
        self.read_to = NextOffset::after(offset);
        self.entries.push(Entry { offset, cost, finished });
        self.cost += usize::from(cost);
        if finished {
            self.advance();
            return Ok(Tracked::FinishedBefore);
        }
        self.unfinished += 1;
        Ok(Tracked::Deliver)
    }

    /// Marks the message at `offset` finished. False when it is not tracked or was finished before.
    #[inline]
    pub fn finish(&mut self, offset: u64) -> bool {
        let tracked = &mut self.entries[self.first..];
        let Some(index) = find(tracked, offset) else { return false };
        let entry = &mut tracked[index];
        if entry.finished {
            return false;
        }
        entry.finished = true;
        self.unfinished -= 1;
        if index == 0 {
            self.advance();
        }
        true
    }

    fn advance(&mut self) {
        while let Some(entry) = self.entries.get(self.first).filter(|entry| entry.finished) {
            self.cost -= usize::from(entry.cost);
            self.first += 1;
        }
        // What is moved is never more than what has gone: O(1) per message.
        if self.first >= LEAST_GONE && self.first >= self.entries.len() / 2 {
            self.entries.drain(..self.first);
            self.first = 0;
        }
    }

    fn tracked(&self) -> &[Entry] {
        &self.entries[self.first..]
    }

    /// All below it is finished: the first unfinished message that was read, or what is read next.
    pub fn watermark(&self) -> NextOffset {
        self.tracked().first().map_or(self.read_to, |entry| NextOffset(entry.offset))
    }

    /// The offset after the last one that was read.
    pub fn read_to(&self) -> NextOffset {
        self.read_to
    }

    /// Messages that are read and not finished.
    pub fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Messages between the low watermark and what was read.
    pub fn span(&self) -> usize {
        self.entries.len() - self.first
    }

    /// One snapshot of what is finished. O(span).
    pub fn position(&self) -> Position {
        let mut finished = OffsetSet::new();
        let mut run: Option<(u64, u64)> = None;
        for entry in self.tracked() {
            if entry.finished {
                run = Some((run.map_or(entry.offset, |run| run.0), entry.offset + 1));
            } else if let Some((start, end)) = run.take() {
                finished.push(start, end);
            }
        }
        if let Some((start, end)) = run {
            finished.push(start, end);
        }
        for (start, end) in self.inherited.runs() {
            finished.push(start, end);
        }
        Position { watermark: self.watermark(), finished }
    }
}

/// Where `offset` stands: first the place it has where there are no gaps, then by bisection.
fn find(tracked: &[Entry], offset: u64) -> Option<usize> {
    let distance = usize::try_from(offset.checked_sub(tracked.first()?.offset)?).unwrap_or(usize::MAX);
    if tracked.get(distance).is_some_and(|entry| entry.offset == offset) {
        return Some(distance);
    }
    tracked.binary_search_by_key(&offset, |entry| entry.offset).ok()
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
