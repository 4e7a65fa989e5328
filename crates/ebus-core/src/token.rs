//! Fencing tokens: which ownership a message was delivered under (G3).

use std::fmt;

/// One ownership of one partition by one member. Grows with every owner, in one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of the next owner.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A source's own dense number for a partition, stable while the source lives: an index, so that nothing on the
/// path of a message hashes a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

impl Slot {
    /// As an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One ownership: a partition, by its slot, under an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owned {
    /// The partition.
    pub slot: Slot,
    /// The ownership of it.
    pub epoch: Epoch,
}

/// The right and the duty to settle one message, once.
///
/// Not `Clone`, and it stays in the pool: a handler can neither forget it, double it nor keep it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a token that is dropped is a message that is never settled"]
pub struct Token {
    owned: Owned,
    offset: u64,
}

impl Token {
    /// For sources: the token of the message at `offset`, delivered under `owned`.
    pub fn new(owned: Owned, offset: u64) -> Self {
        Self { owned, offset }
    }

    /// The ownership that it was delivered under.
    pub fn owned(&self) -> Owned {
        self.owned
    }

    /// The place in the partition.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Settlement {
    /// Handled to success, or its dead letter has its receipt, or the user asked for it to be dropped.
    Finished,
    /// Given up unfinished, because its partition is handed over: the next owner gets it.
    Dropped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p3_the_next_owner_has_a_higher_epoch_and_a_token_keeps_its_own() {
        assert_eq!(Epoch(3).next(), Epoch(4));
        let owned = Owned { slot: Slot(7), epoch: Epoch(4) };
        let token = Token::new(owned, 12);
        assert_eq!((token.owned(), token.offset(), owned.slot.index()), (owned, 12, 7));
    }
}
