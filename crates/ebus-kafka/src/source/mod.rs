//! A member's view of its group: what it owns, what it reads, what it commits (G1, G3, G5, G6).
//!
//! Two librdkafka handles: the member (`member.rs`) has the partitions, this one's fetch handle has their messages. A partition
//! goes through these states, all of them kept here:
//!
//! ```text
//! assigned ─▶ looked up ─▶ claimed (epoch + 1 is committed) ─▶ read ─▶ revoking ─▶ released (last commit) ─▶ unassigned
//! ```
//! Nothing here waits but `recv` and `close`: look-ups run on blocking threads and answer through a channel.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{
    Error, ErrorKind, FOR_EVER, LogMark, Message, Owned, Ownership, PartitionId, PartitionInfo, Settlement,
    Source, SourceEvent, SourceOptions, Token, Topic,
};
use rdkafka::consumer::BaseConsumer;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use self::session::Session;
use crate::clients::{self, Log};
use crate::config::{GroupProtocol, KafkaConfig};
use crate::convert::Slabs;
use crate::elsewhere::drop_elsewhere;
use crate::member::{Command, Commit, Member, Place};
use crate::positions::{Found as Positions, are_known};
use crate::sys::queue::{Batch, PartitionQueue};
use crate::topics::Control;

/// Messages taken from one partition before the next one has its turn.
const CHUNK: usize = 512;
/// How often membership is proved by a commit while a revocation is held: librdkafka does not look itself then.
const PROBE: Duration = Duration::from_secs(1);
/// How long to wait before a look-up or a claim that failed is made again.
const AGAIN: Duration = Duration::from_millis(250);
/// How often to wait for the member that decides where a new topic begins, before it is decided for our own partitions alone: its
/// first partition may be a foreign consumer's, who never says.
const WAITS: u32 = 40;
/// How often logs and errors of the fetch handle are served.
const SERVE: Duration = Duration::from_millis(200);
/// How often to see whether a topic was made anew under its name, which nothing else tells while its log is long enough.
const MARKS: Duration = Duration::from_secs(10);
/// How often it is said of a partition that its position is full.
const TELL: Duration = Duration::from_secs(60);

mod commits;
mod fetching;
mod ownership;
mod session;

/// What look-ups on blocking threads answer.
enum Found {
    TakeOver {
        look_up: u64,
        result: Result<Positions, Error>,
    },
    Range {
        owned: Owned,
        result: Result<(LogMark, PartitionInfo), Error>,
    },
    Marks(Result<HashMap<Topic, LogMark>, Error>),
    /// Whether this member waits in a rebalance of its group.
    Group {
        asked: Instant,
        result: Result<bool, Error>,
    },
}

/// A partition that is owned, from its claim on.
struct Part {
    owned: Owned,
    id: PartitionId,
    place: Place,
    mark: LogMark,
    phase: Phase,
    /// The pool knows of it.
    told: bool,
    paused: bool,
    /// Read and not handed on: the span was full. Bounded by a chunk.
    held: VecDeque<(u64, Message)>,
    /// When it was last said that the text of its position is full.
    full_told: Option<Instant>,
    /// A look-up of the log's range is under way, because an offset was out of it.
    resetting: bool,
    probed: Instant,
    /// Where the other partitions of its topic begin, for which this one decides: committed together with its claim.
    starts: Vec<Commit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its claim is not committed yet.
    Claiming,
    Reading,
    Revoking {
        deadline: Instant,
    },
    /// The pool has let go; its last commit is under way.
    Releasing {
        deadline: Instant,
    },
}

/// Partitions that are assigned and being looked up, or wait to be looked up again.
struct Pending {
    /// Which look-up is under way: the answer to an earlier one says what was true before somebody else's turn.
    look_up: u64,
    places: Vec<Place>,
    /// Not before, and not while a commit is in flight; `None` while it is under way.
    again: Option<Instant>,
    /// How often its start position was not known yet.
    waits: u32,
}

/// A revocation that librdkafka waits for: all of it is unassigned at once.
struct Revocation {
    places: Vec<Place>,
    open: Vec<Owned>,
}

/// The commit that is in flight.
struct InFlight {
    owned: Vec<Owned>,
    /// A revocation was held when it was sent.
    holding: bool,
    sent: Instant,
}

pub(crate) struct KafkaSource {
    options: SourceOptions,
    config: KafkaConfig,
    control: Control,
    member: Member,
    fetch: Option<Arc<BaseConsumer<Log>>>,
    queues: HashMap<Place, PartitionQueue<Log>>,
    ready: Arc<Notify>,
    ownership: Ownership,
    parts: Vec<Part>,
    pending: Vec<Pending>,
    look_ups: u64,
    revocations: Vec<Revocation>,
    in_flight: Option<InFlight>,
    session: Session,
    member_id: Option<String>,
    classic: bool,
    /// No commit before: the last one was refused.
    not_before: Instant,
    /// Commits in a row that say that membership is lost.
    refused: u32,
    next_commit: Instant,
    next_serve: Instant,
    /// When to see again that the topics are still the same ones; `None` while that is being looked up.
    next_marks: Option<Instant>,
    longest_hold: Duration,
    begin_within: Duration,
    topics: Vec<Topic>,
    found_in: mpsc::UnboundedSender<Found>,
    found: mpsc::UnboundedReceiver<Found>,
    /// To be appended by the next `recv`.
    out: Vec<SourceEvent>,
    turn: usize,
    batch: Batch,
    slabs: Slabs,
    /// While closing: something that finished was lost before it was committed.
    lost_uncommitted: bool,
    ended: Option<Error>,
}

impl KafkaSource {
    pub(crate) fn join(
        config: &KafkaConfig,
        control: Control,
        options: SourceOptions,
    ) -> Result<Self, Error> {
        let fetch = clients::consumer(&clients::fetch(config, &options.group), Log::default(), "join")?;
        let member = Member::start(config, &options.group)?;
        let (found_in, found) = mpsc::unbounded_channel();
        let now = Instant::now();
        let topics = options.topics.clone();
        if !topics.is_empty() {
            member.tell(Command::Subscribe(topics.clone()));
        }
        // A hand-over must end before the broker takes the member for dead.
        let longest_hold = config.session_timeout.min(config.max_poll_interval) * 4 / 5;
        Ok(Self {
            ownership: Ownership::new(options.limits),
            control,
            member,
            fetch: Some(Arc::new(fetch)),
            queues: HashMap::new(),
            ready: Arc::new(Notify::new()),
            parts: Vec::new(),
            pending: Vec::new(),
            look_ups: 0,
            revocations: Vec::new(),
            in_flight: None,
            session: Session::new(config.session_timeout),
            member_id: None,
            classic: config.group_protocol == GroupProtocol::Classic,
            config: config.clone(),
            not_before: now,
            refused: 0,
            next_commit: now + options.commit_interval(),
            next_serve: now + SERVE,
            next_marks: Some(now + MARKS),
            longest_hold,
            // A rebalance that waits for a member that was killed, and a look-up.
            begin_within: config.session_timeout + longest_hold + config.request_timeout,
            topics,
            found_in,
            found,
            out: Vec::new(),
            turn: 0,
            batch: Batch::default(),
            slabs: Slabs::default(),
            lost_uncommitted: false,
            ended: None,
            options,
        })
    }

    /// Waits until it is committed where these topics begin: what is published after that is not missed.
    pub(crate) async fn until_begun(&mut self, topics: Vec<Topic>) -> Result<(), Error> {
        if topics.is_empty() {
            return Ok(());
        }
        let end = Instant::now() + self.begin_within;
        let mut events = Vec::new();
        loop {
            let (group, asked) = (self.options.group.clone(), topics.clone());
            let control = self.control.clone();
            let mut known =
                std::pin::pin!(control.run("join", move |control| are_known(control, &group, &asked)));
            let known = loop {
                tokio::select! {
                    known = &mut known => match known {
                        Err(error) if error.kind() == ErrorKind::Unavailable && Instant::now() < end => break false,
                        known => break known?,
                    },
                    received = self.recv(0, &mut events) => { received?; }
                }
            };
            if known {
                self.out.splice(0..0, events);
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    "the group's members did not commit where the new topic begins; check that they run, and join again",
                )
                .with_operation("join")
                .with_context("group", &self.options.group));
            }
            let wake = Instant::now() + AGAIN;
            while tokio::time::timeout_at(wake, self.recv(0, &mut events)).await.is_ok_and(|got| got.is_ok())
            {
            }
        }
    }

    fn part(&mut self, owned: Owned) -> Option<&mut Part> {
        self.parts.iter_mut().find(|part| part.owned == owned)
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        self.ask_for_member(now);
        self.watch_session(now);
        if now >= self.next_serve {
            self.next_serve = now + SERVE;
            if let Some(fetch) = &self.fetch {
                while fetch.poll(Duration::ZERO).is_some() {}
            }
        }
        if self.in_flight.is_none() {
            let (again, waiting) = std::mem::take(&mut self.pending)
                .into_iter()
                .partition::<Vec<_>, _>(|pending| pending.again.is_some_and(|at| at <= now));
            self.pending = waiting;
            for pending in again {
                self.look_up(pending.places, pending.waits);
            }
        }
        if self.next_marks.is_some_and(|at| at <= now) {
            self.look_up_marks();
        }
        self.commit();
        self.finish_releases();
    }

    fn next_time(&self) -> Instant {
        let mut next = self.next_serve;
        next =
            self.session.deadline().filter(|_| !self.parts.is_empty()).into_iter().fold(next, Instant::min);
        // While a commit is in flight its answer comes first.
        let commit = |at: Instant| self.in_flight.is_none().then_some(at.max(self.not_before));
        for part in &self.parts {
            let uncommitted = self.ownership.has_uncommitted(part.owned);
            let at = match part.phase {
                Phase::Claiming => commit(self.next_commit),
                Phase::Reading if uncommitted => commit(self.next_commit),
                Phase::Reading => self.session.probe_at().and_then(commit),
                Phase::Revoking { deadline } | Phase::Releasing { deadline } => {
                    next = next.min(deadline);
                    commit(if uncommitted { self.next_commit } else { part.probed + PROBE })
                }
            };
            let asked = self.ownership.is_asked(part.owned).then_some(self.not_before).and_then(commit);
            next = at.into_iter().chain(asked).fold(next, Instant::min);
        }
        let again = |pending: &Pending| pending.again.filter(|_| self.in_flight.is_none());
        self.pending.iter().filter_map(again).fold(next, Instant::min)
    }

    fn serve(&mut self) {
        // Before anything that waited here meanwhile: after a long sleep all of it is of an old session.
        self.watch_session(Instant::now());
        while let Ok(event) = self.member.events.try_recv() {
            self.member_said(event);
        }
        while let Ok(found) = self.found.try_recv() {
            self.found(found);
        }
        self.on_time();
    }
}

fn place(id: &PartitionId) -> Place {
    (id.topic.as_str().to_owned(), i32::try_from(id.partition).unwrap_or(i32::MAX))
}

fn partition_id(place: &Place) -> Option<PartitionId> {
    Some(PartitionId::new(Topic::new(&place.0).ok()?, u32::try_from(place.1).ok()?))
}

#[async_trait]
impl Source for KafkaSource {
    async fn recv(&mut self, room: usize, out: &mut Vec<SourceEvent>) -> Result<usize, Error> {
        let before = out.len();
        loop {
            self.member.beat();
            self.serve();
            out.append(&mut self.out);
            if room > 0 {
                self.read(room, out);
                out.append(&mut self.out);
            }
            out.extend(self.ownership.full_changes());
            if out.len() > before {
                return Ok(out.len() - before);
            }
            if let Some(error) = self.ended.take() {
                return Err(error);
            }
            let wake = self.next_time();
            tokio::select! {
                event = self.member.events.recv() => match event {
                    Some(event) => self.member_said(event),
                    None => return Err(Error::new(ErrorKind::Unexpected, "the thread of the group's membership has ended")
                        .with_operation("consume")),
                },
                Some(found) = self.found.recv() => self.found(found),
                () = self.ready.notified(), if room > 0 => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    fn settle(&mut self, batch: &mut Vec<(Token, Settlement)>) {
        self.ownership.settle(batch);
    }

    fn release(&mut self, owned: &[Owned]) {
        for owned in owned {
            match self.part(*owned) {
                Some(part) => {
                    let deadline = match part.phase {
                        Phase::Revoking { deadline } => deadline,
                        _ => continue,
                    };
                    part.phase = Phase::Releasing { deadline };
                }
                // Counts it as stale.
                None => drop(self.ownership.end(*owned)),
            }
        }
    }

    fn pause(&mut self, owned: &[Owned]) {
        for owned in owned {
            if let Some(part) = self.part(*owned) {
                part.paused = true;
            }
        }
    }

    fn resume(&mut self, owned: &[Owned]) {
        for owned in owned {
            if let Some(part) = self.part(*owned) {
                part.paused = false;
            }
        }
    }

    fn commit_now(&mut self, owned: &[Owned]) {
        for owned in owned {
            if self.ownership.ask_commit(*owned) {
                self.out.push(SourceEvent::Committed { owned: vec![*owned] });
            }
        }
    }

    fn subscribe(&mut self, topics: &[Topic]) {
        if self.topics != topics {
            self.topics = topics.to_vec();
            self.member.tell(Command::Subscribe(self.topics.clone()));
        }
    }

    fn stale(&self) -> u64 {
        self.ownership.stale()
    }

    async fn close(mut self: Box<Self>, within: Duration) -> Result<(), Error> {
        let end = Instant::now() + within.min(FOR_EVER);
        for part in &mut self.parts {
            part.held.clear();
            part.phase = Phase::Releasing { deadline: end };
        }
        let places: Vec<Place> = self.parts.iter().map(|part| part.place.clone()).collect();
        self.stop_fetching(&places);
        let committed = self.last_commit(end).await;
        let (done, left) = oneshot::channel();
        if self.member.tell(Command::Leave(done)) {
            // A second more than asked for, when the time is used up: leaving is what lets the others go on at once.
            let _ = tokio::time::timeout_at(end.max(Instant::now() + Duration::from_secs(1)), left).await;
        }
        committed
    }
}

impl Drop for KafkaSource {
    /// Dropping the fetch handle blocks for about 100 ms: elsewhere. The member's thread sees that the source is gone.
    fn drop(&mut self) {
        let (queues, fetch) = (std::mem::take(&mut self.queues), self.fetch.take());
        let batch = std::mem::take(&mut self.batch);
        drop_elsewhere(move || drop((batch, queues, fetch)));
    }
}

#[cfg(test)]
mod tests;
