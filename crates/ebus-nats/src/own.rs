//! How a source comes to own partitions, stays their owner, and gives them up (G3, G6).
//!
//! Commit, heartbeat and fence are one write, one in flight per partition. The lease counts from when the last accepted
//! write was sent, and ends for this member at two thirds: the rest is for clocks and for runs that are being cancelled.

use std::sync::Arc;
use std::time::Duration;

use ebus_core::{Error, ErrorKind, Owned, SourceEvent, Topic};
use tokio::time::Instant;

use crate::consumer::{ConsumerSpec, Feed, STUCK};
use crate::group::{Outcome, fenced};
use crate::names;
use crate::part::{FeedState, Leaving, Part, PartState, Writing};
use crate::raw::LINGER;
use crate::record::Record;
use crate::source::{Done, NatsSource, TopicState};
use crate::stream::{self as topics, TopicStream};

/// Between two attempts to set a topic up.
pub(crate) const TOPIC_RETRY: Duration = Duration::from_secs(1);
/// The longest time without a look at what is due.
const LONGEST_TICK: Duration = Duration::from_secs(1);

impl NatsSource {
    /// How often an owner writes when there is nothing to commit.
    pub(crate) fn heartbeat(&self) -> Duration {
        self.member.lease / 5
    }

    pub(crate) fn lease_end(&self, sent: Instant) -> std::time::Instant {
        (sent + self.member.lease * 2 / 3).into_std()
    }

    /// Does what is due, and says when to be called next.
    pub(crate) fn tick(&mut self, now: Instant) {
        let mut next = now + LONGEST_TICK;
        self.tick_topics(now, &mut next);
        if self.balance.changed {
            self.share_out(now);
        }
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
        if !self.leaving {
            self.tick_balance(now, &mut next);
        }
        self.next_tick = if self.balance.changed { now } else { next };
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

    fn tick_holding(&mut self, at: usize, now: Instant, commit: bool, next: &mut Instant) {
        let Part { wanted, share, state: PartState::Holding(holding), .. } = &mut self.parts[at] else {
            return;
        };
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
        if (!*wanted || share.is_none()) && holding.leaving.is_none() {
            self.balance.changed = true;
            let deadline = now + self.options.revoke_within();
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
                self.commit_at = Some(now + self.options.commit_interval());
            }
        } else if released {
            if holding.blocked_until <= now {
                self.write(at, true);
            } else {
                *next = (*next).min(holding.blocked_until);
            }
        } else if holding.next_write <= now
            || (commit && self.ownership.has_uncommitted(owned))
            || (holding.blocked_until <= now && self.ownership.is_asked(owned))
        {
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
        let is_stuck = reading.stuck >= STUCK;
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
            let opened = if is_stuck {
                Ok(Feed::raw(&connection, spec, LINGER))
            } else {
                Feed::open(&connection, spec).await
            };
            Done::Opened(at, owned, instance, opened)
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
                let topic = self.parts[at].id.topic.clone();
                self.lose(at, error);
                self.look_again(topic.as_str(), now);
            }
            Done::Beat(beaten) => self.beaten(beaten),
            Done::Listed(listed, own) => self.listed(listed, own, now),
            Done::CleanedUp(leftover, done) => self.cleaned_up(&leftover, done),
            Done::Connected(made) => self.connected(made, now),
            Done::Left => self.left = true,
            // Of an ownership that has ended.
            Done::Wrote(..) | Done::Opened(..) | Done::Replaced(..) => {}
        }
        self.next_tick = self.next_tick.min(now);
    }

    fn set_up(&mut self, topic: Topic, ready: Result<Arc<TopicStream>, Error>, now: Instant) {
        if !self.topics.contains_key(&topic) {
            return; // not subscribed any more
        }
        match ready {
            Ok(stream) => self.add_topic(stream),
            Err(error) => {
                self.events.push(SourceEvent::Trouble(error));
                self.topics.insert(topic, TopicState::Failed(now + TOPIC_RETRY));
            }
        }
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
                let awaited = commit && self.ownership.commit_done(owned, true);
                if release {
                    self.released(at, Ok(()));
                } else if awaited {
                    self.events.push(SourceEvent::Committed { owned: vec![owned] });
                }
            }
            Outcome::Adopted { revision, same } => {
                holding.revision = revision;
                holding.next_write = now;
                let awaited = commit && self.ownership.commit_done(owned, same);
                if release && same {
                    self.released(at, Ok(()));
                } else if awaited {
                    self.events.push(SourceEvent::Committed { owned: vec![owned] });
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
                    // Whoever waits for it waits for the next one.
                    let _ = self.ownership.commit_done(owned, false);
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
        let (id, stream) = (part.id.clone(), part.stream.clone());
        *part = Part { wanted: part.wanted, share: part.share, ..Part::seeking(id, stream, now) };
        self.balance.changed = true;
        self.next_tick = now;
        Some(owned)
    }
}
