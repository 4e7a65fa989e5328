//! One member of a group (G1, G2, G3, G5, G6).
//!
//! All state is here and all work is done from within `recv`: looks, claims and writes are futures that the source keeps,
//! so a dropped `recv` loses nothing, and a driver that stops calling it stops its heartbeats too. Each partition is by
//! itself ([`Part`]): sought while it is part of this member's share, then held. What that share is stands in
//! [`crate::balance`].

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::Subscriber;
use async_trait::async_trait;
use ebus_core::{
    Error, FOR_EVER, Owned, Ownership, PartitionId, Settlement, Source, SourceEvent, SourceOptions, Token,
    Topic,
};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::balance::Balance;
use crate::connection::Connection;
use crate::consumer::Feed;
use crate::group::{Claimed, Member, Outcome, Seen};
use crate::part::{Leaving, Part, PartState};
use crate::peers::Beaten;
use crate::roster::{Leftover, Listing, Roster};
use crate::stream::TopicStream;

/// What a future of the source came to.
pub(crate) enum Done {
    Ready(Topic, Result<Arc<TopicStream>, Error>),
    Looked(usize, Result<Result<Seen, u64>, Error>),
    Claimed(usize, Result<Claimed, Error>),
    Wrote(usize, Owned, Outcome),
    Opened(usize, Owned, u32, Result<Feed, Error>),
    /// The stream was made anew under its name.
    Replaced(usize, Owned),
    Beat(Result<Beaten, Error>),
    /// With the revision that this member's heartbeat had when the list was asked for.
    Listed(Result<Listing, Error>, u64),
    CleanedUp(Leftover, bool),
    /// In the place of a connection that has ended for good.
    Connected(Result<Box<(Connection, Subscriber)>, Error>),
    Left,
}

/// A topic and what is done about it.
pub(crate) enum TopicState {
    /// Being set up.
    Busy,
    /// Could not be set up; again at this time.
    Failed(Instant),
    Ready,
}

/// A source of JetStream messages for one member of a group.
pub(crate) struct NatsSource {
    pub(crate) member: Member,
    pub(crate) options: SourceOptions,
    pub(crate) ownership: Ownership,
    /// The other members, and this one's share.
    pub(crate) balance: Balance,
    pub(crate) parts: Vec<Part>,
    pub(crate) index: HashMap<PartitionId, usize>,
    /// The part of a slot.
    pub(crate) by_slot: Vec<usize>,
    /// What is subscribed.
    pub(crate) topics: HashMap<Topic, TopicState>,
    pub(crate) jobs: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Looks and claims among them.
    pub(crate) seeking: usize,
    /// What `recv` says next.
    pub(crate) events: Vec<SourceEvent>,
    /// When there is something to do.
    pub(crate) next_tick: Instant,
    /// When finished messages are committed, if there are any.
    pub(crate) commit_at: Option<Instant>,
    pub(crate) timer: std::pin::Pin<Box<Sleep>>,
    /// How often the connection had been made when the feeds were opened.
    pub(crate) generation: u64,
    pub(crate) link: BoxFuture<'static, Connection>,
    /// A new connection is being made in the place of one that has ended for good.
    pub(crate) connecting: bool,
    /// When that may be tried next.
    pub(crate) connect_at: Instant,
    /// The part that is read first next time.
    pub(crate) turn: usize,
    pub(crate) backend_closed: watch::Receiver<bool>,
    pub(crate) closing: bool,
    /// All is released: no heartbeat any more.
    pub(crate) leaving: bool,
    /// The group was told that this member has left.
    pub(crate) left: bool,
    /// The driver's last call had room for messages.
    pub(crate) has_room: bool,
    pub(crate) stale: u64,
}

impl NatsSource {
    pub(crate) fn new(
        member: Member,
        options: SourceOptions,
        hints: Subscriber,
        backend_closed: watch::Receiver<bool>,
    ) -> Self {
        let now = Instant::now();
        let connection = member.connection.clone();
        let roster = Roster::new(member.name().to_owned(), member.lease);
        Self {
            balance: Balance::new(roster, hints, now),
            ownership: Ownership::new(options.limits.or_max_position_len(crate::record::MAX_POSITION_LEN)),
            generation: connection.generation(),
            link: link(connection),
            connecting: false,
            connect_at: now,
            member,
            options,
            parts: Vec::new(),
            index: HashMap::new(),
            by_slot: Vec::new(),
            topics: HashMap::new(),
            jobs: FuturesUnordered::new(),
            seeking: 0,
            events: Vec::new(),
            next_tick: now,
            commit_at: None,
            timer: Box::pin(tokio::time::sleep_until(now)),
            turn: 0,
            backend_closed,
            closing: false,
            leaving: false,
            left: false,
            has_room: true,
            stale: 0,
        }
    }

    /// Takes up a topic that is set up. Its partitions are sought.
    pub(crate) fn add_topic(&mut self, stream: Arc<TopicStream>) {
        let now = Instant::now();
        self.topics.insert(stream.topic.clone(), TopicState::Ready);
        for partition in 0..stream.partitions {
            let id = PartitionId::new(stream.topic.clone(), partition);
            match self.index.get(&id) {
                Some(at) => {
                    let part = &mut self.parts[*at];
                    part.wanted = true;
                    if part.seek().is_some() {
                        part.stream = stream.clone();
                    }
                }
                None => {
                    self.index.insert(id.clone(), self.parts.len());
                    self.parts.push(Part::seeking(id, stream.clone(), now));
                }
            }
        }
        // It may have been made anew with fewer.
        for part in &mut self.parts {
            part.wanted &= part.id.topic != stream.topic || part.id.partition < stream.partitions;
        }
        self.balance.changed = true;
        self.next_tick = now;
    }

    /// The part of an ownership, if it is the present one.
    pub(crate) fn part_of(&mut self, owned: Owned) -> Option<usize> {
        if !self.ownership.is_current(owned) {
            return None;
        }
        self.by_slot.get(owned.slot.index()).copied()
    }

    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        out: &mut Vec<SourceEvent>,
    ) -> Poll<Result<usize, Error>> {
        if *self.backend_closed.borrow() {
            return Poll::Ready(Err(Error::closed("recv")));
        }
        if room > 0 && !self.has_room {
            self.next_tick = Instant::now();
        }
        self.has_room = room > 0;
        loop {
            while let Poll::Ready(Some(done)) = self.jobs.poll_next_unpin(cx) {
                self.done(done);
            }
            while let Poll::Ready(connection) = self.link.as_mut().poll(cx) {
                self.link = link(connection);
            }
            self.poll_hints(cx);
            let now = Instant::now();
            self.check_connection(now);
            self.check_generation(now);
            if now >= self.next_tick {
                self.tick(now);
                // Futures that were begun have to be polled once.
                continue;
            }
            let before = out.len();
            out.append(&mut self.events);
            self.read(cx, room, out, now);
            out.extend(self.ownership.full_changes());
            if out.len() > before {
                return Poll::Ready(Ok(out.len() - before));
            }
            if self.next_tick <= now {
                continue;
            }
            if self.timer.deadline() != self.next_tick {
                self.timer.as_mut().reset(self.next_tick);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn subscribed(&mut self, topics: &[Topic]) {
        let now = Instant::now();
        self.topics.retain(|topic, _| topics.contains(topic));
        for topic in topics {
            self.topics.entry(topic.clone()).or_insert(TopicState::Failed(now));
        }
        for part in &mut self.parts {
            part.wanted = topics.contains(&part.id.topic) && part.wanted;
        }
        self.balance.changed = true;
        self.next_tick = now;
    }
}

#[async_trait]
impl Source for NatsSource {
    async fn recv(&mut self, room: usize, out: &mut Vec<SourceEvent>) -> Result<usize, Error> {
        std::future::poll_fn(|cx| self.poll_recv(cx, room, out)).await
    }

    fn settle(&mut self, batch: &mut Vec<(Token, Settlement)>) {
        let settled = self.ownership.settle(batch);
        if settled.finished > 0 && self.commit_at.is_none() {
            let at = Instant::now() + self.options.commit_interval();
            self.commit_at = Some(at);
            self.next_tick = self.next_tick.min(at);
        }
    }

    fn release(&mut self, owned: &[Owned]) {
        for owned in owned {
            let Some(at) = self.part_of(*owned) else {
                self.stale += 1;
                continue;
            };
            match self.parts[at].holding().and_then(|holding| holding.leaving.as_mut()) {
                Some(leaving) => leaving.released = true,
                // Nobody asked for it.
                None => self.stale += 1,
            }
        }
        self.next_tick = Instant::now();
    }

    fn pause(&mut self, owned: &[Owned]) {
        self.set_paused(owned, true);
    }

    fn resume(&mut self, owned: &[Owned]) {
        self.set_paused(owned, false);
    }

    fn commit_now(&mut self, owned: &[Owned]) {
        for owned in owned {
            if self.ownership.ask_commit(*owned) {
                self.events.push(SourceEvent::Committed { owned: vec![*owned] });
            }
        }
        self.next_tick = Instant::now();
    }

    fn subscribe(&mut self, topics: &[Topic]) {
        self.subscribed(topics);
    }

    fn stale(&self) -> u64 {
        self.ownership.stale() + self.stale
    }

    async fn close(mut self: Box<Self>, within: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + within.min(FOR_EVER);
        self.closing = true;
        self.topics.clear();
        for part in &mut self.parts {
            part.wanted = false;
            if let Some(holding) = part.holding() {
                holding.leaving = Some(Leaving { deadline, released: true });
            }
        }
        self.balance.changed = true;
        let mut result = Ok(());
        let mut told = false;
        loop {
            let now = Instant::now();
            self.tick(now);
            for event in self.events.drain(..) {
                match event {
                    SourceEvent::Released { committed: Err(error), .. } => result = result.and(Err(error)),
                    SourceEvent::Lost { .. } => result = result.and(Err(crate::error::lost())),
                    _ => {}
                }
            }
            let owns = self.parts.iter().any(|part| matches!(part.state, PartState::Holding(_)));
            if !owns && self.left {
                return result;
            }
            if now >= deadline {
                return if owns { result.and(Err(crate::error::timeout("close"))) } else { result };
            }
            // No heartbeat any more; then the last word: whoever sees it finds every record released.
            self.leaving |= !owns && self.seeking == 0;
            if self.leaving && !self.is_beating() && !std::mem::replace(&mut told, true) {
                self.leave();
            }
            let wake = self.next_tick.min(deadline);
            if let Ok(Some(done)) = tokio::time::timeout_at(wake, self.jobs.next()).await {
                self.done(done);
            }
        }
    }
}

impl NatsSource {
    fn set_paused(&mut self, owned: &[Owned], paused: bool) {
        for owned in owned {
            if let Some(at) = self.part_of(*owned)
                && let Some(holding) = self.parts[at].holding()
            {
                holding.paused = paused;
            }
        }
        // What was not opened while it was paused is opened by the next tick.
        self.next_tick = Instant::now();
    }
}

/// Resolves when something happened to the connection.
pub(crate) fn link(mut connection: Connection) -> BoxFuture<'static, Connection> {
    Box::pin(async move {
        connection.changed().await;
        connection
    })
}
