//! The budget: how many messages and bytes are held, and which partition holds too many (G4, G5).
//!
//! A partition may hold its fair share, and beyond that as much as is still **free**: so one hot partition alone takes at
//! most half of what the others leave, n of them leave 1/(n+1), and there is always room for those that are quick. (The
//! dynamic threshold of shared-memory switches, with factor 1.)

use ebus_core::Slot;

/// The least share of a partition in messages: enough to keep a quick partition busy between two reads.
const LEAST_SHARE: usize = 256;
/// Messages that one read asks for at most: large enough that the cost of a read is spread thin, small enough that a
/// partition passes its share by little.
const LARGEST_READ: usize = 2_048;
/// The pool is nearly full when less than this part of the budget is free: a read takes a quarter of that.
const NEARLY_FULL: usize = 64;
/// What a message is taken to weigh before one was seen: what brokers take by default.
const FIRST_GUESS_BYTES: usize = 1 << 20;
/// What a message is taken to weigh at least, so that larger ones that follow many small ones pass the bound by a factor that
/// is known.
const LEAST_GUESS_BYTES: usize = 4 << 10;

#[derive(Debug)]
pub(crate) struct Budget {
    max_messages: usize,
    max_bytes: usize,
    held: Held,
    by_slot: Vec<Held>,
    /// The largest message seen lately, in bytes: what a read of n messages may bring.
    largest: usize,
    /// Nothing was taken since the last read began.
    fresh: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl Held {
    fn take(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes;
    }

    fn give(&mut self, bytes: usize) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Budget {
    pub(crate) fn new(max_messages: usize, max_bytes: usize) -> Self {
        Self {
            max_messages,
            max_bytes,
            held: Held::default(),
            by_slot: Vec::new(),
            largest: FIRST_GUESS_BYTES,
            fresh: true,
        }
    }

    /// How many messages may be read now.
    pub(crate) fn room(&self) -> usize {
        let messages = self.max_messages.saturating_sub(self.held.messages);
        let bytes = self.max_bytes.saturating_sub(self.held.bytes);
        if messages == 0 || bytes == 0 {
            return 0;
        }
        // A quarter of what is free: a source may give all of it from one partition, and the others must have room after that.
        let messages = (messages / 4).max(1);
        messages.min((bytes / 4 / self.largest).max(1)).min(LARGEST_READ)
    }

    /// Nothing is free, or so little that reading it at once would mean to read a few messages at a time.
    pub(crate) fn is_nearly_full(&self) -> bool {
        let messages = self.max_messages.saturating_sub(self.held.messages);
        let bytes = self.max_bytes.saturating_sub(self.held.bytes);
        // Of a small budget, the part is none.
        let nearly = |free: usize, most: usize| free == 0 || free < most / NEARLY_FULL;
        nearly(messages, self.max_messages) || nearly(bytes, self.max_bytes)
    }

    /// A read begins: if it brings messages, what was seen long ago counts less.
    pub(crate) fn begin_read(&mut self) {
        self.fresh = true;
    }

    #[inline]
    pub(crate) fn take(&mut self, slot: Slot, bytes: usize) {
        if std::mem::take(&mut self.fresh) {
            self.largest = (self.largest - self.largest / 16).max(LEAST_GUESS_BYTES);
        }
        self.largest = self.largest.max(bytes);
        self.held.take(bytes);
        match self.by_slot.get_mut(slot.index()) {
            Some(held) => held.take(bytes),
            None => {
                self.by_slot.resize(slot.index() + 1, Held::default());
                self.by_slot[slot.index()].take(bytes);
            }
        }
    }

    pub(crate) fn give(&mut self, slot: Slot, bytes: usize) {
        self.held.give(bytes);
        if let Some(held) = self.by_slot.get_mut(slot.index()) {
            held.give(bytes);
        }
    }

    pub(crate) fn held(&self) -> Held {
        self.held
    }

    pub(crate) fn held_by(&self, slot: Slot) -> Held {
        self.by_slot.get(slot.index()).copied().unwrap_or_default()
    }

    /// Whether a partition, one of `partitions`, holds more than it should. One that is paused for it comes back when it
    /// holds a quarter less.
    pub(crate) fn is_over(&self, slot: Slot, partitions: usize, paused: bool) -> bool {
        let partitions = partitions.max(1);
        let held = self.held_by(slot);
        let free_messages = self.max_messages.saturating_sub(self.held.messages);
        let free_bytes = self.max_bytes.saturating_sub(self.held.bytes);
        let may_messages = (self.max_messages / partitions).max(LEAST_SHARE).min(self.max_messages);
        let may_bytes = self.max_bytes / partitions;
        let (messages, bytes) = if partitions == 1 {
            (self.max_messages, self.max_bytes)
        } else {
            (may_messages.max(free_messages), may_bytes.max(free_bytes))
        };
        if paused {
            held.messages > messages - messages / 4 || held.bytes > bytes - bytes / 4
        } else {
            held.messages > messages || held.bytes > bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p5_bounds_are_to_the_message_and_to_the_byte() {
        let mut budget = Budget::new(4_000, 40_000);
        (0..3_000).for_each(|_| budget.take(Slot(1), 10));
        (0..1_000).for_each(|_| budget.take(Slot(0), 10));
        assert!(!budget.is_over(Slot(0), 4, false), "a quarter of it is its share");
        (0..249).for_each(|_| budget.give(Slot(0), 10));
        assert!(budget.is_over(Slot(0), 4, true), "it does not hold a quarter less");
        budget.give(Slot(0), 10);
        assert!(!budget.is_over(Slot(0), 4, true), "it does");

        let mut budget = Budget::new(1_000, 1_000 * NEARLY_FULL);
        budget.take(Slot(0), 1_000 * NEARLY_FULL - 1_000);
        assert!(!budget.is_nearly_full());
        budget.take(Slot(0), 1);
        assert!(budget.is_nearly_full());
    }

    #[test]
    fn one_hot_partition_leaves_room_for_the_others() {
        let mut budget = Budget::new(10_000, 1 << 30);
        let hot = Slot(0);
        while !budget.is_over(hot, 4, false) {
            budget.take(hot, 1);
        }
        assert_eq!(budget.held_by(hot).messages, 5_001, "as much as is free");
        assert!(budget.room() > 0);
        while budget.is_over(hot, 4, true) {
            budget.give(hot, 1);
        }
        assert!(budget.held_by(hot).messages < 5_000, "comes back later than it went");
    }

    /// A source that is faster than the handlers was read three messages at a time, for ever.
    #[test]
    fn a_nearly_full_pool_says_so_until_a_read_is_worth_its_cost() {
        let mut budget = Budget::new(6_400, 1 << 30);
        for _ in 0..6_300 {
            assert!(!budget.is_nearly_full());
            budget.take(Slot(0), 1);
        }
        budget.take(Slot(0), 1);
        assert!(budget.is_nearly_full(), "99 of 6,400 are free");
        budget.give(Slot(0), 1);
        assert!(!budget.is_nearly_full());
        assert_eq!(budget.room(), 25);
        let mut bytes = Budget::new(6_400, 6_400);
        bytes.take(Slot(0), 6_301);
        assert!(bytes.is_nearly_full());
        let mut small = Budget::new(1, 1 << 20);
        assert!(!small.is_nearly_full(), "a budget of one message is never rested for");
        small.take(Slot(0), 1);
        assert_eq!(small.room(), 0);
    }

    #[test]
    fn f02_one_hot_partition_does_not_take_all_by_one_read() {
        let mut budget = Budget::new(4_096, 1 << 30);
        let (hot, quick) = (Slot(0), Slot(1));
        while !budget.is_over(hot, 4, false) {
            for _ in 0..budget.room() {
                budget.take(hot, 1);
            }
        }
        assert!(budget.room() >= 256, "{}", budget.room());
        assert!(!budget.is_over(quick, 4, false));
    }

    #[test]
    fn bytes_bound_the_next_read() {
        let mut budget = Budget::new(10_000, 1 << 20);
        budget.take(Slot(0), 1 << 18);
        assert!(budget.room() <= 3, "{}", budget.room());
        budget.take(Slot(0), 1 << 20);
        assert_eq!(budget.room(), 0);
        budget.give(Slot(0), 1 << 20);
        assert_eq!(budget.room(), 1, "one message may always come while something is free");
    }

    /// The guess shrank with every event, and after a quiet time a read asked for 4,096 messages of whatever size.
    #[test]
    fn p5_a_quiet_time_does_not_undo_the_bound_on_bytes() {
        let mut budget = Budget::new(65_536, 1 << 20);
        assert_eq!(budget.room(), 1, "nothing is known yet");
        budget.take(Slot(0), 64 << 10);
        budget.give(Slot(0), 64 << 10);
        let room = budget.room();
        for _ in 0..1_000 {
            budget.begin_read();
        }
        assert_eq!(budget.room(), room);
    }

    #[test]
    fn small_messages_are_read_by_thousands_and_what_follows_them_is_bounded() {
        let mut budget = Budget::new(65_536, 64 << 20);
        for _ in 0..200 {
            budget.begin_read();
            for _ in 0..budget.room() {
                budget.take(Slot(0), 15);
                budget.give(Slot(0), 15);
            }
        }
        assert_eq!(budget.room(), LARGEST_READ);
        let mut small = Budget { max_bytes: 1 << 20, ..budget };
        assert!(small.room() <= 64, "{}", small.room());
        small.take(Slot(0), 512 << 10);
        assert_eq!(small.room(), 1);
    }

    #[test]
    fn a_lone_partition_may_hold_all() {
        let mut budget = Budget::new(1_000, 1 << 30);
        for _ in 0..1_000 {
            budget.take(Slot(0), 1);
        }
        assert!(!budget.is_over(Slot(0), 1, false));
        assert_eq!(budget.room(), 0);
    }
}

#[cfg(test)]
#[path = "share_tests.rs"]
mod naive;
