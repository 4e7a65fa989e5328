//! When a batch is taken to its handler: full, or old enough (G4, G5).

use std::time::Duration;

use crate::config::PoolConfig;

/// When the messages of a batch are handed to its handler: when there are enough of them, or enough bytes, or when the first
/// of them has waited long enough. It does not wait for silence, so a message never waits longer than that for others.
///
/// A batch is made of messages of one topic, of whatever partitions; those of one key stand together and in order. Each shard
/// makes its own. A key is in one batch at a time, and a batch takes one place of those in flight, however large it is.
///
/// ```
/// use std::time::Duration;
/// use ebus_pool::Batch;
///
/// let batch = Batch::of(500).max_bytes(1 << 20).max_age(Duration::from_millis(20));
/// # let _ = batch;
/// ```
///
/// While the budget of the pool is nearly full, or one of its partitions is not read because it holds too much, what has gathered
/// waits for nothing: a long age does not slow a backlog down. What has gathered of a partition that is not read on because one
/// unfinished message may hold up no more there (`max_span`, or where offsets have gaps the text that is committed) waits 50 ms at
/// most: a batch of more messages than that is handed over as it is, and fills only from several partitions.
///
/// # What is together waits together
/// All keys of a batch go on when the batch has ended: a handler that is slow with one message, or hangs, holds them all. If
/// that can be, put a time-out around it; what it cuts off runs again message by message.
///
/// # Order within a batch
/// Several messages of one key may be in one batch. When one of them fails, those of its key behind it count as not begun, and
/// run again after it, whatever the handler says of them. So order per key (G2) holds for a handler that does a batch as a
/// whole, such as in one transaction, and for one that stops with a key at its first failure. A handler that cannot, such as
/// one that sends all to a bulk interface that goes on behind a failure, asks for [`distinct_keys`](Self::distinct_keys).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Batch {
    pub(crate) max: usize,
    /// `None` when nobody has asked for so many.
    max_bytes: Option<usize>,
    pub(crate) max_age: Duration,
    pub(crate) distinct_keys: bool,
}

/// The bytes of a batch where nobody says how many, if the budget has so many.
const DEFAULT_BYTES: usize = 4 << 20;

impl Batch {
    /// Up to so many messages; 4 MiB, or the budget if that is less, and 50 ms unless more is said.
    pub const fn of(messages: usize) -> Self {
        Self { max: messages, max_bytes: None, max_age: Duration::from_millis(50), distinct_keys: false }
    }

    /// Up to so many bytes of keys, headers and payloads. A message that is larger is a batch by itself.
    pub const fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// The bytes of a batch in a pool with this budget.
    pub(crate) fn bytes_within(&self, budget: usize) -> usize {
        self.max_bytes.unwrap_or(DEFAULT_BYTES.min(budget))
    }

    /// How long the first message waits for others, from when it was its key's turn. With zero a batch takes what is there
    /// and waits for nothing.
    pub const fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    /// At most one message of each key in a batch: order per key then asks nothing of the handler. A key's next message waits
    /// for the next batch, so few keys make small batches.
    pub const fn distinct_keys(mut self) -> Self {
        self.distinct_keys = true;
        self
    }

    /// What is wrong with it, in a pool with these settings.
    pub(crate) fn problems(&self, config: &PoolConfig) -> Vec<String> {
        let mut problems = Vec::new();
        if config.at_most_once {
            problems.push(
                "at_most_once handles message by message: a batch that fails in part would run again; give the topic a handler of \
                 single messages"
                    .into(),
            );
        }
        for (what, value, name, budget) in [
            ("messages", self.max, "budget_messages", config.budget_messages),
            ("bytes", self.bytes_within(config.budget_bytes), "budget_bytes", config.budget_bytes),
        ] {
            // A budget of 0 is refused for itself.
            if value == 0 && budget > 0 {
                problems.push(format!("a batch of 0 {what} is never handled; give at least 1"));
            } else if value > budget {
                problems.push(format!(
                    "a batch of {value} {what} never fills, because {name} is {budget}; lower the one or raise the other"
                ));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_may_be_as_large_as_the_budget_and_not_larger() {
        let config = PoolConfig::new(ebus_core::Group::new("g").expect("legal"))
            .with_budget_messages(10)
            .with_budget_bytes(100);
        let problems = |messages, bytes| Batch::of(messages).max_bytes(bytes).problems(&config).len();
        assert_eq!(problems(10, 100), 0);
        assert_eq!(problems(11, 101), 2);
        assert_eq!(problems(0, 0), 2);
        assert_eq!(problems(1, 1), 0);
    }

    /// It was refused for 4,194,304 bytes, which nobody had named.
    #[test]
    fn p5_bytes_that_nobody_asked_for_are_those_of_the_budget() {
        let config = PoolConfig::new(ebus_core::Group::new("g").expect("legal")).with_budget_bytes(1 << 20);
        assert_eq!(Batch::of(8).problems(&config), Vec::<String>::new());
        assert_eq!(Batch::of(8).bytes_within(1 << 20), 1 << 20);
        assert_eq!(Batch::of(8).bytes_within(1 << 30), 4 << 20);
        assert_eq!(Batch::of(8).max_bytes(4 << 20).problems(&config).len(), 1, "it was asked for");
    }
}
