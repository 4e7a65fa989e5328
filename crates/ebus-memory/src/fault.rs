//! What can go wrong, on request and by a seed, so that a failing run replays.
//!
//! Each fault is something that a real broker does to its clients; no promise is broken by any of them but where its
//! documentation says so.

use std::sync::Arc;
use std::time::Duration;

use ebus_core::{Error, ErrorKind, Group, NextOffset, PartitionId, Topic};

use crate::broker::MemoryBroker;
use crate::group::GroupState;
use crate::log::Log;
use crate::member::MemberId;
use crate::topic::TopicLog;

/// Makes things go wrong in a [`MemoryBroker`]. Every call is an error, `NotFound`, when what it names is not there.
#[derive(Debug, Clone)]
pub struct Faults {
    broker: MemoryBroker,
}

/// A fault of a seeded schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// [`Faults::revoke`].
    Revoke(Group, PartitionId),
    /// [`Faults::revoke_to`].
    RevokeTo(Group, PartitionId, MemberId),
    /// [`Faults::lose`].
    Lose(Group, PartitionId),
    /// [`Faults::lose_to`].
    LoseTo(Group, PartitionId, MemberId),
    /// [`Faults::crash`].
    Crash(Group, MemberId),
    /// [`Faults::commits_fail`].
    CommitsFail(Group, bool),
    /// [`Faults::unavailable`].
    Unavailable(Topic, bool),
    /// [`Faults::store_twice`].
    StoreTwice(Topic, u32),
    /// [`Faults::delay_receipts`].
    DelayReceipts(Topic, Duration),
    /// [`Faults::skip_offsets`].
    SkipOffsets(PartitionId, u64),
    /// [`Faults::trim`].
    Trim(PartitionId, u64),
}

impl Faults {
    pub(crate) fn new(broker: MemoryBroker) -> Self {
        Self { broker }
    }

    /// The members of a group, in the order of joining.
    pub fn members(&self, group: &Group) -> Vec<MemberId> {
        self.broker.group(group).map_or_else(Vec::new, |group| group.members())
    }

    /// Who owns which partition of a group's topics.
    pub fn owners(&self, group: &Group) -> Vec<(PartitionId, MemberId)> {
        self.broker.group(group).map_or_else(Vec::new, |group| group.owners())
    }

    /// Has a partition given up with notice and, once it is released, handed back to the same member (d04).
    ///
    /// # Errors
    /// `NotFound` also when nobody owns it, or it is given up already.
    pub fn revoke(&self, group: &Group, partition: &PartitionId) -> Result<(), Error> {
        found(self.group(group)?.revoke(partition, None), "partition that is owned", partition)
    }

    /// As [`revoke`](Self::revoke), but it goes to `to`; another partition may go the other way, to keep shares even.
    ///
    /// # Errors
    /// As of [`revoke`](Self::revoke).
    pub fn revoke_to(&self, group: &Group, partition: &PartitionId, to: MemberId) -> Result<(), Error> {
        found(self.group(group)?.revoke(partition, Some(to)), "partition that is owned", partition)
    }

    /// Takes a partition away without notice, as when a session timed out, and gives it to the same member again (d08).
    ///
    /// # Errors
    /// `NotFound` also when nobody owns it.
    pub fn lose(&self, group: &Group, partition: &PartitionId) -> Result<(), Error> {
        found(self.group(group)?.lose(partition, None), "partition that is owned", partition)
    }

    /// As [`lose`](Self::lose), but it goes to `to`, which may begin before its former owner has learnt of it.
    ///
    /// # Errors
    /// As of [`lose`](Self::lose).
    pub fn lose_to(&self, group: &Group, partition: &PartitionId, to: MemberId) -> Result<(), Error> {
        found(self.group(group)?.lose(partition, Some(to)), "partition that is owned", partition)
    }

    /// Kills a member: its partitions go to the others without a last commit, and its `recv` fails for good with
    /// `Unavailable`. What its handlers do meanwhile nobody can stop but its pool.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn crash(&self, group: &Group, member: MemberId) -> Result<(), Error> {
        found(self.group(group)?.crash(member), "member", member)
    }

    /// Whether commits of a group fail with `Unavailable` (d07). Assignments are the broker's own and go on.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn commits_fail(&self, group: &Group, fail: bool) -> Result<(), Error> {
        self.group(group)?.set_commits_fail(fail);
        Ok(())
    }

    /// Has every call about the parked keys of a group fail with this kind; `None` ends it.
    pub fn parking_fails(&self, group: &Group, kind: Option<ErrorKind>) {
        self.broker.with_group(group, |group| group.parked.set_fails(kind));
    }

    /// Whether publishes to a topic fail with `Unavailable` (c03). Nothing of them is stored.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn unavailable(&self, topic: &Topic, unavailable: bool) -> Result<(), Error> {
        self.topic(topic)?.set_trouble(|trouble| trouble.unavailable = unavailable);
        Ok(())
    }

    /// Stores the next `messages` of a topic twice in a row, as a publisher does that repeats one whose
    /// acknowledgement was lost. The receipt is that of the second.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn store_twice(&self, topic: &Topic, messages: u32) -> Result<(), Error> {
        self.topic(topic)?.set_trouble(|trouble| trouble.twice = messages);
        Ok(())
    }

    /// Has the receipts of a topic come so much later than its messages are stored. Zero ends it.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn delay_receipts(&self, topic: &Topic, by: Duration) -> Result<(), Error> {
        self.topic(topic)?.set_trouble(|trouble| trouble.delay = by);
        Ok(())
    }

    /// Drops all messages below an offset, whether groups have read them or not (e03, e04): **breaks G1**, which its
    /// readers are told as trouble.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn trim(&self, partition: &PartitionId, below: u64) -> Result<(), Error> {
        self.log(partition)?.trim(below);
        Ok(())
    }

    /// Leaves a gap of so many offsets at the end, as compaction or an aborted transaction does (e03).
    ///
    /// # Errors
    /// `NotFound`.
    pub fn skip_offsets(&self, partition: &PartitionId, offsets: u64) -> Result<(), Error> {
        self.log(partition)?.skip(offsets);
        Ok(())
    }

    /// Puts any bytes in the place of what a group has committed (e04, e06). They count from the next assignment on.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn overwrite_position(
        &self,
        group: &Group,
        partition: &PartitionId,
        watermark: NextOffset,
        text: &[u8],
    ) -> Result<(), Error> {
        found(self.group(group)?.overwrite(partition, watermark.0, text), "position", partition)
    }

    /// Removes a topic with its messages and makes an empty one of the same name (e04, e06): **breaks G1** for what was in it.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remake_topic(&self, topic: &Topic) -> Result<(), Error> {
        found(self.broker.remake(topic), "topic", topic)
    }

    /// Does one fault of a schedule.
    ///
    /// # Errors
    /// Those of the fault.
    pub fn apply(&self, fault: &Fault) -> Result<(), Error> {
        match fault {
            Fault::Revoke(group, partition) => self.revoke(group, partition),
            Fault::RevokeTo(group, partition, to) => self.revoke_to(group, partition, *to),
            Fault::Lose(group, partition) => self.lose(group, partition),
            Fault::LoseTo(group, partition, to) => self.lose_to(group, partition, *to),
            Fault::Crash(group, member) => self.crash(group, *member),
            Fault::CommitsFail(group, fail) => self.commits_fail(group, *fail),
            Fault::Unavailable(topic, unavailable) => self.unavailable(topic, *unavailable),
            Fault::StoreTwice(topic, messages) => self.store_twice(topic, *messages),
            Fault::DelayReceipts(topic, by) => self.delay_receipts(topic, *by),
            Fault::SkipOffsets(partition, offsets) => self.skip_offsets(partition, *offsets),
            Fault::Trim(partition, below) => self.trim(partition, *below),
        }
    }

    fn group(&self, name: &Group) -> Result<Arc<GroupState>, Error> {
        self.broker.group(name).ok_or_else(|| not_found("group", name))
    }

    fn topic(&self, name: &Topic) -> Result<Arc<TopicLog>, Error> {
        self.broker.topic(name).ok_or_else(|| not_found("topic", name))
    }

    fn log(&self, partition: &PartitionId) -> Result<Arc<Log>, Error> {
        let topic = self.topic(&partition.topic)?;
        topic
            .partitions
            .get(partition.partition as usize)
            .cloned()
            .ok_or_else(|| not_found("partition", partition))
    }
}

fn found(yes: bool, what: &'static str, name: impl std::fmt::Display) -> Result<(), Error> {
    if yes { Ok(()) } else { Err(not_found(what, name)) }
}

fn not_found(what: &'static str, name: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no such {what}"))
        .with_operation("fault")
        .with_context("name", name)
}

/// Faults drawn from a seed: the same seed on the same groups and topics draws the same faults.
///
/// It draws only such faults as break no promise: what it trims is what every group has committed. It takes back what it
/// began: `CommitsFail` and `Unavailable` are ended by the next draw that meets the same group or topic.
#[derive(Debug, Clone)]
pub struct Chaos {
    faults: Faults,
    random: u64,
    commits_may_fail: bool,
    failing: Option<Group>,
    unavailable: Option<Topic>,
}

impl Chaos {
    /// From `seed`.
    pub fn new(faults: Faults, seed: u64) -> Self {
        Self { faults, random: seed, commits_may_fail: true, failing: None, unavailable: None }
    }

    /// Draws no `CommitsFail`: then a crash repeats no more than a commit interval (G6).
    #[must_use]
    pub fn without_failing_commits(mut self) -> Self {
        self.commits_may_fail = false;
        self
    }

    /// Draws a fault for this group, or for this topic that somebody publishes to, and does it. `None` when what it drew
    /// met nothing, such as a partition that nobody owns at the moment.
    pub fn step(&mut self, group: &Group, topic: &Topic) -> Option<Fault> {
        let fault = self.draw_fault(group, topic)?;
        self.faults.apply(&fault).ok()?;
        match &fault {
            Fault::CommitsFail(group, fail) => self.failing = fail.then(|| group.clone()),
            Fault::Unavailable(topic, yes) => self.unavailable = yes.then(|| topic.clone()),
            _ => {}
        }
        tracing::debug!(?fault, "injected");
        Some(fault)
    }

    fn draw_fault(&mut self, group: &Group, topic: &Topic) -> Option<Fault> {
        let (kind, random, other) = (self.draw() % 13, self.draw(), self.draw());
        let owned = || {
            let owners = self.faults.owners(group);
            pick(&owners, random).map(|owned: &(PartitionId, MemberId)| owned.0.clone())
        };
        let member = || pick(&self.faults.members(group), other).copied();
        let log = || pick(&self.faults.broker.topic(topic)?.partitions, random).cloned();
        Some(match kind {
            0 | 1 => Fault::Revoke(group.clone(), owned()?),
            2 | 3 => Fault::RevokeTo(group.clone(), owned()?, member()?),
            4 => Fault::Lose(group.clone(), owned()?),
            5 => Fault::LoseTo(group.clone(), owned()?, member()?),
            6 if self.faults.members(group).len() > 1 => Fault::Crash(group.clone(), member()?),
            6 | 7 if self.commits_may_fail => {
                Fault::CommitsFail(group.clone(), self.failing.as_ref() != Some(group))
            }
            8 => Fault::StoreTwice(topic.clone(), 1 + (random % 4) as u32),
            9 => Fault::DelayReceipts(topic.clone(), Duration::from_millis(random % 4)),
            10 => Fault::SkipOffsets(log()?.id.clone(), if other % 4 == 0 { 1_000_000 } else { other % 9 }),
            11 => log().and_then(|log| Some(Fault::Trim(log.id.clone(), log.kept_by_all()?)))?,
            _ => Fault::Unavailable(topic.clone(), self.unavailable.as_ref() != Some(topic)),
        })
    }

    /// Ends what still goes on.
    pub fn calm(&mut self) {
        if let Some(group) = self.failing.take() {
            let _ = self.faults.commits_fail(&group, false);
        }
        if let Some(topic) = self.unavailable.take() {
            let _ = self.faults.unavailable(&topic, false);
        }
    }

    /// SplitMix64, by Sebastiano Vigna: <https://prng.di.unimi.it/splitmix64.c>.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn pick<T>(list: &[T], random: u64) -> Option<&T> {
    list.get(usize::try_from(random % list.len().max(1) as u64).unwrap_or(0))
}
