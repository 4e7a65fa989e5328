//! Which message of a key was the last one given to the publisher: whether a failed one may be published again without
//! overtaking (G7).

/// Slots of the table: with the default bound in flight, 6 % of the failures that could be tried again are not.
const SLOTS: usize = 32_768;

/// The last message of each key, by a table of fixed size that is written once for each message and read only for a failure.
///
/// Keys may share a slot: that only makes an answer more careful.
#[derive(Debug)]
pub(crate) struct LastOfKey {
    /// The sequence, counted from 1.
    last: Box<[u64]>,
}

impl Default for LastOfKey {
    fn default() -> Self {
        Self { last: vec![0; SLOTS].into_boxed_slice() }
    }
}

impl LastOfKey {
    /// A message of this key (its hash) was given to the publisher.
    pub(crate) fn enter(&mut self, key: u64, sequence: u64) {
        self.last[slot(key)] = sequence + 1;
    }

    /// Whether no later message of this key was given to the publisher.
    pub(crate) fn is_last(&self, key: u64, sequence: u64) -> bool {
        self.last[slot(key)] == sequence + 1
    }
}

/// Fibonacci hashing: the upper bits depend on all bits of the key.
fn slot(key: u64) -> usize {
    const BITS: u32 = SLOTS.trailing_zeros();
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p7_only_the_last_of_its_key_may_be_published_again() {
        let mut keys = LastOfKey::default();
        assert!(!keys.is_last(1, 0), "it was never given");
        keys.enter(1, 0);
        assert!(keys.is_last(1, 0));
        keys.enter(1, 10);
        keys.enter(2, 11);
        keys.enter(1, 12);
        assert!(keys.is_last(1, 12));
        assert!(!keys.is_last(1, 10), "12 is out");
        assert!(keys.is_last(2, 11));
    }

    #[test]
    fn p7_keys_that_share_a_slot_are_only_more_careful() {
        let mut keys = LastOfKey::default();
        let other = (1..).find(|key| slot(*key) == slot(0)).expect("there are more keys than slots");
        keys.enter(0, 1);
        keys.enter(other, 2);
        assert!(!keys.is_last(0, 1) && keys.is_last(other, 2));
    }

    #[test]
    fn neighbouring_keys_have_slots_of_their_own() {
        let slots: std::collections::HashSet<usize> = (0..1_000).map(slot).collect();
        assert!(slots.len() > 980, "{}", slots.len());
    }
}
