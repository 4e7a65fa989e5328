//! How a source comes to own partitions, stays their owner, and gives them up (G3, G6).
//!
//! Commit, heartbeat and fence are one write, one in flight per partition. The lease counts from when the last accepted
//! write was sent, and ends for this member at two thirds: the rest is for clocks and for runs that are being cancelled.

use std::time::Duration;

use ebus_core::{Error, ErrorKind, Lease, Owned, SourceEvent, Topic};
use tokio::time::Instant;

use crate::consumer::{self, ConsumerSpec, Feed};
use crate::group::{Claimed, Outcome, Ready, Seen, fenced};
use crate::names;
use crate::part::{FeedState, Holding, Leaving, Part, PartState, Reading, Writing};
use crate::record::Record;
use crate::source::{Done, NatsSource, TopicState};
use crate::stream as topics;

/// Between two attempts to set a topic up.
const TOPIC_RETRY: Duration = Duration::from_secs(1);
/// The longest time without a look at what is due.
const LONGEST_TICK: Duration = Duration::from_secs(1);

impl NatsSource {
    /// How often an owner writes when there is nothing to commit.
    fn heartbeat(&self) -> Duration {
        self.member.lease / 5
    }

    /// How often the record of somebody else is looked at.
    fn look_every(&self) -> Duration {
        self.member.lease / 10
    }

    fn lease_end(&self, sent: Instant) -> std::time::Instant {
        (sent + self.member.lease * 2 / 3).into_std()
    }

    /// Does what is due, and says when to be called next.
    pub(crate) fn tick(&mut self, now: Instant) {
        let mut next = now + LONGEST_TICK;
        self.tick_topics(now, &mut next);
        let commit = self.commit_at.is_some_and(|at| at <= now);
        if commit {
            self.commit_at = None;
        }
        for at in 0..self.parts.len() {
            match &self.parts[at].state {
                PartState::Seeking(_) => self.tick_seeking(at, now, &mut next),
                PartState::Holding(_) => self.tick_holding(at, now, commit, &mut next),
            }
        }
        if let Some(at) = self.commit_at {
            next = next.min(at);
        }
        self.next_tick = next;
    }

    fn tick_topics(&mut self, now: Instant, next: &mut Instant) {
        let mut due = Vec::new();
        for (topic, state) in &mut self.topics {
            match state {
                TopicState::Failed(at) if *at <= now => {
                    *state = TopicState::Busy;
                    due.push(topic.clone());
                }
                TopicState::Failed(at) => *next = (*next).min(*at),
                TopicState::Busy | TopicState::Ready => {}
            }
        }
        for topic in due {
            let (member, start) = (self.member.clone(), self.options.start);
            self.jobs.push(Box::pin(async move {
                let ready = member.set_up(&topic, start).await;
                Done::Ready(topic, ready)
            }));
        }
    }

    fn tick_seeking(&mut self, at: usize, now: Instant, next: &mut Instant) {
        let Part { id, wanted, state: PartState::Seeking(seeking), .. } = &mut self.parts[at] else { return };
        if !*wanted || seeking.busy {
            return;
        }
        if seeking.next_look > now {
            *next = (*next).min(seeking.next_look);
            return;
        }
        seeking.busy = true;
        let (member, id) = (self.member.clone(), id.clone());
        self.jobs.push(Box::pin(async move { Done::Looked(at, member.look(&id.topic, id.partition).await) }));
    }

    fn tick_holding(&mut self, at: usize, now: Instant, commit: bool, next: &mut Instant) {
        let Part { wanted, state: PartState::Holding(holding), .. } = &mut self.parts[at] else { return };
        let owned = holding.owned;
        let lease_end = holding.lease.deadline().map(Instant::from_std);
        if lease_end.is_some_and(|end| end <= now) {
            let error = Error::new(
                ErrorKind::Unavailable,
                "no write of the group's record was accepted for two thirds of the lease",
            );
            self.lose(at, error);
            *next = now;
            return;
        }
        if !*wanted && holding.leaving.is_none() {
            let deadline = now + self.options.revoke_within;
            holding.leaving = Some(Leaving { deadline, released: false });
            let deadline = deadline.into_std();
            self.events.push(SourceEvent::Revoking { owned: vec![owned], deadline });
        }
        let released = match &holding.leaving {
            Some(leaving) if !leaving.released && leaving.deadline <= now => {
                self.give_up(at);
                *next = now;
                return;
            }
            Some(leaving) => {
                if !leaving.released {
                    *next = (*next).min(leaving.deadline);
                }
                leaving.released
            }
            None => false,
        };
        if holding.writing.is_some() {
            if commit && self.ownership.has_uncommitted(owned) {
                self.commit_at = Some(now + self.options.commit_interval);
            }
        } else if released {
            if holding.blocked_until <= now {
                self.write(at, true);
            } else {
                *next = (*next).min(holding.blocked_until);
            }
        } else if holding.next_write <= now || (commit && self.ownership.has_uncommitted(owned)) {
            // A commit that was refused comes again with the next one that is due.
            self.write(at, false);
        }
        if let PartState::Holding(holding) = &self.parts[at].state {
            if holding.writing.is_none() {
                *next = (*next).min(holding.next_write);
            }
            *next = lease_end.map_or(*next, |end| end.min(*next));
        }
        self.tick_reading(at, now, next);
    }

    /// Opens the feed of a partition if there is a reason to.
    fn tick_reading(&mut self, at: usize, now: Instant, next: &mut Instant) {
        let Part { id, stream, state: PartState::Holding(holding), .. } = &mut self.parts[at] else { return };
        let FeedState::Closed(when) = holding.reading.feed else { return };
        let reading = &mut holding.reading;
        let useful = self.has_room
            && !holding.paused
            && holding.leaving.is_none()
            && reading.held.is_none()
            && self.ownership.has_room(holding.owned, reading.next);
        if !useful || !self.member.connection.is_up() {
            return;
        }
        if when > now {
            *next = (*next).min(when);
            return;
        }
        reading.feed = FeedState::Opening;
        reading.instance += 1;
        reading.unread_since = None;
        let (owned, instance) = (holding.owned, reading.instance);
        let spec = ConsumerSpec {
            stream: stream.name.clone(),
            name: Some(names::consumer(&self.member.group, id.partition, holding.epoch, instance)),
            filter: stream.filter(id.partition),
            from: reading.next,
        };
        let (connection, topic, mark) = (self.member.connection.clone(), id.topic.clone(), stream.mark);
        self.jobs.push(Box::pin(async move {
            // The claim has just looked; later the stream may be another one of the same name.
            if instance > 1 {
                match topics::find(&connection, &topic, "read the topic").await {
                    Ok(found) if found.mark != mark => return Done::Replaced(at, owned),
                    Ok(_) => {}
                    Err(error) => return Done::Opened(at, owned, instance, Err(error)),
                }
            }
            Done::Opened(at, owned, instance, Feed::open(&connection, spec).await)
        }));
    }

    /// Begins the one write that is commit, heartbeat and fence, and, as the last one, gives the partition up.
    fn write(&mut self, at: usize, release: bool) {
        let Part { id, stream, state: PartState::Holding(holding), .. } = &mut self.parts[at] else { return };
        let owned = holding.owned;
        let snapshot = self.ownership.begin_commit(owned);
        let commit = snapshot.is_some();
        let Some(position) =
            snapshot.or_else(|| self.ownership.ledger(owned).map(|ledger| ledger.position()))
        else {
            return;
        };
        holding.writes += 1;
        holding.writing = Some(Writing { commit, release });
        let mut record = Record {
            write: holding.writes,
            consumer: holding.reading.instance,
            ..self.member.owned(stream.mark, &position, holding.epoch)
        };
        if release {
            record.owner.clear();
        }
        let (member, id, revision) = (self.member.clone(), id.clone(), holding.revision);
        let within = self.member.lease / 3;
        self.jobs.push(Box::pin(async move {
            Done::Wrote(at, owned, member.put(&id.topic, id.partition, record, revision, within).await)
        }));
    }

    /// Takes in what a future came to.
    pub(crate) fn done(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Ready(topic, ready) => self.set_up(topic, ready, now),
            Done::Looked(at, looked) => self.looked(at, looked, now),
            Done::Claimed(at, claimed) => self.claimed(at, claimed, now),
            Done::Wrote(at, owned, outcome) if self.part_of(owned) == Some(at) => {
                self.wrote(at, outcome, now)
            }
            Done::Opened(at, owned, instance, opened) if self.part_of(owned) == Some(at) => {
                self.opened(at, instance, opened, now);
            }
            Done::Replaced(at, owned) if self.part_of(owned) == Some(at) => {
                let error = Error::new(ErrorKind::NotFound, "the topic was deleted and made anew");
                self.lose(at, error);
            }
            // Of an ownership that has ended.
            Done::Wrote(..) | Done::Opened(..) | Done::Replaced(..) => {}
        }
        self.next_tick = self.next_tick.min(now);
    }

    fn set_up(&mut self, topic: Topic, ready: Result<Ready, Error>, now: Instant) {
        if !self.topics.contains_key(&topic) {
            return; // not subscribed any more
        }
        match ready {
            Ok(ready) => self.add_topic(&ready),
            Err(error) => {
                self.events.push(SourceEvent::Trouble(error));
                self.topics.insert(topic, TopicState::Failed(now + TOPIC_RETRY));
            }
        }
    }

    fn looked(&mut self, at: usize, looked: Result<Result<Seen, u64>, Error>, now: Instant) {
        let again = now + self.look_every();
        let (lease, owner) = (self.member.lease, self.member.owner.clone());
        let closing = self.closing;
        let Part { id, stream, state: PartState::Seeking(seeking), wanted, .. } = &mut self.parts[at] else {
            return;
        };
        seeking.busy = false;
        seeking.next_look = again;
        if closing || !*wanted {
            return;
        }
        let seen = match looked {
            Ok(Ok(seen)) => seen,
            Ok(Err(_)) => {
                seeking.next_look = now + TOPIC_RETRY;
                let error = Error::new(ErrorKind::NotFound, "the group's record of this partition is gone")
                    .with_context("topic", &id.topic)
                    .with_context("partition", id.partition);
                self.events.push(SourceEvent::Trouble(error));
                return;
            }
            Err(error) => {
                seeking.watch = None;
                self.events.push(SourceEvent::Trouble(error));
                return;
            }
        };
        let free = match seen.owner() {
            None => true,
            Some(other) if *other == *owner => true,
            Some(other) => {
                let lease = lease.max(seen.lease());
                let watch = match &mut seeking.watch {
                    Some(watch) => {
                        watch.saw(seen.revision, seen.answered, lease);
                        *watch
                    }
                    none => *none.insert(crate::watch::Watch::new(seen.revision, seen.answered)),
                };
                let dead = watch.is_dead(seen.asked, lease);
                if !dead && !std::mem::replace(&mut seeking.reported, true) {
                    let error = fenced(&id.topic, id.partition, other);
                    self.events.push(SourceEvent::Trouble(error));
                }
                dead
            }
        };
        if !free {
            return;
        }
        seeking.busy = true;
        let (member, topic, partition) = (self.member.clone(), id.topic.clone(), id.partition);
        let known = stream.clone();
        self.jobs.push(Box::pin(async move {
            // The stream as it is now: it may be another one, or shorter.
            let claimed = match topics::find(&member.connection, &topic, "source").await {
                Ok(found) if partition >= found.partitions => Err(found
                    .check_partition(partition, "source")
                    .err()
                    .unwrap_or_else(|| crate::error::no_topic(&known.topic, "source"))),
                Ok(found) => {
                    let claimed = member.claim(&found, partition, &seen).await;
                    claimed.map(|claimed| Claimed { stream: Some(found.into()), ..claimed })
                }
                Err(error) => Err(error),
            };
            Done::Claimed(at, claimed)
        }));
    }

    fn claimed(&mut self, at: usize, claimed: Result<Claimed, Error>, now: Instant) {
        let again = now + self.look_every();
        let Some(seeking) = self.parts[at].seek() else { return };
        seeking.busy = false;
        match claimed {
            Ok(claimed) => self.hold(at, claimed),
            Err(error) => {
                seeking.next_look = again;
                seeking.watch = None;
                if error.kind() != ErrorKind::Fenced {
                    self.events.push(SourceEvent::Trouble(error));
                }
            }
        }
    }

    /// Begins an ownership.
    pub(crate) fn hold(&mut self, at: usize, claimed: Claimed) {
        let now = Instant::now();
        let lease = Lease::until(self.lease_end(claimed.sent));
        let next_write = claimed.sent + self.heartbeat();
        let deadline = now + self.options.revoke_within;
        let part = &mut self.parts[at];
        if let Some(stream) = claimed.stream {
            part.stream = stream;
        }
        let assigned =
            self.ownership.assign(part.id.clone(), claimed.epoch, &claimed.position, lease.clone());
        let owned = assigned.owned;
        let slot = owned.slot.index();
        if self.by_slot.len() <= slot {
            self.by_slot.resize(slot + 1, usize::MAX);
        }
        self.by_slot[slot] = at;
        if let Some(name) = claimed.former {
            consumer::remove(&self.member.connection, &part.stream.name, name);
        }
        // A claim that was accepted after the source was told to close goes straight back.
        let leaving = self.closing.then_some(Leaving { deadline, released: true });
        part.state = PartState::Holding(Box::new(Holding {
            owned,
            epoch: claimed.epoch,
            revision: claimed.revision,
            writes: 0,
            lease,
            renewed: claimed.sent,
            next_write,
            blocked_until: now,
            writing: None,
            leaving,
            reading: Reading::new(claimed.position.watermark.0, now),
            paused: false,
        }));
        if let Some(trouble) = claimed.trouble {
            tracing::warn!(group = %self.member.group, %trouble, "a partition was taken over with a correction");
            self.events.push(SourceEvent::Trouble(trouble));
        }
        match self.events.last_mut() {
            Some(SourceEvent::Assigned { owned }) => owned.push(assigned),
            _ => self.events.push(SourceEvent::Assigned { owned: vec![assigned] }),
        }
        self.next_tick = now;
    }

    fn wrote(&mut self, at: usize, outcome: Outcome, now: Instant) {
        let heartbeat = self.heartbeat();
        let retry = now + self.look_every();
        let Part { id, state: PartState::Holding(holding), .. } = &mut self.parts[at] else { return };
        let owned = holding.owned;
        let Some(Writing { commit, release }) = holding.writing.take() else { return };
        match outcome {
            Outcome::Accepted { revision, sent } => {
                holding.revision = revision;
                holding.renewed = sent;
                holding.next_write = sent + heartbeat;
                let end = (sent + self.member.lease * 2 / 3).into_std();
                holding.lease.extend(end);
                if commit {
                    self.ownership.commit_done(owned, true);
                }
                if release {
                    self.released(at, Ok(()));
                }
            }
            Outcome::Adopted { revision, same } => {
                holding.revision = revision;
                holding.next_write = now;
                if commit {
                    self.ownership.commit_done(owned, same);
                }
                if release && same {
                    self.released(at, Ok(()));
                }
            }
            Outcome::Fenced { by } => {
                let error = fenced(&id.topic, id.partition, &by);
                if release { self.released(at, Err(error)) } else { self.lose(at, error) }
            }
            Outcome::Failed(error) => {
                holding.next_write = retry;
                holding.blocked_until = retry;
                if commit {
                    self.ownership.commit_done(owned, false);
                    self.commit_at = Some(self.commit_at.map_or(retry, |at| at.min(retry)));
                }
                let too_late = holding.leaving.as_ref().is_some_and(|leaving| leaving.deadline <= now);
                if release && too_late {
                    self.released(at, Err(error));
                } else {
                    self.events.push(SourceEvent::Trouble(error));
                }
            }
        }
    }

    /// The end of a hand-over.
    fn released(&mut self, at: usize, committed: Result<(), Error>) {
        let Some(owned) = self.end(at) else { return };
        self.events.push(SourceEvent::Released { owned: vec![owned], committed });
    }

    /// The end of an ownership that was not given up.
    pub(crate) fn lose(&mut self, at: usize, why: Error) {
        let id = self.parts[at].id.clone();
        let Some(owned) = self.end(at) else { return };
        let mut why = why.with_operation("source");
        if !why.context().any(|(name, _)| name == "partition") {
            why = why.with_context("partition", id);
        }
        tracing::warn!(group = %self.member.group, %why, "a partition was lost");
        self.events.push(SourceEvent::Lost { owned: vec![owned] });
        self.events.push(SourceEvent::Trouble(why));
    }

    /// A hand-over that was not answered in time: lost for the driver, released for the others.
    fn give_up(&mut self, at: usize) {
        if self.parts[at].holding().is_some_and(|holding| holding.writing.is_none()) {
            self.write(at, true);
        }
        self.lose(at, Error::new(ErrorKind::Timeout, "the hand-over was not answered before its deadline"));
    }

    fn end(&mut self, at: usize) -> Option<Owned> {
        self.close_feed(at);
        let now = Instant::now();
        let part = &mut self.parts[at];
        let owned = part.holding()?.owned;
        self.ownership.end(owned);
        let (id, stream, wanted) = (part.id.clone(), part.stream.clone(), part.wanted);
        *part = Part { wanted, ..Part::seeking(id, stream, None, now) };
        self.next_tick = now;
        Some(owned)
    }
}
