//! Which shard, and which lane of it: the hash of topic and key.

use std::num::NonZeroU64;

use ahash::RandomState;
use ebus_core::{Key, Topic};

/// Fixed, so that a run can be repeated; apart from any hash by which a broker picks partitions, so that the keys of one
/// partition spread over all shards. (The digits of pi.)
const SEEDS: [u64; 4] =
    [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89];

/// Names a lane: the hash of topic and key. Not 0, so that none at all takes no room of its own in a job.
pub(crate) type LaneKey = NonZeroU64;

/// Hashes topics and keys.
#[derive(Debug, Clone)]
pub(crate) struct Router {
    state: RandomState,
    shards: u64,
    next_without_key: u64,
}

impl Router {
    pub(crate) fn new(shards: usize) -> Self {
        let [a, b, c, d] = SEEDS;
        Self { state: RandomState::with_seeds(a, b, c, d), shards: shards as u64, next_without_key: 0 }
    }

    /// What [`lane`](Self::lane) needs of a topic, once per partition.
    pub(crate) fn topic_seed(&self, topic: &Topic) -> u64 {
        self.state.hash_one(topic.as_str())
    }

    /// The lane of a key. Two keys that share all 64 bits share a lane: still in order, only not in parallel.
    pub(crate) fn lane(&self, topic_seed: u64, key: &Key) -> LaneKey {
        LaneKey::new(self.state.hash_one(key.as_bytes()).wrapping_add(topic_seed)).unwrap_or(LaneKey::MIN)
    }

    /// The shard of a lane, by its high bits; the lane map takes the low ones.
    pub(crate) fn shard_of(&self, lane: LaneKey) -> usize {
        ((u128::from(lane.get()) * u128::from(self.shards)) >> 64) as usize
    }

    /// The shard of a message; those without a key go round all of them.
    pub(crate) fn shard(&mut self, lane: Option<LaneKey>) -> usize {
        match lane {
            Some(lane) => self.shard_of(lane),
            None => self.shard_without_key(),
        }
    }

    fn shard_without_key(&mut self) -> usize {
        self.next_without_key = (self.next_without_key + 1) % self.shards;
        self.next_without_key as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_spread_evenly_and_stay_where_they_are() {
        let router = Router::new(3);
        let seed = router.topic_seed(&Topic::new("orders").expect("legal"));
        let mut counts = [0usize; 3];
        for i in 0..30_000 {
            let key = Key::from(format!("order-{i}"));
            let shard = router.shard_of(router.lane(seed, &key));
            assert_eq!(shard, Router::new(3).shard_of(Router::new(3).lane(seed, &key)));
            counts[shard] += 1;
        }
        assert!(counts.iter().all(|count| (9_000..11_000).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_same_key_of_two_topics_has_two_lanes() {
        let router = Router::new(1);
        let key = Key::from("k");
        let lane = |topic: &str| router.lane(router.topic_seed(&Topic::new(topic).expect("legal")), &key);
        assert_ne!(lane("a"), lane("b"));
    }

    #[test]
    fn messages_without_a_key_use_every_shard() {
        let mut router = Router::new(4);
        let mut seen: Vec<usize> = (0..8).map(|_| router.shard_without_key()).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 0, 1, 1, 2, 2, 3, 3]);
    }
}
