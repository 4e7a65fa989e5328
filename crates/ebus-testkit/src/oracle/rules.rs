//! What the oracle has to know about a scenario beside its history.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::history::Outcome;

/// What a scenario asked for, where that changes what is allowed. Each rule names what it allows or demands more.
#[derive(Debug, Clone)]
pub struct Rules {
    pub(super) findings: usize,
    pub(super) readers: BTreeSet<(String, String)>,
    pub(super) unfinished_ok: BTreeSet<String>,
    pub(super) drop_rejected: BTreeSet<String>,
    pub(super) drop_on_failure: BTreeSet<String>,
    pub(super) at_most_once: BTreeSet<String>,
    pub(super) parks: BTreeSet<String>,
    pub(super) begins: BTreeMap<(String, String, u32), u64>,
    pub(super) cancel_within: Duration,
    pub(super) commit_within: Option<Duration>,
    pub(super) starts_within: Option<Duration>,
    pub(super) recovers_within: Option<Duration>,
    pub(super) leases: bool,
    pub(super) group_waits: Option<Duration>,
    pub(super) max_in_flight: Option<usize>,
}

impl Default for Rules {
    fn default() -> Self {
        Self::new()
    }
}

impl Rules {
    /// Every group that was ever assigned a partition of a topic reads that topic from its beginning and finishes all of it.
    pub fn new() -> Self {
        Self {
            findings: 20,
            readers: BTreeSet::new(),
            unfinished_ok: BTreeSet::new(),
            drop_rejected: BTreeSet::new(),
            drop_on_failure: BTreeSet::new(),
            at_most_once: BTreeSet::new(),
            parks: BTreeSet::new(),
            begins: BTreeMap::new(),
            cancel_within: Duration::from_secs(1),
            commit_within: None,
            starts_within: None,
            recovers_within: None,
            leases: false,
            group_waits: None,
            max_in_flight: None,
        }
    }

    /// How many findings are explained; all are counted. 20 by default.
    #[must_use]
    pub fn findings(mut self, most: usize) -> Self {
        self.findings = most;
        self
    }

    /// Demands that `group` reads `topic`, even if it was never assigned a partition of it.
    #[must_use]
    pub fn reads(mut self, group: impl Into<String>, topic: impl Into<String>) -> Self {
        self.readers.insert((group.into(), topic.into()));
        self
    }

    /// Allows that `group` has work left when the history ends. What was settled, committed or overtaken unfinished is
    /// found all the same.
    #[must_use]
    pub fn unfinished_ok(mut self, group: impl Into<String>) -> Self {
        self.unfinished_ok.insert(group.into());
        self
    }

    /// The user of `group` asked that rejected messages are dropped: a reject finishes a message.
    #[must_use]
    pub fn drop_rejected(mut self, group: impl Into<String>) -> Self {
        self.drop_rejected.insert(group.into());
        self
    }

    /// The user of `group` asked that what fails is dropped: a run that fails, panics or is rejected finishes its message, and it
    /// does not run again.
    #[must_use]
    pub fn drop_on_failure(mut self, group: impl Into<String>) -> Self {
        self.drop_on_failure.insert(group.into());
        self
    }

    /// `group` is at most once: nothing of it starts twice, whatever the excuse, or before it was settled. What was settled and never
    /// started is lost, and allowed where its ownership was lost or its last commit refused; otherwise it is counted in
    /// [`Verdict::unstarted`](super::Verdict::unstarted), for the caller to hold against what members say about themselves.
    #[must_use]
    pub fn at_most_once(mut self, group: impl Into<String>) -> Self {
        self.at_most_once.insert(group.into());
        self
    }

    /// `group` parks the keys of dead letters: nothing of a key may start while a lower message of it is a dead letter that was
    /// not redriven to success.
    #[must_use]
    pub fn parks(mut self, group: impl Into<String>) -> Self {
        self.parks.insert(group.into());
        self
    }

    /// `group` began at `offset` of this partition: what is below is none of its business.
    #[must_use]
    pub fn begins_at(
        mut self,
        group: impl Into<String>,
        topic: impl Into<String>,
        partition: u32,
        offset: u64,
    ) -> Self {
        self.begins.insert((group.into(), topic.into(), partition), offset);
        self
    }

    /// How long after `lost` the runs of the former owner may go on. 1 s by default.
    #[must_use]
    pub fn cancel_within(mut self, within: Duration) -> Self {
        self.cancel_within = within;
        self
    }

    /// Demands that what finished longer than this before a crash does not run again: the commit interval and what a commit
    /// takes.
    #[must_use]
    pub fn commit_within(mut self, within: Duration) -> Self {
        self.commit_within = Some(within);
        self
    }

    /// Demands that every excuse is bound to a fault that the history records: of that member (`killed`, `stopped`, `cut`), or of the
    /// broker (`down`). Without such a fault nothing may be lost without notice, run twice, or overlap. `within` is how long
    /// after its end a fault may still have effects: the time to connect again, and to learn what was missed.
    ///
    /// What could not be committed for such a fault is not measured by [`commit_within`](Self::commit_within) before the fault
    /// is over.
    #[must_use]
    pub fn only_faults_excuse(mut self, within: Duration) -> Self {
        self.recovers_within = Some(within);
        self
    }

    /// Demands that a member that is cut off from the broker stops by its own clock before anybody takes over: only `stopped`
    /// excuses an overlap, and no `cut` or `down`. Only with [`only_faults_excuse`](Self::only_faults_excuse).
    #[must_use]
    pub fn leases(mut self) -> Self {
        self.leases = true;
        self
    }

    /// Allows that no commit of anybody is accepted for so long after a fault of any member began or ended, nor while any member
    /// holds a revocation: the broker answers none while the group waits for a member that is not yet taken for dead, or for all to
    /// join again because one has come back, as Kafka's classic protocol does. What excuses that something is lost at all is still a fault of its own
    /// owner; and where commits of that owner were seen to go on, nobody waited. Only with
    /// [`only_faults_excuse`](Self::only_faults_excuse).
    #[must_use]
    pub fn group_waits(mut self, within: Duration) -> Self {
        self.group_waits = Some(within);
        self
    }

    /// Demands that a message starts within this time after it is stored, its partition is owned and its key is free
    /// (G4).
    #[must_use]
    pub fn starts_within(mut self, within: Duration) -> Self {
        self.starts_within = Some(within);
        self
    }

    /// Demands that at most so many runs are open in a member at once (G5).
    #[must_use]
    pub fn max_in_flight(mut self, most: usize) -> Self {
        self.max_in_flight = Some(most);
        self
    }

    pub(super) fn in_scope(&self, group: &str, topic: &str, partition: u32, offset: u64) -> bool {
        if self.begins.is_empty() {
            return true;
        }
        let begin = self.begins.get(&(group.to_owned(), topic.to_owned(), partition));
        begin.is_none_or(|begin| offset >= *begin)
    }
}

impl Rules {
    /// Whether a run of `group` that ended like this has finished its message, without being a success.
    pub(super) fn is_dropped(&self, group: &str, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Reject if self.drop_rejected.contains(group) => true,
            Outcome::Reject | Outcome::Retry | Outcome::Panic => {
                self.drop_on_failure.contains(group) || self.at_most_once.contains(group)
            }
            Outcome::Cancelled => self.at_most_once.contains(group),
            _ => false,
        }
    }

    /// How long after its end a fault has effects, in nanoseconds.
    pub(super) fn aftermath(&self) -> u64 {
        self.recovers_within.map_or(0, nanos)
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
