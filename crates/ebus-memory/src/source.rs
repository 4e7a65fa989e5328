//! One member of a group: what it owns, what it reads, and what it owes (G1, G3, G5, G6).
//!
//! Everything is done from within `recv`, in this order: what the group says, what the owner of the source asked for,
//! commits that are due, deadlines of the group, messages. Nothing but waiting for one of these awaits.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{
    Error, ErrorKind, Lease, Owned, Ownership, Settlement, Source, SourceEvent, SourceOptions, Token, Topic,
};
use tokio::time::{Instant, Sleep};

use crate::broker::MemoryBroker;
use crate::connection::Connection;
use crate::group::GroupState;
use crate::member::{Mail, Member, later};
use crate::reading::Readings;

/// The longest position text where the user names none: room for the default span with gaps between offsets too.
const MAX_POSITION_LEN: usize = 64 << 10;

/// One member of a group.
///
/// Dropped without [`close`](Source::close) it is as good as killed: its partitions go to the others without a last commit.
pub(crate) struct MemorySource {
    broker: MemoryBroker,
    options: SourceOptions,
    group: Arc<GroupState>,
    member: Arc<Member>,
    ownership: Ownership,
    readings: Readings,
    /// What `recv` says next.
    events: Vec<SourceEvent>,
    releases: Vec<Owned>,
    /// Of which somebody waits for a commit.
    asked: Vec<Owned>,
    subscription: Option<Vec<Topic>>,
    void_releases: u64,
    last_commit: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Live,
    /// It has left; `recv` has nothing more to say.
    Ended,
    Crashed,
}

impl MemorySource {
    /// Joins the group; the positions of a new group are kept when this returns.
    ///
    /// # Errors
    /// `NotFound` for a topic that does not exist, by the policy; `Closed`.
    pub(crate) fn join(
        broker: MemoryBroker,
        connection: &Connection,
        mut options: SourceOptions,
    ) -> Result<Self, Error> {
        // Commits that fail come back as trouble at this pace.
        let interval = options.commit_interval().max(Duration::from_millis(1));
        options = options.with_commit_interval(interval);
        let topics = options.topics.iter().map(|topic| broker.topic_or_create(topic, "source"));
        let known = topics.collect::<Result<Vec<_>, _>>()?;
        let now = Instant::now();
        let member = Member::new(broker.next_member(), options.revoke_within(), broker.origin(), now);
        let member = Arc::new(member);
        connection.add(&member)?;
        let group = broker.with_group(&options.group, |group| {
            group.join(&member, &options.topics, options.start, &known);
            group.clone()
        });
        Ok(Self {
            ownership: Ownership::new(options.limits.or_max_position_len(MAX_POSITION_LEN)),
            broker,
            options,
            group,
            member,
            readings: Readings::default(),
            events: Vec::new(),
            releases: Vec::new(),
            asked: Vec::new(),
            subscription: None,
            void_releases: 0,
            last_commit: now,
            timer: None,
            phase: Phase::Live,
        })
    }

    /// All that is not a message; nothing here waits.
    fn work(&mut self, now: Instant) {
        if self.phase != Phase::Live {
            return;
        }
        if self.member.has_ended() {
            return self.finish();
        }
        if let Some(topics) = self.subscription.take() {
            self.options.topics = topics;
            self.rejoin();
        }
        self.open_mail();
        self.hand_over();
        self.commit_asked();
        if now >= later(self.last_commit, self.options.commit_interval()) {
            self.last_commit = now;
            if let Some(error) = self.commit_all() {
                self.events.push(SourceEvent::Trouble(error));
            }
        }
        self.group.look(now);
        self.open_mail();
    }

    fn rejoin(&mut self) {
        let (mut known, mut missing) = (Vec::new(), Vec::new());
        for topic in &self.options.topics {
            match self.broker.topic_or_create(topic, "subscribe") {
                Ok(found) => known.push(found),
                Err(error) => {
                    missing.push(topic);
                    self.events.push(SourceEvent::Trouble(error));
                }
            }
        }
        self.group = self.broker.with_group(&self.options.group, |group| {
            group.join(&self.member, &self.options.topics, self.options.start, &known);
            group.clone()
        });
        // Created since: whoever created it looked for its readers before this one had joined.
        for created in missing.into_iter().filter_map(|topic| self.broker.topic(topic)) {
            self.group.topic_created(&created);
        }
    }

    fn open_mail(&mut self) {
        loop {
            let mail = self.member.take_mail();
            if mail.is_empty() {
                return;
            }
            mail.into_iter().for_each(|mail| self.read_mail(mail));
        }
    }

    fn read_mail(&mut self, mail: Mail) {
        match mail {
            Mail::Assigned { log, epoch, position, trouble } => {
                self.events.extend(trouble.map(SourceEvent::Trouble));
                let assigned = self.ownership.assign(log.id.clone(), epoch, &position, Lease::unlimited());
                self.readings.add(assigned.owned, epoch, log, position.watermark.0);
                match self.events.last_mut() {
                    Some(SourceEvent::Assigned { owned }) => owned.push(assigned),
                    _ => self.events.push(SourceEvent::Assigned { owned: vec![assigned] }),
                }
            }
            Mail::Revoking { partition, epoch, deadline } => {
                let Some(reading) = self.readings.find(&partition, epoch) else { return };
                reading.revoking = true;
                let (one, until) = (reading.owned, deadline.into_std());
                match self.events.last_mut() {
                    Some(SourceEvent::Revoking { owned, deadline }) if *deadline == until => owned.push(one),
                    _ => self.events.push(SourceEvent::Revoking { owned: vec![one], deadline: until }),
                }
            }
            Mail::Lost { partition, epoch } => {
                if let Some(owned) = self.readings.find(&partition, epoch).map(|reading| reading.owned) {
                    self.lose(owned);
                }
            }
            Mail::PutOut => {
                self.lose_all();
                let error = Error::new(
                    ErrorKind::Timeout,
                    "put out of the group: recv was not called for max_idle; joining again",
                )
                .with_operation("recv")
                .with_context("group", &self.options.group)
                .with_context("max_idle", format_args!("{:?}", self.broker.config().max_idle));
                tracing::warn!(%error, "a member was idle for too long");
                self.events.push(SourceEvent::Trouble(error));
                self.rejoin();
            }
            Mail::Crashed => {
                self.phase = Phase::Crashed;
                self.events.clear();
                self.end_all();
            }
        }
    }

    fn end(&mut self, owned: Owned) {
        self.ownership.end(owned);
        self.readings.remove(owned, &self.member);
    }

    fn lose(&mut self, one: Owned) {
        self.end(one);
        match self.events.last_mut() {
            Some(SourceEvent::Lost { owned }) => owned.push(one),
            _ => self.events.push(SourceEvent::Lost { owned: vec![one] }),
        }
    }

    fn lose_all(&mut self) {
        let all: Vec<_> = self.readings.iter().map(|reading| reading.owned).collect();
        all.into_iter().for_each(|owned| self.lose(owned));
    }

    fn end_all(&mut self) {
        let all: Vec<_> = self.readings.iter().map(|reading| reading.owned).collect();
        all.into_iter().for_each(|owned| self.end(owned));
    }

    /// The end of hand-overs that the owner of the source has answered: a last commit, then the next owner may begin.
    fn hand_over(&mut self) {
        let mut ready = Vec::new();
        let mut committed = Ok(());
        for owned in std::mem::take(&mut self.releases) {
            match self.readings.get(owned).map(|reading| reading.revoking) {
                Some(true) => {
                    if let Err(error) = self.commit(owned) {
                        committed = Err(error);
                    }
                    ready.push(owned);
                }
                // Nobody asked for it.
                Some(false) => self.void_releases += 1,
                // Counted as void by the ownership.
                None => drop(self.ownership.end(owned)),
            }
        }
        let known =
            |owned: &Owned| self.readings.get(*owned).map(|reading| (reading.log.id.clone(), reading.epoch));
        let asked: Vec<_> = ready.iter().filter_map(known).collect();
        if asked.is_empty() {
            return;
        }
        let accepted = self.group.release(self.member.id, asked);
        ready.retain(|owned| {
            self.readings.get(*owned).is_some_and(|reading| accepted.contains(&reading.log.id))
        });
        ready.iter().for_each(|owned| self.end(*owned));
        if !ready.is_empty() {
            self.events.push(SourceEvent::Released { owned: ready, committed });
        }
    }

    /// Commits what finished in a partition since its last commit, if anything.
    fn commit(&mut self, owned: Owned) -> Result<(), Error> {
        let Some(reading) = self.readings.get(owned) else { return Ok(()) };
        let Some(position) = self.ownership.begin_commit(owned) else { return Ok(()) };
        let result = self.group.commit(self.member.id, &reading.log, reading.epoch, &position);
        if self.ownership.commit_done(owned, result.is_ok()) {
            self.tell_committed(owned);
        }
        result
    }

    /// Commits what somebody waits for. What is refused is committed again with all the rest, at its interval.
    fn commit_asked(&mut self) {
        for owned in std::mem::take(&mut self.asked) {
            if self.ownership.is_asked(owned)
                && let Err(error) = self.commit(owned)
                && error.kind() != ErrorKind::Fenced
            {
                self.events.push(SourceEvent::Trouble(error));
            }
        }
    }

    fn tell_committed(&mut self, one: Owned) {
        match self.events.last_mut() {
            Some(SourceEvent::Committed { owned }) => owned.push(one),
            _ => self.events.push(SourceEvent::Committed { owned: vec![one] }),
        }
    }

    /// The first error that is not about a partition taken away, which the mail tells by itself.
    fn commit_all(&mut self) -> Option<Error> {
        let all: Vec<_> = self.uncommitted().collect();
        let errors = all.into_iter().filter_map(|owned| self.commit(owned).err());
        errors.filter(|error| error.kind() != ErrorKind::Fenced).last()
    }

    fn uncommitted(&self) -> impl Iterator<Item = Owned> + '_ {
        let owned = self.readings.iter().map(|reading| reading.owned);
        owned.filter(|owned| self.ownership.has_uncommitted(*owned))
    }

    /// The connection is closed under it: a last commit, and out.
    fn finish(&mut self) {
        self.open_mail();
        if self.phase == Phase::Live {
            let error = self.commit_all();
            self.events.extend(error.map(SourceEvent::Trouble));
            self.lose_all();
            self.leave();
        }
    }

    fn leave(&mut self) {
        self.phase = Phase::Ended;
        self.end_all();
        self.group.leave(self.member.id);
    }

    fn append(&mut self, room: usize, out: &mut Vec<SourceEvent>) -> usize {
        let before = out.len();
        out.append(&mut self.events);
        if room > 0 && self.phase == Phase::Live {
            let mut troubles = Vec::new();
            self.readings.read(&mut self.ownership, room, out, &mut troubles);
            out.extend(troubles.into_iter().map(SourceEvent::Trouble));
        }
        out.extend(self.ownership.full_changes());
        out.len() - before
    }

    fn taken_away(&self) -> Error {
        Error::new(
            ErrorKind::Fenced,
            "taken away before its last commit; what finished since the one before runs again",
        )
        .with_operation("close")
        .with_context("group", &self.options.group)
    }

    async fn wait(&mut self) {
        let commit =
            self.uncommitted().next().map(|_| later(self.last_commit, self.options.commit_interval()));
        let due = commit.into_iter().chain(self.group.next_look()).min();
        let woken = self.member.woken().notified();
        let Some(due) = due else { return woken.await };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        tokio::select! {
            () = woken => {}
            () = timer.as_mut() => {}
        }
    }
}

#[async_trait]
impl Source for MemorySource {
    async fn recv(&mut self, room: usize, out: &mut Vec<SourceEvent>) -> Result<usize, Error> {
        // Messages may be ready for ever: give others of this thread their turn.
        tokio::task::coop::consume_budget().await;
        let began = Instant::now();
        let max_idle = self.broker.config().max_idle;
        if self.member.resting_since().is_some_and(|since| later(since, max_idle) <= began) {
            self.group.put_out(self.member.id);
        }
        let _receiving = self.member.receive(began);
        loop {
            self.work(Instant::now());
            if self.phase == Phase::Crashed {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "this member was crashed by fault injection; join anew",
                )
                .with_operation("recv")
                .with_context("group", &self.options.group));
            }
            let appended = self.append(room, out);
            if appended > 0 || self.phase == Phase::Ended {
                return Ok(appended);
            }
            if room == 0 || self.readings.arm(&self.member) {
                self.wait().await;
            }
        }
    }

    fn settle(&mut self, batch: &mut Vec<(Token, Settlement)>) {
        self.ownership.settle(batch);
    }

    fn release(&mut self, owned: &[Owned]) {
        self.releases.extend_from_slice(owned);
    }

    fn pause(&mut self, owned: &[Owned]) {
        for owned in owned {
            if let Some(reading) = self.readings.get(*owned) {
                reading.paused = true;
            }
        }
    }

    fn resume(&mut self, owned: &[Owned]) {
        for owned in owned {
            if let Some(reading) = self.readings.get(*owned) {
                reading.paused = false;
            }
        }
    }

    fn commit_now(&mut self, owned: &[Owned]) {
        for owned in owned {
            if self.ownership.ask_commit(*owned) {
                self.tell_committed(*owned);
            } else {
                self.asked.push(*owned);
            }
        }
    }

    fn subscribe(&mut self, topics: &[Topic]) {
        self.subscription = Some(topics.to_vec());
    }

    fn stale(&self) -> u64 {
        self.ownership.stale() + self.void_releases
    }

    async fn close(mut self: Box<Self>, within: Duration) -> Result<(), Error> {
        let deadline = later(Instant::now(), within);
        let mut result = Ok(());
        loop {
            let held: Vec<_> = self.readings.iter().map(|reading| reading.owned).collect();
            self.open_mail();
            // Nobody reads what the mail says any more: what was taken away is told here.
            if held.iter().any(|owned| !self.ownership.is_current(*owned)) {
                result = Err(self.taken_away());
            }
            match self.phase {
                Phase::Live => {}
                Phase::Ended => return Ok(()),
                Phase::Crashed => return Err(self.taken_away()),
            }
            let Some(error) = self.commit_all() else {
                if self.uncommitted().next().is_some() {
                    result = Err(self.taken_away());
                }
                self.leave();
                return result;
            };
            // A group whose commits are taken again wakes its members.
            if tokio::time::timeout_at(deadline, self.member.woken().notified()).await.is_err() {
                self.leave();
                return Err(error);
            }
        }
    }
}

impl Drop for MemorySource {
    fn drop(&mut self) {
        if self.phase == Phase::Live {
            self.leave();
        }
    }
}

impl std::fmt::Debug for MemorySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemorySource")
            .field("group", &self.options.group)
            .field("member", &self.member.id)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}
