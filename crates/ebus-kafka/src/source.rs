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
    Assigned, Error, ErrorKind, Inbound, Lease, LogMark, Message, Owned, Ownership, PartitionId,
    PartitionInfo, Settlement, Source, SourceEvent, SourceOptions, Token, Topic,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use crate::clients::{self, Log};
use crate::config::KafkaConfig;
use crate::convert::{Slabs, slab_len};
use crate::error::{from_code, from_kafka, kind_of};
use crate::member::{Command, Member, MemberEvent, Place, names};
use crate::positions::{TakeOver, take_over};
use crate::reader::drop_elsewhere;
use crate::sys::commit::Answer;
use crate::sys::queue::{Batch, PartitionQueue};
use crate::topics::Control;

/// Messages taken from one partition before the next one has its turn.
const CHUNK: usize = 512;
/// How often membership is proved by a commit while a revocation is held: librdkafka does not look itself then.
const PROBE: Duration = Duration::from_secs(1);
/// How long to wait before a look-up or a claim that failed is made again.
const AGAIN: Duration = Duration::from_millis(250);
/// How often logs and errors of the fetch handle are served.
const SERVE: Duration = Duration::from_millis(200);

/// What look-ups on blocking threads answer.
enum Found {
    TakeOver { places: Vec<Place>, result: Result<Vec<TakeOver>, Error> },
    Range { owned: Owned, result: Result<PartitionInfo, Error> },
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
    /// A look-up of the log's range is under way, because an offset was out of it.
    resetting: bool,
    probed: Instant,
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

/// A revocation that librdkafka waits for: all of it is unassigned at once.
struct Revocation {
    places: Vec<Place>,
    open: Vec<Owned>,
}

/// The commit that is in flight.
struct InFlight {
    owned: Vec<Owned>,
}

pub(crate) struct KafkaSource {
    options: SourceOptions,
    control: Control,
    member: Member,
    fetch: Option<Arc<BaseConsumer<Log>>>,
    queues: HashMap<Place, PartitionQueue<Log>>,
    ready: Arc<Notify>,
    ownership: Ownership,
    parts: Vec<Part>,
    /// Assigned and looked up, or waiting to be looked up again.
    pending: Vec<(Vec<Place>, Option<Instant>)>,
    revocations: Vec<Revocation>,
    in_flight: Option<InFlight>,
    next_commit: Instant,
    next_serve: Instant,
    longest_hold: Duration,
    topics: Vec<Topic>,
    found_in: mpsc::UnboundedSender<Found>,
    found: mpsc::UnboundedReceiver<Found>,
    /// To be appended by the next `recv`.
    out: Vec<SourceEvent>,
    turn: usize,
    batch: Batch,
    slabs: Slabs,
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
            revocations: Vec::new(),
            in_flight: None,
            next_commit: now + options.commit_interval,
            next_serve: now + SERVE,
            longest_hold,
            topics,
            found_in,
            found,
            out: Vec::new(),
            turn: 0,
            batch: Batch::default(),
            slabs: Slabs::default(),
            ended: None,
            options,
        })
    }

    fn part(&mut self, owned: Owned) -> Option<&mut Part> {
        self.parts.iter_mut().find(|part| part.owned == owned)
    }

    // ---- membership ----

    fn member_said(&mut self, event: MemberEvent) {
        match event {
            MemberEvent::Assigned(places) => {
                tracing::debug!(group = %self.options.group, ?places, "assigned");
                if !places.is_empty() {
                    self.look_up(places);
                }
            }
            MemberEvent::Revoking(places) => self.revoke(places),
            MemberEvent::Lost(places) => {
                tracing::warn!(group = %self.options.group, ?places, "partitions lost without notice");
                self.lose(|part| places.contains(&part.place));
                self.forget_pending(&places);
                self.revocations
                    .retain(|revocation| !revocation.places.iter().any(|place| places.contains(place)));
            }
            MemberEvent::LostAll(error) => {
                self.lose_all();
                self.out.push(SourceEvent::Trouble(error));
            }
            MemberEvent::Committed(result) => self.committed(result),
            MemberEvent::Trouble(error) => self.out.push(SourceEvent::Trouble(error)),
            MemberEvent::Fatal(error) => self.ended = Some(error),
        }
    }

    fn lose_all(&mut self) {
        self.lose(|_| true);
        self.pending.clear();
        // librdkafka waits for these; it will find out itself that they are gone.
        for revocation in std::mem::take(&mut self.revocations) {
            self.member.tell(Command::Unassign(revocation.places));
        }
    }

    fn forget_pending(&mut self, places: &[Place]) {
        for (pending, _) in &mut self.pending {
            pending.retain(|place| !places.contains(place));
        }
        self.pending.retain(|(pending, _)| !pending.is_empty());
    }

    fn look_up(&mut self, places: Vec<Place>) {
        let partitions: Vec<PartitionId> = places.iter().filter_map(partition_id).collect();
        let (control, group, start) = (self.control.clone(), self.options.group.clone(), self.options.start);
        let found = self.found_in.clone();
        self.pending.push((places.clone(), None));
        tokio::spawn(async move {
            let result =
                control.run("consume", move |control| take_over(control, &group, &partitions, start)).await;
            // A source that is gone needs no answer.
            let _ = found.send(Found::TakeOver { places, result });
        });
    }

    fn found(&mut self, found: Found) {
        match found {
            Found::TakeOver { places, result } => {
                // What was revoked meanwhile is not wanted any more.
                let wanted: Vec<Place> = match self
                    .pending
                    .iter()
                    .position(|(p, at)| at.is_none() && p.iter().all(|place| places.contains(place)))
                {
                    Some(index) => self.pending.swap_remove(index).0,
                    None => return,
                };
                match result {
                    Ok(taken) => {
                        for one in taken {
                            if wanted.contains(&place(&one.partition)) {
                                self.claim(one);
                            }
                        }
                        self.next_commit = Instant::now();
                    }
                    Err(error) => {
                        self.out.push(SourceEvent::Trouble(error));
                        self.pending.push((wanted, Some(Instant::now() + AGAIN)));
                    }
                }
            }
            Found::Range { owned, result } => self.reset(owned, result),
        }
    }

    /// Takes a partition over under the next epoch; it is read when the broker has accepted that epoch.
    fn claim(&mut self, taken: TakeOver) {
        if let Some(trouble) = taken.trouble {
            self.out.push(SourceEvent::Trouble(trouble));
        }
        let assigned = self.ownership.assign(
            taken.partition.clone(),
            taken.epoch.next(),
            &taken.position,
            Lease::unlimited(),
        );
        self.parts.push(Part {
            owned: assigned.owned,
            place: place(&taken.partition),
            id: taken.partition,
            mark: taken.mark,
            phase: Phase::Claiming,
            told: false,
            paused: false,
            held: VecDeque::new(),
            resetting: false,
            probed: Instant::now(),
        });
    }

    fn claimed(&mut self, owned: Owned) {
        let Some(at) = self.ownership.ledger(owned).map(|ledger| ledger.read_to().0) else { return };
        let Some(part) = self.part(owned) else { return };
        part.phase = Phase::Reading;
        part.told = true;
        let assigned = Assigned { owned, partition: part.id.clone(), lease: Lease::unlimited() };
        let place = part.place.clone();
        match self.fetch_from(&place, at) {
            Ok(()) => self.out.push(SourceEvent::Assigned { owned: vec![assigned] }),
            Err(error) => self.ended = Some(error),
        }
    }

    // ---- fetching ----

    fn fetch_from(&mut self, place: &Place, at: u64) -> Result<(), Error> {
        let Some(fetch) = &self.fetch else { return Ok(()) };
        if !self.queues.contains_key(place) {
            let ready = self.ready.clone();
            let queue = PartitionQueue::split(fetch, &place.0, place.1, Box::new(move || ready.notify_one()))
                .ok_or_else(|| from_code("consume", RDKafkaErrorCode::UnknownPartition))?;
            self.queues.insert(place.clone(), queue);
        }
        let wrong = |error| from_kafka("consume", error);
        let mut list = TopicPartitionList::new();
        let from = Offset::Offset(i64::try_from(at).unwrap_or(i64::MAX));
        list.add_partition_offset(&place.0, place.1, from).map_err(wrong)?;
        if let Some(queue) = self.queues.get(place) {
            queue.rearm();
        }
        fetch.incremental_assign(&list).map_err(wrong)?;
        if let Some(queue) = self.queues.get(place) {
            queue.rearm();
        }
        // What came before the queue was split off again wakes nobody.
        self.ready.notify_one();
        Ok(())
    }

    fn stop_fetching(&mut self, places: &[Place]) {
        let Some(fetch) = &self.fetch else { return };
        let assigned: Vec<Place> =
            places.iter().filter(|place| self.queues.contains_key(*place)).cloned().collect();
        if assigned.is_empty() {
            return;
        }
        if let Err(error) = fetch.incremental_unassign(&names(&assigned)) {
            tracing::debug!(%error, "partitions were not fetched any more");
        }
        for place in &assigned {
            self.queues.remove(place);
        }
    }

    /// Hands messages on, a chunk of each partition in turn.
    fn read(&mut self, mut room: usize, out: &mut Vec<SourceEvent>) {
        let parts = self.parts.len();
        let mut idle = 0;
        while room > 0 && parts > 0 && idle < parts {
            self.turn = (self.turn + 1) % parts;
            let taken = self.read_one(self.turn, room.min(CHUNK), out);
            room -= taken;
            idle = if taken == 0 { idle + 1 } else { 0 };
        }
    }

    fn read_one(&mut self, index: usize, most: usize, out: &mut Vec<SourceEvent>) -> usize {
        let part = &mut self.parts[index];
        if part.phase != Phase::Reading || part.paused || part.resetting {
            return 0;
        }
        let mut handed = 0;
        while handed < most {
            let Some((offset, _)) = part.held.front() else { break };
            if !self.ownership.has_room(part.owned, *offset) {
                return handed;
            }
            let Some((offset, message)) = part.held.pop_front() else { break };
            handed += hand_on(&mut self.ownership, part.owned, offset, message, out);
        }
        if !part.held.is_empty() || handed >= most {
            return handed;
        }
        let Some(queue) = self.queues.get(&part.place) else { return handed };
        queue.take(most - handed, &mut self.batch);
        let mut ahead = slab_len(self.batch.iter());
        let mut out_of_range = false;
        for fetched in self.batch.iter() {
            let offset = fetched.offset();
            match fetched.error() {
                None => {
                    let message = self.slabs.message(fetched, ahead);
                    ahead = ahead.saturating_sub(message.byte_len());
                    if part.held.is_empty() && self.ownership.has_room(part.owned, offset) {
                        handed += hand_on(&mut self.ownership, part.owned, offset, message, out);
                    } else {
                        part.held.push_back((offset, message));
                    }
                }
                Some(RDKafkaErrorCode::PartitionEOF) => {}
                Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                    out_of_range = true
                }
                Some(code) => {
                    let error = from_code("consume", code).with_context("partition", &part.id);
                    if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) {
                        tracing::debug!(%error, "fetching goes on");
                    } else {
                        self.out.push(SourceEvent::Trouble(error));
                    }
                }
            }
        }
        if out_of_range {
            self.look_up_range(index);
        }
        handed
    }

    /// The log does not have what is read next: asks what it has.
    fn look_up_range(&mut self, index: usize) {
        let part = &mut self.parts[index];
        part.resetting = true;
        let (owned, id, control, found) =
            (part.owned, part.id.clone(), self.control.clone(), self.found_in.clone());
        tokio::spawn(async move {
            let result = control.run("consume", move |control| control.range(&id.topic, id.partition)).await;
            // A source that is gone needs no answer.
            let _ = found.send(Found::Range { owned, result });
        });
    }

    fn reset(&mut self, owned: Owned, result: Result<PartitionInfo, Error>) {
        let Some(read_to) = self.ownership.ledger(owned).map(|ledger| ledger.read_to()) else { return };
        let Some(index) = self.parts.iter().position(|part| part.owned == owned) else { return };
        self.parts[index].resetting = false;
        let range = match result {
            Ok(range) => range,
            Err(error) => {
                self.out.push(SourceEvent::Trouble(error));
                self.look_up_range(index);
                return;
            }
        };
        let (id, place) = (self.parts[index].id.clone(), self.parts[index].place.clone());
        let trouble = |what: &str| {
            Error::new(ErrorKind::NotFound, what.to_owned())
                .with_operation("consume")
                .with_context("partition", &id)
                .with_context("at", read_to)
                .with_context("earliest", range.earliest)
        };
        self.stop_fetching(std::slice::from_ref(&place));
        if range.end < read_to {
            // Shorter than what was read: made anew under the same name.
            self.out.push(SourceEvent::Trouble(trouble(
                "the log was made anew; the partition is taken over again",
            )));
            self.lose(|part| part.owned == owned);
            self.look_up(vec![place]);
            return;
        }
        if range.earliest > read_to.0 {
            self.out.push(SourceEvent::Trouble(trouble(
                "messages were removed from the log before they were read; reading goes on at the first one there",
            )));
        }
        if let Err(error) = self.fetch_from(&place, range.earliest.max(read_to.0)) {
            self.ended = Some(error);
        }
    }

    // ---- giving up ----

    fn revoke(&mut self, places: Vec<Place>) {
        tracing::debug!(group = %self.options.group, ?places, "revoking");
        let now = Instant::now();
        let deadline = now + self.options.revoke_within.min(self.longest_hold);
        self.forget_pending(&places);
        let (mut open, mut tell) = (Vec::new(), Vec::new());
        for part in self.parts.iter_mut().filter(|part| places.contains(&part.place)) {
            part.held.clear();
            part.probed = now;
            open.push(part.owned);
            if part.told {
                part.phase = Phase::Revoking { deadline };
                tell.push(part.owned);
            } else {
                part.phase = Phase::Releasing { deadline };
            }
        }
        self.stop_fetching(&places);
        if !tell.is_empty() {
            self.out.push(SourceEvent::Revoking { owned: tell, deadline: deadline.into_std() });
        }
        self.revocations.push(Revocation { places, open });
        self.close_revocations();
        self.next_commit = now;
    }

    /// What was let go and is committed is released; what has passed its deadline is taken away.
    fn finish_releases(&mut self) {
        let now = Instant::now();
        let in_flight: Vec<Owned> =
            self.in_flight.iter().flat_map(|commit| commit.owned.iter().copied()).collect();
        let mut index = 0;
        while index < self.parts.len() {
            let part = &self.parts[index];
            let owned = part.owned;
            let committed = !self.ownership.has_uncommitted(owned) && !in_flight.contains(&owned);
            match part.phase {
                Phase::Releasing { .. } if committed => self.released(index, Ok(())),
                Phase::Releasing { deadline } if now >= deadline => {
                    let error = Error::new(
                        ErrorKind::Timeout,
                        "the last commit was not accepted in time; \
                        what finished since the one before runs again",
                    )
                    .with_operation("release")
                    .with_context("partition", &part.id);
                    self.released(index, Err(error));
                }
                Phase::Revoking { deadline } if now >= deadline => {
                    self.lose(|part| part.owned == owned);
                    self.close(owned);
                }
                _ => index += 1,
            }
        }
        self.close_revocations();
    }

    fn released(&mut self, index: usize, committed: Result<(), Error>) {
        let part = self.parts.swap_remove(index);
        self.ownership.end(part.owned);
        if part.told {
            self.out.push(SourceEvent::Released { owned: vec![part.owned], committed });
        }
        self.close(part.owned);
    }

    fn close(&mut self, owned: Owned) {
        for revocation in &mut self.revocations {
            revocation.open.retain(|open| *open != owned);
        }
    }

    /// Unassigns revocations of which nothing is left: only now may others have these partitions.
    fn close_revocations(&mut self) {
        let (done, open) =
            std::mem::take(&mut self.revocations).into_iter().partition(|r: &Revocation| r.open.is_empty());
        self.revocations = open;
        for revocation in done {
            let revocation: Revocation = revocation;
            self.member.tell(Command::Unassign(revocation.places));
        }
    }

    /// Ends ownerships without a commit.
    fn lose(&mut self, which: impl Fn(&Part) -> bool) {
        let (gone, kept): (Vec<Part>, Vec<Part>) =
            std::mem::take(&mut self.parts).into_iter().partition(which);
        self.parts = kept;
        let places: Vec<Place> = gone.iter().map(|part| part.place.clone()).collect();
        self.stop_fetching(&places);
        let mut tell = Vec::new();
        for part in gone {
            self.ownership.end(part.owned);
            self.close(part.owned);
            if part.told {
                tell.push(part.owned);
            }
        }
        if !tell.is_empty() {
            self.out.push(SourceEvent::Lost { owned: tell });
        }
    }

    // ---- commits ----

    /// Commits what changed, claims what is new, and proves membership while a revocation is held: one commit at a time.
    fn commit(&mut self) {
        if self.in_flight.is_some() {
            return;
        }
        let now = Instant::now();
        let due = now >= self.next_commit;
        let mut commits = Vec::new();
        let mut owned = Vec::new();
        for part in &mut self.parts {
            let probe = matches!(part.phase, Phase::Revoking { .. } | Phase::Releasing { .. })
                && now >= part.probed + PROBE;
            let hurry = matches!(part.phase, Phase::Releasing { .. } | Phase::Claiming);
            if !(due || probe || hurry) {
                continue;
            }
            let position = match self.ownership.begin_commit(part.owned) {
                Some(position) => position,
                None if probe || part.phase == Phase::Claiming => {
                    let Some(ledger) = self.ownership.ledger(part.owned) else { continue };
                    ledger.position()
                }
                None => continue,
            };
            part.probed = now;
            let text = position.encode(part.mark, part.owned.epoch);
            commits.push((part.place.clone(), position.watermark.0, text));
            owned.push(part.owned);
        }
        if due {
            self.next_commit = now + self.options.commit_interval;
        }
        if commits.is_empty() {
            return;
        }
        self.in_flight = Some(InFlight { owned });
        if !self.member.tell(Command::Commit(commits)) {
            self.ended =
                Some(Error::new(ErrorKind::Unexpected, "the thread of the group's membership has ended"));
        }
    }

    fn committed(&mut self, result: Answer) {
        let Some(commit) = self.in_flight.take() else { return };
        let mut fenced = None;
        let mut failed = None;
        for owned in commit.owned {
            let Some(part) = self.parts.iter().find(|part| part.owned == owned) else { continue };
            let (phase, place) = (part.phase, part.place.clone());
            let error = match &result {
                Ok(places) => places.get(&place).copied().flatten(),
                Err(code) => Some(*code),
            };
            self.ownership.commit_done(owned, error.is_none());
            match error {
                None if phase == Phase::Claiming => self.claimed(owned),
                None => {}
                Some(code) => {
                    failed = Some(code);
                    let held = matches!(phase, Phase::Revoking { .. } | Phase::Releasing { .. });
                    if held && kind_of(code) == ErrorKind::Fenced {
                        fenced = Some(code);
                    }
                }
            }
        }
        if let Some(code) = fenced {
            self.lose_all();
            self.out.push(SourceEvent::Trouble(from_code("commit", code)));
        } else if let Some(code) = failed {
            // A rebalance under way refuses commits for a moment: they are made again.
            let error = from_code("commit", code);
            if matches!(code, RDKafkaErrorCode::RebalanceInProgress | RDKafkaErrorCode::IllegalGeneration) {
                tracing::debug!(%error, "a commit is made again after the rebalance");
            } else {
                self.out.push(SourceEvent::Trouble(error));
            }
            self.next_commit = Instant::now() + AGAIN.min(self.options.commit_interval);
        }
    }

    // ---- time ----

    fn on_time(&mut self) {
        let now = Instant::now();
        if now >= self.next_serve {
            self.next_serve = now + SERVE;
            if let Some(fetch) = &self.fetch {
                while fetch.poll(Duration::ZERO).is_some() {}
            }
        }
        let again: Vec<Vec<Place>> = {
            let (due, waiting) = std::mem::take(&mut self.pending)
                .into_iter()
                .partition::<Vec<_>, _>(|(_, at)| at.is_some_and(|at| at <= now));
            self.pending = waiting;
            due.into_iter().map(|(places, _)| places).collect()
        };
        for places in again {
            self.look_up(places);
        }
        self.commit();
        self.finish_releases();
    }

    fn next_time(&self) -> Instant {
        let mut next = self.next_serve;
        if self.in_flight.is_none()
            && self.parts.iter().any(|part| self.ownership.has_uncommitted(part.owned))
        {
            next = next.min(self.next_commit);
        }
        for part in &self.parts {
            match part.phase {
                Phase::Claiming if self.in_flight.is_none() => next = next.min(self.next_commit),
                Phase::Revoking { deadline } | Phase::Releasing { deadline } => {
                    next = next.min(deadline).min(part.probed + PROBE);
                }
                _ => {}
            }
        }
        self.pending.iter().filter_map(|(_, at)| *at).fold(next, Instant::min)
    }

    fn serve(&mut self) {
        while let Ok(event) = self.member.events.try_recv() {
            self.member_said(event);
        }
        while let Ok(found) = self.found.try_recv() {
            self.found(found);
        }
        self.on_time();
    }
}

fn hand_on(
    ownership: &mut Ownership,
    owned: Owned,
    offset: u64,
    message: Message,
    out: &mut Vec<SourceEvent>,
) -> usize {
    match ownership.track(owned, offset) {
        Ok(Some(token)) => {
            out.push(SourceEvent::Message(Inbound { token, message }));
            1
        }
        Ok(None) => 0,
        Err(refused) => {
            tracing::debug!(offset = refused.offset, "a message below what was read is skipped");
            0
        }
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
        let end = Instant::now() + within;
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

impl KafkaSource {
    /// Commits until nothing is left to commit.
    async fn last_commit(&mut self, end: Instant) -> Result<(), Error> {
        loop {
            while let Ok(event) = self.member.events.try_recv() {
                if let MemberEvent::Committed(result) = event {
                    self.committed(result);
                }
            }
            self.commit();
            let open = self.parts.iter().any(|part| self.ownership.has_uncommitted(part.owned));
            if self.in_flight.is_none() && !open {
                return Ok(());
            }
            let wake = self.next_commit.max(Instant::now() + Duration::from_millis(20)).min(end);
            let event = tokio::select! {
                event = self.member.events.recv() => event,
                () = tokio::time::sleep_until(wake) => None,
            };
            if let Some(MemberEvent::Committed(result)) = event {
                self.committed(result);
            }
            if Instant::now() >= end {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    "the last commit was not accepted in time; what finished since the one before runs again",
                )
                .with_operation("close")
                .with_context("group", &self.options.group));
            }
        }
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
mod tests {
    use super::*;

    #[test]
    fn places_and_partitions_are_the_same() {
        let id = PartitionId::new(Topic::new("orders").expect("legal"), 3);
        assert_eq!(partition_id(&place(&id)), Some(id));
        assert_eq!(partition_id(&("orders".into(), -1)), None);
    }
}
