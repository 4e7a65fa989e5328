//! Which message of a key was the last one given to the publisher: whether a failed one may be published again without
//! overtaking (G7).

use ahash::RandomState;
use std::collections::HashMap;

/// The keys of what is in flight.
#[derive(Debug)]
pub(crate) struct KeysInFlight {
    by_key: HashMap<u64, Last, RandomState>,
}

#[derive(Debug)]
struct Last {
    sequence: u64,
    in_flight: u32,
}

impl Default for KeysInFlight {
    fn default() -> Self {
        // Fixed seeds: what is hashed is a hash already.
        Self { by_key: HashMap::with_hasher(RandomState::with_seeds(1, 2, 3, 4)) }
    }
}

impl KeysInFlight {
    /// A message of this key (its hash: a collision only makes an answer more careful) was given to the publisher.
    pub(crate) fn enter(&mut self, key: u64, sequence: u64) {
        let last = self.by_key.entry(key).or_insert(Last { sequence, in_flight: 0 });
        last.sequence = sequence;
        last.in_flight += 1;
    }

    /// A message is done, stored or not: whether no later one of its key was given to the publisher.
    pub(crate) fn leave(&mut self, key: u64, sequence: u64) -> bool {
        let Some(last) = self.by_key.get_mut(&key) else { return false };
        let was_last = last.sequence == sequence;
        last.in_flight -= 1;
        if last.in_flight == 0 {
            self.by_key.remove(&key);
        }
        was_last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p7_only_the_last_of_its_key_may_be_published_again() {
        let mut keys = KeysInFlight::default();
        keys.enter(1, 10);
        keys.enter(2, 11);
        keys.enter(1, 12);
        assert!(keys.leave(1, 12));
        assert!(!keys.leave(1, 10), "12 is out, though it is done");
        assert!(keys.leave(2, 11));
        keys.enter(1, 13);
        assert!(keys.leave(1, 13));
        assert!(keys.by_key.is_empty());
    }
}
