//! What a pool may use, and what it does with failures.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ebus_core::{Backend, Error, ErrorKind, Group, Parking, Publisher, Topic};

use crate::RetryPolicy;
use crate::parked::{MOST_REDRIVES, ParkedSet};

/// Shards at most: each is a task, and more of them than cores run nothing sooner.
const MOST_SHARDS: usize = 1_024;

/// Where parked keys are kept, and where their dead letters are read.
#[derive(Clone)]
pub(crate) struct ParkingPlace {
    pub(crate) store: Arc<dyn Parking>,
    pub(crate) letters: Arc<dyn Backend>,
}

impl fmt::Debug for ParkingPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParkingPlace").finish_non_exhaustive()
    }
}

/// Settings of a [`Pool`](crate::Pool).
#[derive(Debug, Clone)]
#[must_use]
pub struct PoolConfig {
    pub(crate) group: Group,
    pub(crate) shards: usize,
    pub(crate) max_in_flight: usize,
    pub(crate) budget_messages: usize,
    pub(crate) budget_bytes: usize,
    pub(crate) retry: RetryPolicy,
    pub(crate) dead_letter: Option<(Topic, Publisher)>,
    pub(crate) most_parked: Option<usize>,
    pub(crate) parking: Option<ParkingPlace>,
    pub(crate) drop_rejected: bool,
    pub(crate) drop_on_failure: bool,
    pub(crate) at_most_once: bool,
    /// The user has named a retry policy.
    retry_named: bool,
    pub(crate) stuck_after: Duration,
}

impl PoolConfig {
    /// The defaults for this group: a shard per core, 1,024 runs in progress, 65,536 messages and 64 MiB held, exponential
    /// retry for ever, no dead-letter topic.
    pub fn new(group: Group) -> Self {
        Self {
            group,
            shards: std::thread::available_parallelism().map_or(1, usize::from),
            max_in_flight: 1_024,
            budget_messages: 65_536,
            budget_bytes: 64 << 20,
            retry: RetryPolicy::default(),
            dead_letter: None,
            most_parked: None,
            parking: None,
            drop_rejected: false,
            drop_on_failure: false,
            at_most_once: false,
            retry_named: false,
            stuck_after: Duration::from_secs(10),
        }
    }

    /// How many shard tasks, 1,024 at most; a handler that blocks its thread blocks one of them.
    pub fn with_shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    /// Handler runs in progress at most, over all shards. A message that waits for its retry is not in progress.
    pub fn with_max_in_flight(mut self, runs: usize) -> Self {
        self.max_in_flight = runs;
        self
    }

    /// Messages held at most, queued and in progress together (G5).
    pub fn with_budget_messages(mut self, messages: usize) -> Self {
        self.budget_messages = messages;
        self
    }

    /// Bytes of key, headers and payload held (G5). At this limit nothing more is read.
    ///
    /// A read is asked for by number of messages, so one read may pass it: it asks for as many as fill a quarter of what is free if
    /// they are as large as the largest one of the last reads (1 MiB at first, never taken for less than 4 KiB), 2,048 at most. So
    /// messages of a steady size stay within it, and larger ones that follow pass it by one read: at worst, messages of 1 MiB
    /// after many small ones, by 64 times what was free.
    pub fn with_budget_bytes(mut self, bytes: usize) -> Self {
        self.budget_bytes = bytes;
        self
    }

    /// When failed messages run again.
    pub fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self.retry_named = true;
        self
    }

    /// Where rejected messages go, and those whose attempts are used up. They are settled after the receipt. It should take larger
    /// messages than the topics that are consumed, see [`dead_letter`](crate::dead_letter).
    pub fn with_dead_letter(mut self, topic: Topic, publisher: Publisher) -> Self {
        self.dead_letter = Some((topic, publisher));
        self
    }

    /// Parks the key of a dead letter: its later messages follow into the dead-letter topic, in order, until it is
    /// [redriven](crate::redrive); at most `most` keys in a partition. Needs [`with_parking`](Self::with_parking).
    ///
    /// So many keys of up to 256 bytes must fit into what the store keeps of a partition, or the pool does not start. A key that
    /// is longer, or has bytes that are not letters, digits or one of `._:/-`, takes more of it, so that fewer of these may fit. And the
    /// lists of all partitions together take at most a quarter of the budget in bytes.
    ///
    /// When there is no place for one key more, its message is retried as if there were no dead-letter topic, and is listed as
    /// stuck. A message without a key parks nothing.
    pub fn with_parked_keys(mut self, most: usize) -> Self {
        self.most_parked = Some(most);
        self
    }

    /// Where it is kept which keys are parked, and the backend that their dead letters are read back from.
    pub fn with_parking(mut self, store: Arc<dyn Parking>, letters: Arc<dyn Backend>) -> Self {
        self.parking = Some(ParkingPlace { store, letters });
        self
    }

    /// Drops rejected messages, and those whose attempts are used up, instead of keeping them: each is logged and counted.
    pub fn with_drop_rejected(mut self) -> Self {
        self.drop_rejected = true;
        self
    }

    /// At least once, and whatever fails is dropped: a message whose run failed, panicked or was rejected is logged, counted in
    /// [`Counters::dropped`](crate::Counters::dropped), and does not run again. Exactly the failing message is lost; a crash or a
    /// hand-over repeats as without it. Of a batch that fails without naming anybody, each message runs once more, alone.
    pub fn with_drop_on_failure(mut self) -> Self {
        self.drop_on_failure = true;
        self
    }

    /// At most once: the position is committed before a run starts, so that no message runs twice, whatever happens to this process,
    /// its partitions or the broker's answers.
    ///
    /// # What is lost
    /// - What fails, panics or is rejected: logged, and counted in [`Counters::dropped`](crate::Counters::dropped).
    /// - By a crash: the runs in progress, and what was committed and not started: of each partition at most twice
    ///   [`max_in_flight`](Self::with_max_in_flight), runs in progress included.
    /// - By a partition that is lost without notice, and at the deadline of a hand-over or a drain, the same: runs that are cancelled
    ///   ([`Counters::cancelled`](crate::Counters::cancelled)), and what did not start
    ///   ([`Counters::lost`](crate::Counters::lost)). Up to the deadline what is committed is started and finished; what is held
    ///   beyond that is not committed, and is the next owner's.
    ///
    /// # Speed
    /// A message starts one round trip of a commit later. All that is to run goes with one commit, and of a key with quick runs up to
    /// 64 messages; a key with slow runs commits one at a time.
    ///
    /// # The position
    /// It is all that is known of what ran. Where somebody sets it back or damages it, messages run again.
    pub fn with_at_most_once(mut self) -> Self {
        self.at_most_once = true;
        self
    }

    /// A failed message does not run again.
    pub(crate) fn runs_once(&self) -> bool {
        self.at_most_once || self.drop_on_failure
    }

    /// By which setting messages that are given up are dropped.
    pub(crate) fn drops(&self) -> Option<&'static str> {
        let settings = [
            (self.at_most_once, "at_most_once"),
            (self.drop_on_failure, "drop_on_failure"),
            (self.drop_rejected, "drop_rejected"),
        ];
        settings.into_iter().find(|(set, _)| *set).map(|(_, name)| name)
    }

    /// What goes with neither of the settings that drop what fails.
    fn problems_of_drops(&self, problems: &mut Vec<String>) {
        if self.at_most_once && self.drop_on_failure {
            problems.push(
                "at_most_once and drop_on_failure exclude each other: the one loses what a crash met, the other repeats it; take \
                 one"
                    .into(),
            );
        }
        let Some(name) = self.drops().filter(|_| self.runs_once()) else { return };
        let with = [
            (self.retry_named, "a retry policy", "a message that failed does not run again"),
            (self.dead_letter.is_some(), "a dead-letter topic", "what failed is dropped"),
            (self.most_parked.is_some(), "parked keys", "what is dropped has no order"),
            (self.drop_rejected, "drop_rejected", "what is rejected is dropped anyway"),
        ];
        for (_, other, why) in with.iter().filter(|(set, ..)| *set) {
            problems.push(format!("{name} and {other} exclude each other: {why}; take one"));
        }
    }

    /// How long a run lasts before the state lists it as stuck.
    pub fn with_stuck_after(mut self, after: Duration) -> Self {
        self.stuck_after = after;
        self
    }

    /// The most bytes that the lists of parked keys of all partitions take together.
    pub(crate) fn most_list_bytes(&self) -> usize {
        self.budget_bytes / 4
    }

    /// How many keys are redriven at once: each holds a letter, and all of them at most an eighth of the budget.
    pub(crate) fn most_redrives(&self) -> usize {
        self.parking
            .as_ref()
            .map_or(1, |place| self.redrives_of(place.letters.capability().max_message_bytes))
    }

    fn redrives_of(&self, largest: usize) -> usize {
        (self.budget_bytes / 8 / largest.max(1)).min(self.budget_messages / 8).clamp(1, MOST_REDRIVES)
    }

    /// Whether a pool can start with these settings: to be asked before a group is joined for it. That it is given where parked keys
    /// are kept is asked for at the start alone; how many fit there, when it is given.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming all that is wrong.
    pub fn validate(&self) -> Result<(), Error> {
        let mut problems = Vec::new();
        for (name, value) in [
            ("shards", self.shards),
            ("max_in_flight", self.max_in_flight),
            ("budget_messages", self.budget_messages),
            ("budget_bytes", self.budget_bytes),
        ] {
            if value == 0 {
                problems.push(format!("{name} is 0; give at least 1"));
            }
        }
        if self.shards > MOST_SHARDS {
            problems
                .push(format!("shards is {}; give at most {MOST_SHARDS}, one a core is enough", self.shards));
        }
        problems.extend(self.retry.problems());
        self.problems_of_drops(&mut problems);
        if let (Some(limit), None, None) = (self.retry.gives_up_by(), &self.dead_letter, self.drops()) {
            problems.push(format!(
                "{limit} needs a place for messages that are given up; name a dead-letter topic, or ask for them to be \
                 dropped"
            ));
        }
        if let Some(most) = self.most_parked {
            if most == 0 {
                problems.push("the most parked keys is 0; give at least 1".into());
            }
            if self.drop_rejected {
                problems.push(
                    "parked keys and drop_rejected exclude each other: what is dropped has no order".into(),
                );
            } else if self.dead_letter.is_none() && !self.runs_once() {
                problems.push("parked keys need a dead-letter topic; name one".into());
            }
            if let (Some((letters, _)), Some(place)) = (&self.dead_letter, &self.parking) {
                let kept = place.store.max_bytes().min(self.most_list_bytes());
                let fits = ParkedSet::fits(kept, letters);
                if most > fits {
                    problems.push(format!(
                        "the most parked keys is {most}, but of a partition {kept} bytes are kept (by the backend, and at most a quarter of \
                         budget_bytes), in which at most {fits} keys of up to 256 bytes fit; ask for that or less"
                    ));
                }
            }
        }
        if self.dead_letter.is_some() && self.drop_rejected {
            problems.push("a dead-letter topic and drop_rejected exclude each other; take one".into());
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::ConfigInvalid, problems.join("; "))
            .with_operation("start")
            .with_context("group", &self.group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 16 letters of any size were held whatever the budget was.
    #[test]
    fn p5_redrives_hold_an_eighth_of_the_budget_at_most() {
        let redrives = |messages, bytes| {
            let config = PoolConfig::new(Group::new("g").expect("legal"));
            config.with_budget_messages(messages).with_budget_bytes(bytes).redrives_of(1 << 20)
        };
        assert_eq!(redrives(65_536, 1 << 30), MOST_REDRIVES);
        assert_eq!(redrives(65_536, 64 << 20), 8);
        assert_eq!(redrives(40, 64 << 20), 5);
        assert_eq!(redrives(1, 1), 1, "or nothing is ever redriven");
    }
}
