//! Deals faults, and gives each its targets and its end.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Act, Link, Step, Terms};

/// A kind of fault, with what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Card {
    Join,
    Leave,
    Kill,
    /// One is killed, and within a second another.
    KillTwo,
    /// Stopped for less than a lease.
    StopShortly,
    /// Stopped for longer than a lease.
    StopLong,
    CutShortly,
    CutLong,
    StallShortly,
    StallLong,
    KillPublisher,
    CutPublisher,
    StallPublisher,
    Restart,
    KillBroker,
    FreezeBroker,
    /// One node is lost, and when it is back another.
    LoseNodes,
    Revoke,
    Lose,
    Crash,
    CommitsFail,
    PublishesFail,
}

impl Card {
    /// What can be done to processes.
    pub(crate) const PROCESSES: [Self; 7] = [
        Self::Join,
        Self::Leave,
        Self::Kill,
        Self::KillTwo,
        Self::StopShortly,
        Self::StopLong,
        Self::KillPublisher,
    ];
    /// What can be done to links.
    pub(crate) const LINKS: [Self; 6] = [
        Self::CutShortly,
        Self::CutLong,
        Self::StallShortly,
        Self::StallLong,
        Self::CutPublisher,
        Self::StallPublisher,
    ];
    /// What can be done to a broker of one node.
    pub(crate) const BROKER: [Self; 3] = [Self::Restart, Self::KillBroker, Self::FreezeBroker];
    /// What can be done to a cluster.
    pub(crate) const CLUSTER: [Self; 2] = [Self::LoseNodes, Self::Restart];
    /// What can be done on memory.
    pub(crate) const MEMORY: [Self; 9] = [
        Self::Join,
        Self::Leave,
        Self::Kill,
        Self::KillPublisher,
        Self::Revoke,
        Self::Lose,
        Self::Crash,
        Self::CommitsFail,
        Self::PublishesFail,
    ];
}

/// Before the first fault, so that there is something to lose.
const FIRST: Duration = Duration::from_secs(4);
/// Between two faults.
const GAP: Duration = Duration::from_secs(5);
const SHORTEST_GAP: Duration = Duration::from_millis(1_500);
/// One fault in so many has another one on top of it.
const AT_ONCE: u32 = 5;
/// A publisher that was killed is replaced within this.
const REPLACED_WITHIN: Duration = Duration::from_secs(3);
/// A node that is back needs this to be of use before the next may go.
const NODE_SETTLES: Duration = Duration::from_secs(8);

pub(super) struct Dealer<'t> {
    terms: &'t Terms,
    random: fastrand::Rng,
    steps: Vec<Step>,
    now: Duration,
    gap: Duration,
    /// Who is in the group, or will be.
    members: BTreeMap<u32, Membership>,
    publishers: Vec<u32>,
    publishers_busy: Duration,
    broker_busy: Duration,
    next: u32,
    next_publisher: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Membership {
    joins: Duration,
    /// Until then something is done to it.
    busy: Duration,
}

impl<'t> Dealer<'t> {
    pub(super) fn new(terms: &'t Terms) -> Self {
        let all = terms.time.saturating_sub(FIRST) / (terms.cards.len().max(1) as u32 + 1);
        Self {
            terms,
            random: fastrand::Rng::with_seed(terms.seed),
            steps: Vec::new(),
            now: FIRST,
            gap: GAP.min(all).max(SHORTEST_GAP),
            members: (1..=terms.members).map(|member| (member, Membership::default())).collect(),
            publishers: (1..=terms.publishers).collect(),
            publishers_busy: Duration::ZERO,
            broker_busy: Duration::ZERO,
            next: terms.members + 1,
            next_publisher: terms.publishers + 1,
        }
    }

    pub(super) fn deal(mut self) -> Vec<Step> {
        // The last faults shall be seen to the end.
        let end = self.terms.time.saturating_sub(self.gap);
        let mut hand = Vec::new();
        while self.now < end && !self.terms.cards.is_empty() {
            if hand.is_empty() {
                hand.clone_from(&self.terms.cards);
                self.random.shuffle(&mut hand);
            }
            if let Some(card) = hand.pop() {
                let played = self.steps.len();
                self.play(card);
                if self.steps.len() == played {
                    // Nobody is there for it now: it comes last.
                    hand.insert(0, card);
                }
            }
            // Now and then the next fault comes on top of this one.
            let gap = if self.random.u32(..AT_ONCE) == 0 {
                self.between(Duration::ZERO, SHORTEST_GAP / 5)
            } else {
                self.between(self.gap / 2, self.gap * 3 / 2)
            };
            self.now += gap;
        }
        self.steps.retain(|step| step.at < self.terms.time);
        self.steps.sort_by_key(|step| step.at);
        self.steps
    }

    fn between(&mut self, from: Duration, to: Duration) -> Duration {
        Duration::from_millis(self.random.u64(from.as_millis() as u64..=to.as_millis() as u64))
    }

    fn does(&mut self, after: Duration, act: Act) {
        self.steps.push(Step { at: self.now + after, act });
    }

    fn shortly(&mut self) -> Duration {
        self.between(self.terms.lease / 5, self.terms.lease * 3 / 5)
    }

    fn long(&mut self) -> Duration {
        self.between(self.terms.lease * 5 / 4, self.terms.lease * 2)
    }

    fn play(&mut self, card: Card) {
        match card {
            Card::Join => self.join(Duration::ZERO),
            Card::Leave => self.ends(Duration::ZERO, Act::Leave),
            Card::Kill => {
                self.ends(Duration::ZERO, Act::Kill);
                // Time enough to see the take-over by itself, now and then.
                if self.random.bool() && self.gap == GAP {
                    self.now += self.terms.lease + self.gap / 2;
                }
            }
            Card::KillTwo => {
                self.ends(Duration::ZERO, Act::Kill);
                let soon = self.between(Duration::from_millis(100), Duration::from_millis(900));
                self.ends(self.terms.lease + soon, Act::Kill);
            }
            Card::StopShortly => {
                let time = self.shortly();
                self.member_for(time, Act::Stop, Act::Continue);
            }
            Card::StopLong => {
                let time = self.long();
                self.member_for(time, Act::Stop, Act::Continue);
            }
            Card::CutShortly | Card::CutLong | Card::StallShortly | Card::StallLong => {
                let short = matches!(card, Card::CutShortly | Card::StallShortly);
                let time = if short { self.shortly() } else { self.long() };
                let how =
                    if matches!(card, Card::CutShortly | Card::CutLong) { Act::Cut } else { Act::Stall };
                self.member_for(
                    time,
                    |member| how(Link::Member(member)),
                    |member| Act::Heal(Link::Member(member)),
                );
            }
            // One publisher at a time: the others go on.
            Card::KillPublisher | Card::CutPublisher | Card::StallPublisher
                if self.publishers_busy > self.now => {}
            Card::KillPublisher => {
                let which = self.random.usize(..self.publishers.len());
                let new = self.next_publisher;
                self.next_publisher += 1;
                let old = std::mem::replace(&mut self.publishers[which], new);
                let later = self.between(Duration::ZERO, REPLACED_WITHIN);
                self.does(Duration::ZERO, Act::KillPublisher(old));
                self.does(later, Act::Publish(new));
                self.publishers_busy = self.now + later;
            }
            Card::CutPublisher | Card::StallPublisher => {
                let link = Link::Publisher(self.publishers[self.random.usize(..self.publishers.len())]);
                let time = self.long();
                let how = if card == Card::CutPublisher { Act::Cut } else { Act::Stall };
                self.does(Duration::ZERO, how(link));
                self.does(time, Act::Heal(link));
                self.publishers_busy = self.now + time;
            }
            Card::Restart => self.node(Act::NodeStop, Act::NodeStart, Duration::from_millis(500)),
            Card::KillBroker => self.node(Act::NodeKill, Act::NodeStart, Duration::from_secs(2)),
            Card::FreezeBroker => self.node(Act::NodeFreeze, Act::NodeThaw, self.terms.lease / 2),
            Card::LoseNodes => {
                self.node(Act::NodeKill, Act::NodeStart, Duration::from_secs(12));
                self.now = self.now.max(self.broker_busy);
                self.node(Act::NodeKill, Act::NodeStart, Duration::from_secs(12));
            }
            Card::Revoke => {
                let which = self.random.u64(..);
                self.does(Duration::ZERO, Act::Revoke(which));
            }
            Card::Lose => {
                let which = self.random.u64(..);
                self.does(Duration::ZERO, Act::Lose(which));
            }
            Card::Crash => self.ends(Duration::ZERO, Act::Crash),
            Card::CommitsFail => self.broken_for(Act::CommitsFail, Act::CommitsWork),
            Card::PublishesFail => self.broken_for(Act::PublishesFail, Act::PublishesWork),
        }
    }

    fn join(&mut self, after: Duration) {
        let member = self.next;
        self.next += 1;
        self.does(after, Act::Join(member));
        let joins = self.now + after;
        self.members.insert(member, Membership { joins, busy: joins + self.gap / 2 });
    }

    /// A member ends; another joins some time later, unless there are too many. One is always left.
    fn ends(&mut self, after: Duration, how: impl FnOnce(u32) -> Act) {
        let at = self.now + after;
        if self.members.values().filter(|member| member.joins <= at).count() < 2 {
            return;
        }
        let Some(member) = self.idle(after) else { return };
        self.members.remove(&member);
        self.does(after, how(member));
        if self.members.len() < self.terms.members as usize {
            let later = self.between(Duration::from_millis(500), self.terms.lease * 3 / 2);
            self.join(after + later);
        }
    }

    fn member_for(&mut self, time: Duration, begin: impl FnOnce(u32) -> Act, end: impl FnOnce(u32) -> Act) {
        let Some(member) = self.idle(Duration::ZERO) else { return };
        self.does(Duration::ZERO, begin(member));
        self.does(time, end(member));
        let busy = self.now + time + self.gap / 2;
        self.members.entry(member).and_modify(|member| member.busy = busy);
    }

    /// A member to which nothing is being done at that time.
    fn idle(&mut self, after: Duration) -> Option<u32> {
        let at = self.now + after;
        let idle = self.members.iter().filter(|(_, member)| member.busy <= at);
        let idle: Vec<u32> = idle.map(|(number, _)| *number).collect();
        self.random.choice(idle)
    }

    /// One node at a time, and with time to settle between.
    fn node(&mut self, begin: fn(usize) -> Act, end: fn(usize) -> Act, time: Duration) {
        if self.broker_busy > self.now {
            return;
        }
        let node = self.random.usize(..self.terms.nodes);
        let time = self.between(time / 2, time);
        self.does(Duration::ZERO, begin(node));
        self.does(time, end(node));
        self.broker_busy = self.now + time + NODE_SETTLES;
    }

    fn broken_for(&mut self, begin: Act, end: Act) {
        if self.broker_busy > self.now {
            return;
        }
        let time = self.shortly();
        self.does(Duration::ZERO, begin);
        self.does(time, end);
        self.broker_busy = self.now + time;
    }
}
