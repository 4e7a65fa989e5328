//! How a source takes messages from its feeds: in turn, within the room of the driver and the span of each partition
//! (G2, G4, G5).

use std::task::{Context, Poll};
use std::time::Duration;

use ebus_core::{Error, ErrorKind, Inbound, SourceEvent};
use tokio::time::Instant;

use crate::consumer::{self, End, Feed};
use crate::names;
use crate::part::{FeedState, Part, PartState};
use crate::source::NatsSource;

/// The most messages of one partition at a time, so that others get their turn.
const QUOTA: usize = 256;
/// A feed that is not read for this long is closed: what it has fetched is memory that nobody sees.
const UNREAD: Duration = Duration::from_secs(5);
/// Every how many failures in a row to read there is one to see.
const REPORT_EVERY: u32 = 8;

impl NatsSource {
    /// Appends messages to `out`, at most `room`.
    pub(crate) fn read(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        out: &mut Vec<SourceEvent>,
        now: Instant,
    ) {
        let count = self.parts.len();
        if count == 0 {
            return;
        }
        let end = out.len() + room;
        self.turn = (self.turn + 1) % count;
        for step in 0..count {
            let quota = QUOTA.min(end - out.len());
            self.read_part((self.turn + step) % count, cx, quota, out, now);
        }
    }

    fn read_part(
        &mut self,
        at: usize,
        cx: &mut Context<'_>,
        quota: usize,
        out: &mut Vec<SourceEvent>,
        now: Instant,
    ) {
        let Part { state: PartState::Holding(holding), .. } = &mut self.parts[at] else { return };
        let owned = holding.owned;
        let reading = &mut holding.reading;
        if quota == 0
            || holding.paused
            || holding.leaving.is_some()
            || !holding.lease.is_current(now.into_std())
        {
            self.unread(at, now);
            return;
        }
        let end = out.len() + quota;
        while out.len() < end {
            let (offset, message) = match reading.held.take() {
                Some(held) => held,
                None => {
                    let FeedState::Open(feed) = &mut reading.feed else { return };
                    match feed.poll_next(cx) {
                        Poll::Pending => break,
                        Poll::Ready(Ok(fed)) => {
                            reading.next = fed.offset + 1;
                            reading.failures = 0;
                            if feed.has_consumer() {
                                reading.stuck = 0;
                            }
                            (fed.offset, fed.message)
                        }
                        Poll::Ready(Err(why)) => {
                            self.reopen(at, why, now);
                            return;
                        }
                    }
                }
            };
            if !self.ownership.has_room(owned, offset) {
                reading.held = Some((offset, message));
                self.ownership.hold(owned, offset);
                self.unread(at, now);
                return;
            }
            match self.ownership.track(owned, offset) {
                Ok(Some(token)) => out.push(SourceEvent::Message(Inbound { token, message })),
                // Finished by a former owner: the watermark may move.
                Ok(None) => {
                    let due = now + self.options.commit_interval();
                    let due = *self.commit_at.get_or_insert(due);
                    self.next_tick = self.next_tick.min(due);
                }
                Err(refused) => {
                    tracing::debug!(offset = refused.offset, "a message came twice from one consumer");
                }
            }
        }
        reading.unread_since = None;
    }

    /// The feed is not read now. After a while it is closed.
    fn unread(&mut self, at: usize, now: Instant) {
        let Some(holding) = self.parts[at].holding() else { return };
        let reading = &mut holding.reading;
        if !matches!(reading.feed, FeedState::Open(_)) {
            return;
        }
        if now.duration_since(*reading.unread_since.get_or_insert(now)) > UNREAD {
            self.close_feed(at);
        }
    }

    /// Closes the feed; it is opened again at once, or later if it failed before without a message in between.
    fn reopen(&mut self, at: usize, why: End, now: Instant) {
        tracing::debug!(group = %self.member.group, ?why, "a partition is read anew");
        self.close_feed(at);
        let Part { id, state: PartState::Holding(holding), .. } = &mut self.parts[at] else { return };
        let reading = &mut holding.reading;
        match why {
            End::Consumer(_) => reading.stuck += 1,
            End::Passed => reading.stuck = 0,
            End::Failed(error) => {
                reading.stuck = 0;
                let error = error.with_context("partition", &*id);
                self.events.push(SourceEvent::Trouble(error));
            }
        }
        reading.back_off(now);
        self.next_tick = now;
    }

    /// Every feed is made anew when the connection was: messages may be missing in between.
    pub(crate) fn check_generation(&mut self, now: Instant) {
        let generation = self.member.connection.generation();
        if generation == self.generation {
            return;
        }
        self.generation = generation;
        self.read_anew(1, now);
    }

    /// Closes every feed, to be opened again at once. A message whose headers cannot be read ends the connection, and whose it was
    /// nobody says: `stuck` more for each that was open.
    pub(crate) fn read_anew(&mut self, stuck: u32, now: Instant) {
        for at in 0..self.parts.len() {
            if let Some(holding) = self.parts[at].holding()
                && !matches!(holding.reading.feed, FeedState::Closed(_))
            {
                let is_raw = matches!(&holding.reading.feed, FeedState::Open(feed) if !feed.has_consumer());
                if !is_raw {
                    holding.reading.stuck += stuck;
                }
                self.close_feed(at);
                if let Some(holding) = self.parts[at].holding() {
                    holding.reading.feed = FeedState::Closed(now);
                }
            }
        }
        self.next_tick = now;
    }

    pub(crate) fn opened(&mut self, at: usize, instance: u32, opened: Result<Feed, Error>, now: Instant) {
        let Part { id, stream, state: PartState::Holding(holding), .. } = &mut self.parts[at] else { return };
        let reading = &mut holding.reading;
        let current = reading.instance == instance && matches!(reading.feed, FeedState::Opening);
        match opened {
            Ok(feed) if current => reading.feed = FeedState::Open(feed),
            Ok(feed) if feed.has_consumer() => {
                // Closed again meanwhile, such as by a reconnect.
                let name = names::consumer(&self.member.group, id.partition, holding.epoch, instance);
                consumer::remove(&self.member.connection, &stream.name, name);
            }
            Err(error) if current => {
                let report = reading.failures % REPORT_EVERY == 1 || error.kind() == ErrorKind::NotFound;
                reading.back_off(now);
                if report {
                    let error = error.with_context("partition", &*id);
                    self.events.push(SourceEvent::Trouble(error));
                }
            }
            _ => {}
        }
    }

    /// Closes the feed and removes its consumer.
    pub(crate) fn close_feed(&mut self, at: usize) {
        let now = Instant::now();
        let Part { id, stream, state: PartState::Holding(holding), .. } = &mut self.parts[at] else { return };
        let reading = &mut holding.reading;
        let was = std::mem::replace(&mut reading.feed, FeedState::Closed(now));
        reading.unread_since = None;
        if matches!(was, FeedState::Open(feed) if feed.has_consumer()) {
            let name = names::consumer(&self.member.group, id.partition, holding.epoch, reading.instance);
            consumer::remove(&self.member.connection, &stream.name, name);
        }
    }
}
