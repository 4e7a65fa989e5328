//! Who owned which partition when, and when runs began there.

use std::collections::{BTreeMap, HashMap};

use ebus_testkit::history::{Event, Kind};

/// One ownership.
#[derive(Debug)]
pub(super) struct Life<'a> {
    pub(super) member: &'a str,
    pub(super) partition: u32,
    pub(super) epoch: u64,
    pub(super) assigned: u64,
    pub(super) ended: u64,
}

#[derive(Debug, Default)]
pub(super) struct Lives<'a> {
    lives: Vec<Life<'a>>,
    /// Of each partition, in order of time: when, and under which epoch.
    starts: BTreeMap<u32, Vec<(u64, u64)>>,
    /// When the trouble of a member ended.
    backs: Vec<(&'a str, u64)>,
}

impl<'a> Lives<'a> {
    pub(super) fn of(events: &'a [Event], topic: &str) -> Self {
        let mut all = Self::default();
        let mut open: HashMap<(&str, u32, u64), usize> = HashMap::new();
        for event in events {
            let member = event.member.as_deref().unwrap_or_default();
            if matches!(event.kind, Kind::Continued | Kind::Healed) {
                all.backs.push((member, event.at_ns));
                continue;
            }
            if event.topic.as_deref() != Some(topic) {
                continue;
            }
            let (Some(partition), Some(epoch)) = (event.partition, event.epoch) else { continue };
            match event.kind {
                Kind::Start => all.starts.entry(partition).or_default().push((event.at_ns, epoch)),
                Kind::Assigned => {
                    open.insert((member, partition, epoch), all.lives.len());
                    let (assigned, ended) = (event.at_ns, u64::MAX);
                    all.lives.push(Life { member, partition, epoch, assigned, ended });
                }
                Kind::Released | Kind::Lost => {
                    if let Some(life) = open.remove(&(member, partition, epoch)) {
                        all.lives[life].ended = event.at_ns;
                    }
                }
                _ => {}
            }
        }
        all
    }

    pub(super) fn partitions(&self) -> impl Iterator<Item = u32> {
        self.starts.keys().copied()
    }

    /// What a member owned at `at`.
    pub(super) fn owned_at(&self, member: &str, at: u64) -> impl Iterator<Item = &Life<'a>> {
        self.lives.iter().filter(move |life| life.member == member && life.assigned < at && life.ended > at)
    }

    /// What was owned by the same member all that time.
    pub(super) fn owned_through(&self, from: u64, to: u64) -> impl Iterator<Item = &Life<'a>> {
        self.lives.iter().filter(move |life| life.assigned <= from && life.ended >= to)
    }

    /// Who had the partition next.
    pub(super) fn next_owner(&self, owned: &Life<'_>) -> Option<&Life<'a>> {
        let later =
            self.lives.iter().filter(|life| life.partition == owned.partition && life.epoch > owned.epoch);
        later.min_by_key(|life| life.epoch)
    }

    /// When the first run of a partition began after `after`, under this epoch or a later one.
    pub(super) fn first_start(&self, partition: u32, epoch: u64, after: u64) -> Option<u64> {
        let starts = self.starts.get(&partition)?;
        let from = starts.partition_point(|(at, _)| *at < after);
        starts[from..].iter().find(|(_, of)| *of >= epoch).map(|(at, _)| *at)
    }

    /// When the trouble that a member had at `at` ended.
    pub(super) fn back(&self, member: &str, at: u64) -> u64 {
        let backs = self.backs.iter().filter(|(of, back)| *of == member && *back >= at);
        backs.map(|(_, back)| *back).min().unwrap_or(u64::MAX)
    }

    /// The longest time without a start, and when it began.
    pub(super) fn longest_gap(&self, partition: u32, from: u64, to: u64) -> Option<(u64, u64)> {
        let starts = self.starts.get(&partition)?;
        let between = &starts[starts.partition_point(|(at, _)| *at < from)..];
        let between = between.iter().map(|(at, _)| *at).take_while(|at| *at < to);
        let (mut longest, mut before) = ((0, from), from);
        for at in between.chain([to]) {
            longest = longest.max((at.saturating_sub(before), before));
            before = at;
        }
        Some(longest)
    }
}
