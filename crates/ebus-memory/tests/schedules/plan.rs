//! What a seed decides before a schedule begins, and what each message will meet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ebus_core::{LedgerLimits, SourceOptions};
use ebus_pool::{PoolConfig, RetryPolicy};

/// Random numbers that a seed brings back (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From `least` to `most`, both included.
    pub(crate) fn within(&mut self, least: u64, most: u64) -> u64 {
        least + self.draw() % (most - least + 1)
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.draw().is_multiple_of(n)
    }

    pub(crate) fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.within(least, most))
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What the runs of a message do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    AtOnce,
    After(Duration),
    /// Fails so often, then is handled.
    Fails(u32),
    /// Panics so often, before or after its first await, then is handled.
    Panics(u32),
    /// Is rejected: a dead letter.
    Rejected,
    /// Fails until its attempts are used up: a dead letter.
    Hopeless,
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) partitions: u32,
    pub(crate) keys: u64,
    pub(crate) steps: u64,
    /// No commit fails and no member freezes: then a crash repeats at most one commit interval.
    pub(crate) commits_kept: bool,
    pub(crate) retain: u64,
    pub(crate) max_idle: Duration,
    pub(crate) max_in_flight: usize,
    shards: usize,
    budget: usize,
    retry: Duration,
    pub(crate) commit_interval: Duration,
    revoke_within: Duration,
    limits: LedgerLimits,
    /// Members handle in batches of so many messages, and as old as this.
    pub(crate) batches: Option<(usize, Duration)>,
    /// Keys of dead letters are parked, at most so many in a partition.
    pub(crate) parks: Option<usize>,
    /// Every member is at most once: no dead letters, no retries.
    pub(crate) once: bool,
    /// What is redriven does not fail any more.
    pub(crate) healed: Arc<AtomicBool>,
}

impl Plan {
    pub(crate) fn draw(seed: u64) -> Self {
        let random = &mut Random::new(seed ^ 0x5eed);
        let limits = LedgerLimits::default();
        let mut plan = Self {
            seed,
            partitions: random.within(1, 4) as u32,
            keys: random.within(2, 12),
            steps: random.within(15, 40),
            commits_kept: random.one_in(2),
            retain: if random.one_in(4) { random.within(100, 200) } else { 1 << 20 },
            max_idle: random.millis(200, 3_000),
            max_in_flight: random.within(1, 12) as usize,
            shards: random.within(1, 3) as usize,
            budget: if random.one_in(3) { random.within(1, 30) as usize } else { 65_536 },
            retry: random.millis(1, 300),
            commit_interval: random.millis(1, 300),
            revoke_within: random.millis(20, 3_000),
            limits: match random.within(0, 3) {
                0 => limits.with_max_span(random.within(1, 40) as usize),
                1 => limits.with_max_position_len(random.within(81, 140) as usize),
                _ => limits,
            },
            parks: random.one_in(2).then(|| random.within(1, 4) as usize),
            batches: None,
            once: false,
            healed: Arc::default(),
        };
        if random.one_in(3) {
            // One that the budget could never fill is refused.
            let messages = (random.within(1, 8) as usize).min(plan.budget);
            plan.batches = Some((messages, random.millis(0, 50)));
        }
        plan.once = random.one_in(4);
        if plan.once {
            (plan.parks, plan.batches) = (None, None);
        }
        plan
    }

    pub(crate) fn options(&self, options: SourceOptions) -> SourceOptions {
        options
            .with_limits(self.limits)
            .with_commit_interval(self.commit_interval)
            .with_revoke_within(self.revoke_within)
    }

    pub(crate) fn pool(&self, pool: PoolConfig) -> PoolConfig {
        let pool = pool
            .with_shards(self.shards)
            .with_max_in_flight(self.max_in_flight.max(self.shards))
            .with_budget_messages(self.budget);
        if self.once {
            return pool.with_at_most_once();
        }
        pool.with_retry(RetryPolicy::fixed(self.retry).max_attempts(4))
    }

    /// Of a dead letter that is redriven: one in four fails again while nothing is healed.
    pub(crate) fn fate_again(&self, key: u64, version: u64) -> Fate {
        let random = &mut Random::new(!self.seed ^ mix(key << 32 | version));
        match random.within(0, 7) {
            0 | 1 if !self.healed.load(Ordering::Relaxed) => Fate::Rejected,
            2 => Fate::Fails(1),
            3 | 4 => Fate::After(random.millis(1, 50)),
            _ => Fate::AtOnce,
        }
    }

    /// Of version `version` of key `key`. One key is slow.
    pub(crate) fn fate(&self, key: u64, version: u64) -> Fate {
        let random = &mut Random::new(self.seed ^ mix(key << 32 | version));
        if key == 0 {
            return Fate::After(random.millis(20, 200));
        }
        match random.within(0, 99) {
            0..50 => Fate::AtOnce,
            50..70 => Fate::After(random.millis(1, 20)),
            70..74 => Fate::After(random.millis(100, 4_000)),
            74..84 => Fate::Fails(random.within(1, 3) as u32),
            84..92 => Fate::Panics(random.within(1, 3) as u32),
            92..97 => Fate::Rejected,
            _ => Fate::Hopeless,
        }
    }
}
