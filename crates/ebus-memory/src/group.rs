//! A group: its members, who owns which partition under which epoch, and what is committed (G1, G3, G6).
//!
//! There is no coordinator task: members call in, and whoever is receiving also looks at the deadlines of all.
//!
//! A partition changes hands in this order, whatever the reason: its owner is told `Revoking`, settles what ends, commits,
//! and releases; only then is the next epoch written and the new owner told. At the deadline it is taken away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ebus_core::{Epoch, Error, Group, NextOffset, PartitionId, Position, StartPosition, Topic};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::assign::{Readers, balance};
use crate::committed::Kept;
use crate::error;
use crate::log::Log;
use crate::member::{Mail, Member, MemberId, later};
use crate::parking::Parked;
use crate::topic::TopicLog;

/// A group of consumers.
#[derive(Debug)]
pub(crate) struct GroupState {
    pub(crate) name: Group,
    max_idle: Duration,
    origin: Instant,
    /// When somebody has to look at the deadlines, in nanoseconds since `origin`.
    next_look: AtomicU64,
    inner: Mutex<Inner>,
    pub(crate) parked: Parked,
}

#[derive(Debug)]
struct Inner {
    name: Group,
    members: BTreeMap<MemberId, Joined>,
    partitions: BTreeMap<PartitionId, Held>,
    commits_fail: bool,
}

#[derive(Debug)]
struct Joined {
    member: Arc<Member>,
    topics: BTreeSet<Topic>,
}

#[derive(Debug)]
struct Held {
    log: Arc<Log>,
    kept: Kept,
    owner: Option<Owner>,
    /// Who owns it, or shall once it is released.
    target: Option<MemberId>,
}

#[derive(Debug)]
struct Owner {
    member: MemberId,
    epoch: Epoch,
    /// Until when it may be held; `None` while it is not revoked.
    deadline: Option<Instant>,
}

impl GroupState {
    pub(crate) fn new(name: Group, max_idle: Duration, origin: Instant) -> Self {
        let inner = Inner {
            name: name.clone(),
            members: BTreeMap::new(),
            partitions: BTreeMap::new(),
            commits_fail: false,
        };
        Self {
            name,
            max_idle,
            origin,
            next_look: AtomicU64::new(u64::MAX),
            inner: Mutex::new(inner),
            parked: Parked::default(),
        }
    }

    /// Changes something, hands out what that frees, and has all members look at their mail and deadlines again.
    fn change<T>(&self, now: Instant, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner.lock();
        let result = change(&mut inner);
        inner.hand_out(now);
        self.look_again(&inner, now);
        inner.members.values().for_each(|joined| joined.member.wake());
        result
    }

    fn look_again(&self, inner: &Inner, now: Instant) {
        let deadlines = inner.partitions.values().filter_map(|held| held.owner.as_ref()?.deadline);
        let rests = inner
            .members
            .values()
            .map(|joined| later(joined.member.resting_since().unwrap_or(now), self.max_idle));
        let next = deadlines.chain(rests).min();
        let nanos =
            next.map_or(u64::MAX, |next| next.saturating_duration_since(self.origin).as_nanos() as u64);
        self.next_look.store(nanos, Ordering::Release);
    }

    /// When some member has to call [`look`](Self::look).
    pub(crate) fn next_look(&self) -> Option<Instant> {
        let nanos = self.next_look.load(Ordering::Acquire);
        (nanos != u64::MAX).then(|| self.origin + Duration::from_nanos(nanos))
    }

    /// Takes away what was not released in time, and puts out who rests too long. Without a lock before it is time.
    pub(crate) fn look(&self, now: Instant) {
        if self.next_look().is_none_or(|next| now < next) {
            return;
        }
        let max_idle = self.max_idle;
        let mut inner = self.inner.lock();
        let late = inner.take_late(now);
        let idle: Vec<_> = inner
            .members
            .values()
            .filter(|joined| joined.member.resting_since().is_some_and(|since| later(since, max_idle) <= now))
            .map(|joined| joined.member.id)
            .collect();
        for member in &idle {
            inner.remove(*member, Some(Mail::PutOut));
        }
        if late || !idle.is_empty() {
            inner.hand_out(now);
            inner.members.values().for_each(|joined| joined.member.wake());
        }
        self.look_again(&inner, now);
    }

    /// Joins, or reads other topics from now on.
    pub(crate) fn join(
        &self,
        member: &Arc<Member>,
        topics: &[Topic],
        start: StartPosition,
        known: &[Arc<TopicLog>],
    ) {
        self.change(Instant::now(), |inner| {
            let topics = topics.iter().cloned().collect();
            inner.members.insert(member.id, Joined { member: member.clone(), topics });
            known.iter().for_each(|topic| inner.ensure(topic, start));
        });
    }

    /// A topic was created, or made anew: it is read from its beginning by whom it concerns.
    pub(crate) fn topic_created(&self, topic: &TopicLog) {
        self.change(Instant::now(), |inner| {
            let wanted = inner.members.values().any(|joined| joined.topics.contains(&topic.topic));
            if wanted || inner.partitions.keys().any(|partition| partition.topic == topic.topic) {
                inner.ensure(topic, StartPosition::Earliest);
            }
        });
    }

    /// A member that is gone: what it held is free at once, and nothing more is committed for it.
    pub(crate) fn leave(&self, member: MemberId) {
        self.change(Instant::now(), |inner| inner.remove(member, None));
    }

    /// Puts a member out because its `recv` rested too long.
    pub(crate) fn put_out(&self, member: MemberId) {
        self.change(Instant::now(), |inner| inner.remove(member, Some(Mail::PutOut)));
    }

    /// Keeps a position.
    ///
    /// # Errors
    /// `Fenced` when the partition is owned by somebody else, or under another epoch.
    pub(crate) fn commit(
        &self,
        member: MemberId,
        log: &Log,
        epoch: Epoch,
        position: &Position,
    ) -> Result<(), Error> {
        let kept = Kept::new(log, position, epoch);
        {
            let mut inner = self.inner.lock();
            let fails = inner.commits_fail;
            let held = inner.owned_by(member, &log.id, epoch);
            let held = held.ok_or_else(|| error::fenced("commit", &self.name, &log.id))?;
            if fails {
                return Err(error::commit_unavailable(&self.name, &log.id));
            }
            held.kept = kept;
        }
        log.committed(&self.name, position.watermark.0);
        Ok(())
    }

    /// The end of a hand-over: the next owners may begin. Those that the member does not own any more are left out of the
    /// result: they were taken away before, and the mail says so.
    pub(crate) fn release(
        &self,
        member: MemberId,
        partitions: Vec<(PartitionId, Epoch)>,
    ) -> Vec<PartitionId> {
        self.change(Instant::now(), |inner| {
            let free = |(partition, epoch): (PartitionId, Epoch)| {
                inner.owned_by(member, &partition, epoch)?.owner = None;
                Some(partition)
            };
            partitions.into_iter().filter_map(free).collect()
        })
    }

    /// What is committed for a partition, if anything.
    pub(crate) fn committed(&self, log: &Log) -> Option<(Position, Epoch)> {
        let inner = self.inner.lock();
        let held = inner.partitions.get(&log.id).filter(|held| held.log.mark == log.mark)?;
        let beside = NextOffset(held.kept.watermark);
        let position = Position::decode(&held.kept.text, log.mark, Some(beside));
        Some((position.map_or(Position::at(beside), |(position, _)| position), held.kept.epoch))
    }

    /// Its members in the order of joining.
    pub(crate) fn members(&self) -> Vec<MemberId> {
        self.inner.lock().members.keys().copied().collect()
    }

    /// Whether it has no members; then it lets go of its logs, and must not be used again.
    pub(crate) fn dissolve(&self) -> bool {
        let mut inner = self.inner.lock();
        if !inner.members.is_empty() {
            return false;
        }
        let partitions = std::mem::take(&mut inner.partitions);
        drop(inner);
        partitions.values().for_each(|held| held.log.forget(&self.name));
        true
    }
}

/// What fault injection does to a group.
impl GroupState {
    /// Has a partition given up and handed to `to`, or back. False when nobody owns it, or it is given up already.
    pub(crate) fn revoke(&self, partition: &PartitionId, to: Option<MemberId>) -> bool {
        self.change(Instant::now(), |inner| {
            let now = Instant::now();
            let Some(held) = inner.partitions.get_mut(partition) else { return false };
            let Some(owner) = held.owner.as_mut().filter(|owner| owner.deadline.is_none()) else {
                return false;
            };
            let Some(joined) = inner.members.get(&owner.member) else { return false };
            held.target = to.or(held.target);
            owner.revoke(joined, partition, now);
            true
        })
    }

    /// Takes a partition away without notice. False when nobody owns it.
    pub(crate) fn lose(&self, partition: &PartitionId, to: Option<MemberId>) -> bool {
        self.change(Instant::now(), |inner| {
            let lost = inner.take_away(partition);
            if let Some(held) = inner.partitions.get_mut(partition).filter(|_| lost) {
                held.target = to.or(held.target);
            }
            lost
        })
    }

    pub(crate) fn crash(&self, member: MemberId) -> bool {
        self.change(Instant::now(), |inner| {
            let known = inner.members.contains_key(&member);
            inner.remove(member, Some(Mail::Crashed));
            known
        })
    }

    pub(crate) fn set_commits_fail(&self, fail: bool) {
        self.change(Instant::now(), |inner| inner.commits_fail = fail);
    }

    /// Puts bytes in the place of a committed position. False when the group does not know the partition.
    pub(crate) fn overwrite(&self, partition: &PartitionId, watermark: u64, text: &[u8]) -> bool {
        let mut inner = self.inner.lock();
        let Some(held) = inner.partitions.get_mut(partition) else { return false };
        held.kept.watermark = watermark;
        held.kept.text = text.to_vec();
        true
    }

    /// Who owns what, in order.
    pub(crate) fn owners(&self) -> Vec<(PartitionId, MemberId)> {
        let inner = self.inner.lock();
        let owned = inner.partitions.iter();
        owned.filter_map(|(partition, held)| Some((partition.clone(), held.owner.as_ref()?.member))).collect()
    }
}

impl Owner {
    fn revoke(&mut self, joined: &Joined, partition: &PartitionId, now: Instant) {
        let deadline = later(now, joined.member.revoke_within);
        self.deadline = Some(deadline);
        joined.member.post(Mail::Revoking { partition: partition.clone(), epoch: self.epoch, deadline });
    }
}

impl Inner {
    /// Has a position for each partition of a topic, resolved and kept before anybody reads it. A position of a topic that
    /// was made anew stays as it is; whoever takes over sees by its mark that it does not count.
    fn ensure(&mut self, topic: &TopicLog, start: StartPosition) {
        for log in &topic.partitions {
            match self.partitions.get(&log.id) {
                None => {
                    let at = Position::at(NextOffset(log.register(&self.name, start)));
                    let kept = Kept::new(log, &at, Epoch(0));
                    self.partitions
                        .insert(log.id.clone(), Held { log: log.clone(), kept, owner: None, target: None });
                }
                Some(held) if held.log.mark != log.mark => {
                    self.take_away(&log.id);
                    log.register(&self.name, StartPosition::Earliest);
                    if let Some(held) = self.partitions.get_mut(&log.id) {
                        held.log = log.clone();
                    }
                }
                Some(_) => {}
            }
        }
    }

    fn owned_by(&mut self, member: MemberId, partition: &PartitionId, epoch: Epoch) -> Option<&mut Held> {
        let held = self.partitions.get_mut(partition)?;
        let owner = held.owner.as_ref()?;
        (owner.member == member && owner.epoch == epoch).then_some(held)
    }

    /// Plans anew, revokes what shall go elsewhere, and gives what is free to whom it is meant for.
    fn hand_out(&mut self, now: Instant) {
        let readers: Readers = self.members.iter().map(|(id, joined)| (*id, joined.topics.clone())).collect();
        let mut targets = self.partitions.iter().map(|(id, held)| (id.clone(), held.target)).collect();
        balance(&readers, &mut targets);
        for (partition, target) in targets {
            let Some(held) = self.partitions.get_mut(&partition) else { continue };
            held.target = target;
            match &mut held.owner {
                None => held.assign(&self.name, &self.members),
                Some(owner) if Some(owner.member) != target && owner.deadline.is_none() => {
                    if let Some(joined) = self.members.get(&owner.member) {
                        owner.revoke(joined, &partition, now);
                    }
                }
                Some(_) => {}
            }
        }
    }

    /// Takes away what was not released in time; whether there was any.
    fn take_late(&mut self, now: Instant) -> bool {
        let is_late =
            |held: &Held| held.owner.as_ref().and_then(|owner| owner.deadline).is_some_and(|at| at <= now);
        let late: Vec<_> = self
            .partitions
            .iter()
            .filter(|(_, held)| is_late(held))
            .map(|(partition, _)| partition.clone())
            .collect();
        for partition in &late {
            tracing::warn!(group = %self.name, %partition, "not released in time, taken away");
            self.take_away(partition);
        }
        !late.is_empty()
    }

    fn take_away(&mut self, partition: &PartitionId) -> bool {
        let Some(owner) = self.partitions.get_mut(partition).and_then(|held| held.owner.take()) else {
            return false;
        };
        if let Some(joined) = self.members.get(&owner.member) {
            joined.member.post(Mail::Lost { partition: partition.clone(), epoch: owner.epoch });
        }
        true
    }

    fn remove(&mut self, member: MemberId, word: Option<Mail>) {
        let Some(joined) = self.members.remove(&member) else { return };
        for held in self.partitions.values_mut() {
            held.owner.take_if(|owner| owner.member == member);
        }
        if let Some(word) = word {
            joined.member.post(word);
        }
    }
}

impl Held {
    /// Gives a free partition to whom it is meant for. The next epoch is kept before the member hears of it.
    fn assign(&mut self, group: &Group, members: &BTreeMap<MemberId, Joined>) {
        let Some(joined) = self.target.and_then(|target| members.get(&target)) else { return };
        let epoch = self.kept.epoch.next();
        let (position, trouble) = self.kept.position(group, &self.log);
        self.kept = Kept::new(&self.log, &position, epoch);
        self.owner = Some(Owner { member: joined.member.id, epoch, deadline: None });
        self.log.committed(group, position.watermark.0);
        joined.member.post(Mail::Assigned { log: self.log.clone(), epoch, position, trouble });
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
