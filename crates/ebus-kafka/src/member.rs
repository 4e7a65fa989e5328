//! The member of the group: a librdkafka handle that subscribes, beats and commits, polled by a thread of its own.
//!
//! It fetches nothing: its partitions are paused inside the assign callback. So a hand-over that waits for a run never stops the
//! partitions that stay (G4), and membership is kept however slow handlers are (G5). A revocation is only recorded in its
//! callback; the source unassigns when nothing of the partitions runs any more (G3).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use ebus_core::{Error, ErrorKind, Group, Topic};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::util::Timeout;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{mpsc, oneshot};

use crate::clients::{self, Log};
use crate::config::KafkaConfig;
use crate::error::{from_code, from_kafka};
use crate::sys::commit::{Answer, Commits};
use crate::sys::group::member_id;

/// How long one turn waits for events: the most that a command waits.
const TURN: Duration = Duration::from_millis(10);

/// From leaving a group to joining it again: time for what leaving revokes to be served.
const REJOIN: Duration = Duration::from_millis(500);

/// How long leaving may take before the handle is dropped: as long as librdkafka waits for the answer to it.
const GOOD_BYE: Duration = Duration::from_secs(5);

/// A partition by name and number, as librdkafka has it.
pub(crate) type Place = (String, i32);

/// What the member says.
#[derive(Debug)]
pub(crate) enum MemberEvent {
    /// These are this member's now, under the id that the coordinator knows it by.
    Assigned(Vec<Place>, Option<String>),
    /// These are to be given up, all by one [`Command::Unassign`].
    Revoking(Vec<Place>),
    /// These are gone without notice.
    Lost(Vec<Place>),
    /// Membership has ended; all partitions are gone. The handle joins again by itself unless `recv` rests.
    LostAll(Error),
    /// The answer to [`Command::Commit`], per partition.
    Committed(Answer),
    /// Passing trouble.
    Trouble(Error),
    /// The handle is of no use any more.
    Fatal(Error),
}

/// An offset and its metadata.
pub(crate) type Commit = (Place, u64, String);

/// What the member is told.
pub(crate) enum Command {
    Subscribe(Vec<Topic>),
    /// With how many losses the source had heard of: what it commits before it hears of one is not its own any more.
    Commit(Vec<Commit>, u64),
    Unassign(Vec<Place>),
    /// Membership is over, whatever librdkafka still believes: leave and join again, so that everything is assigned anew.
    Rejoin,
    /// Leave the group and end.
    Leave(oneshot::Sender<()>),
}

/// The source's end of the member.
pub(crate) struct Member {
    commands: Sender<Command>,
    pub(crate) events: mpsc::UnboundedReceiver<MemberEvent>,
    /// How many [`MemberEvent::Lost`] and [`MemberEvent::LostAll`] the source has taken in.
    pub(crate) losses: u64,
    pulse: Arc<Pulse>,
}

/// When `recv` was last called.
struct Pulse {
    origin: Instant,
    last_ms: AtomicU64,
}

impl Pulse {
    fn beat(&self) {
        self.last_ms
            .store(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Release);
    }

    fn rests(&self) -> Duration {
        self.origin.elapsed().saturating_sub(Duration::from_millis(self.last_ms.load(Ordering::Acquire)))
    }
}

impl Member {
    /// Joins; the first assignment comes as an event.
    pub(crate) fn start(config: &KafkaConfig, group: &Group) -> Result<Self, Error> {
        let (events_in, events) = mpsc::unbounded_channel();
        let (commands, commands_out) = channel();
        let pulse = Arc::new(Pulse { origin: Instant::now(), last_ms: AtomicU64::new(0) });
        let context = MemberContext {
            log: Log::default(),
            events: events_in.clone(),
            leaving: AtomicBool::new(false),
            losses: AtomicU64::new(0),
        };
        let handle = clients::consumer(&clients::member(config, group), context, "join")?;
        let commits =
            Commits::of(&handle).ok_or_else(|| from_code("join", RDKafkaErrorCode::InvalidArgument))?;
        let turn = Turn {
            commits,
            handle,
            pulse: pulse.clone(),
            max_idle: config.max_poll_interval,
            stays: config.instance_id.is_some(),
            topics: Vec::new(),
            joined: Vec::new(),
            is_behind: false,
            idle: false,
            rejoin_at: None,
        };
        std::thread::Builder::new()
            .name("ebus-kafka-sub".into())
            .spawn(move || turn.run(&commands_out))
            .map_err(|error| {
                Error::new(ErrorKind::Unexpected, "no thread for the group's membership could be started")
                    .with_operation("join")
                    .with_source(error)
            })?;
        Ok(Self { commands, events, losses: 0, pulse })
    }

    /// `recv` is being called.
    pub(crate) fn beat(&self) {
        self.pulse.beat();
    }

    /// Sends a commit; answered by [`MemberEvent::Committed`]. False when the thread has ended.
    pub(crate) fn commit(&self, commits: Vec<Commit>) -> bool {
        self.tell(Command::Commit(commits, self.losses))
    }

    /// False when the thread has ended.
    pub(crate) fn tell(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }
}

/// The thread's own.
struct Turn {
    /// Dropped before the handle.
    commits: Commits,
    handle: BaseConsumer<MemberContext>,
    pulse: Arc<Pulse>,
    max_idle: Duration,
    /// It has a name of the user's: its partitions are kept for it when it ends.
    stays: bool,
    topics: Vec<Topic>,
    /// What it has joined with.
    joined: Vec<Topic>,
    /// It has joined with other topics than it is to have.
    is_behind: bool,
    idle: bool,
    rejoin_at: Option<Instant>,
}

impl Turn {
    fn run(mut self, commands: &Receiver<Command>) {
        loop {
            match commands.try_recv() {
                Ok(Command::Leave(done)) => {
                    self.leave();
                    // Whoever waited may have given up.
                    let _ = done.send(());
                    return;
                }
                Ok(command) => {
                    self.obey(command);
                    continue;
                }
                // The source was dropped: its partitions go to the others at once, without a last commit.
                Err(TryRecvError::Disconnected) => return self.leave(),
                Err(TryRecvError::Empty) => {}
            }
            self.watch_idle();
            if self.is_behind && self.is_member() {
                self.subscribe();
            }
            if let Some(Err(error)) = self.handle.poll(TURN) {
                self.polled(error);
            }
            while let Some(answer) = self.commits.poll(Duration::ZERO) {
                self.say(MemberEvent::Committed(answer));
            }
        }
    }

    fn leave(self) {
        // What is held in a revocation must be let go, or the handle never closes.
        self.let_go();
        if !self.stays {
            self.say_good_bye();
        }
        // Dropping it serves the last revocation, waits for the answer to leaving, and blocks for about 100 ms: hence here.
        drop(self.commits);
        drop(self.handle);
    }

    /// Leaves the group: a member with a name does not by being dropped.
    fn say_good_bye(&self) {
        let end = Instant::now() + GOOD_BYE;
        // A first join under way makes it a member when it is answered, which nobody would know of then.
        while !self.topics.is_empty() && !self.is_member() && Instant::now() < end {
            let _ = self.handle.poll(TURN);
        }
        self.handle.unsubscribe();
        // The id is gone as soon as leaving is on its way.
        while self.is_member() && Instant::now() < end {
            let _ = self.handle.poll(TURN);
        }
    }

    /// Whether the coordinator has given it an id that librdkafka still believes in.
    fn is_member(&self) -> bool {
        member_id(self.handle.client()).is_some()
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Subscribe(topics) => {
                self.topics = topics;
                if self.rejoin_at.is_none() && !self.idle {
                    self.subscribe();
                }
            }
            Command::Commit(commits, losses) => {
                let code =
                    |error: KafkaError| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                // The broker looks at the member, not at whose the partitions are: after a loss this one may be a member
                // again, and would write over what the owners of today have committed.
                let sent = if losses == self.handle.context().losses.load(Ordering::Acquire) {
                    list(&commits).map_err(code).and_then(|list| self.commits.send(&self.handle, &list))
                } else {
                    Err(RDKafkaErrorCode::AssignmentLost)
                };
                if let Err(code) = sent {
                    self.say(MemberEvent::Committed(Err(code)));
                }
            }
            Command::Unassign(places) => unassign(&self.handle, &names(&places)),
            Command::Rejoin => {
                // What was assigned since the source let everything go, and will not be revoked any more.
                if let Ok(held) = self.handle.assignment() {
                    self.say(MemberEvent::Lost(places(&held)));
                }
                self.give_up();
                self.rejoin_at = Some(Instant::now() + REJOIN);
            }
            Command::Leave(_) => {}
        }
    }

    fn subscribe(&mut self) {
        self.is_behind = false;
        if self.topics.is_empty() {
            self.handle.unsubscribe();
            return;
        }
        // A broker takes a member that comes back under its name for the one that it knows, gives it what that one had, and looks
        // at other topics only when it joins once more.
        if self.joined.is_empty() || self.is_member() {
            self.joined.clone_from(&self.topics);
        }
        self.is_behind = self.joined != self.topics;
        let names: Vec<&str> = self.joined.iter().map(Topic::as_str).collect();
        if let Err(error) = self.handle.subscribe(&names) {
            self.say(MemberEvent::Fatal(from_kafka("subscribe", error)));
        }
    }

    /// Gives membership up while `recv` rests, and joins again when it goes on: a hung driver must not stay a member.
    fn watch_idle(&mut self) {
        let rests = self.pulse.rests() > self.max_idle;
        if rests && !self.idle {
            self.idle = true;
            self.rejoin_at = None;
            if let Ok(held) = self.handle.assignment() {
                self.say(MemberEvent::Lost(places(&held)));
            }
            self.say(MemberEvent::Trouble(Error::new(
                ErrorKind::Fenced,
                format!(
                    "recv was not called for {:?}; membership was given up, and is taken up again now",
                    self.max_idle
                ),
            )));
            self.give_up();
        } else if !rests && self.idle {
            self.idle = false;
            self.join_again();
        } else if !rests && self.rejoin_at.is_some_and(|at| Instant::now() >= at) {
            self.join_again();
        }
    }

    /// Leaves the group; what is revoked by it is unassigned inside the callback.
    fn give_up(&self) {
        self.let_go();
        self.handle.unsubscribe();
    }

    fn let_go(&self) {
        self.handle.context().leaving.store(true, Ordering::Release);
        if let Ok(held) = self.handle.assignment() {
            unassign(&self.handle, &held);
        }
    }

    fn join_again(&mut self) {
        self.rejoin_at = None;
        self.handle.context().leaving.store(false, Ordering::Release);
        self.subscribe();
    }

    fn polled(&self, error: KafkaError) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        match code {
            RDKafkaErrorCode::PollExceeded => self.say(MemberEvent::LostAll(from_code("consume", code))),
            RDKafkaErrorCode::Fatal
            | RDKafkaErrorCode::FencedInstanceId
            | RDKafkaErrorCode::UnreleasedInstanceId => {
                let (code, why) = self.handle.client().fatal_error().unwrap_or((code, error.to_string()));
                let error = from_code("consume", code).with_context("librdkafka_said", why);
                self.say(MemberEvent::LostAll(error.clone()));
                self.say(MemberEvent::Fatal(error));
            }
            RDKafkaErrorCode::InconsistentGroupProtocol
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::UnsupportedVersion => {
                self.say(MemberEvent::Trouble(from_code("consume", code)));
            }
            _ => tracing::debug!(%error, "the member of the group goes on"),
        }
    }

    fn say(&self, event: MemberEvent) {
        self.handle.context().say(event);
    }
}

fn unassign<C: ConsumerContext>(handle: &BaseConsumer<C>, list: &TopicPartitionList) {
    if list.count() == 0 {
        return;
    }
    // One name that is not assigned would make librdkafka refuse the whole list.
    let Ok(held) = handle.assignment() else { return };
    let held = places(&held);
    let still: Vec<Place> = places(list).into_iter().filter(|place| held.contains(place)).collect();
    if let Err(error) = handle.incremental_unassign(&names(&still)) {
        tracing::debug!(%error, "partitions were not assigned any more");
    }
}

/// A list of partitions to commit.
fn list(commits: &[Commit]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for ((topic, partition), offset, metadata) in commits {
        let mut element = list.add_partition(topic, *partition);
        element.set_offset(Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX)))?;
        element.set_metadata(metadata);
    }
    Ok(list)
}

/// A list of partitions without offsets.
pub(crate) fn names(places: &[Place]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(places.len());
    for (topic, partition) in places {
        list.add_partition(topic, *partition);
    }
    list
}

fn places(list: &TopicPartitionList) -> Vec<Place> {
    list.elements().iter().map(|element| (element.topic().to_owned(), element.partition())).collect()
}

struct MemberContext {
    log: Log,
    events: mpsc::UnboundedSender<MemberEvent>,
    /// The group is being left: what is revoked is unassigned at once.
    leaving: AtomicBool,
    /// How many losses were said.
    losses: AtomicU64,
}

impl MemberContext {
    fn say(&self, event: MemberEvent) {
        if matches!(event, MemberEvent::Lost(_) | MemberEvent::LostAll(_)) {
            self.losses.fetch_add(1, Ordering::AcqRel);
        }
        // A source that is gone hears nothing.
        let _ = self.events.send(event);
    }
}

impl ClientContext for MemberContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(error, reason);
    }

    fn stats(&self, _: Statistics) {}

    fn stats_raw(&self, statistics: &[u8]) {
        self.log.stats_raw(statistics);
    }
}

impl ConsumerContext for MemberContext {
    fn main_queue_min_poll_interval(&self) -> Timeout {
        Timeout::After(TURN)
    }

    /// Called on the polling thread: no waiting here.
    fn rebalance(&self, handle: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let event = match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                let assigned = handle.incremental_assign(list).and_then(|()| handle.pause(list));
                if let Err(error) = assigned {
                    self.say(MemberEvent::Trouble(from_kafka("assign", error)));
                }
                MemberEvent::Assigned(places(list), member_id(handle.client()))
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                if self.leaving.load(Ordering::Acquire) || handle.assignment_lost() {
                    unassign(handle, list);
                    MemberEvent::Lost(places(list))
                } else {
                    MemberEvent::Revoking(places(list))
                }
            }
            other => {
                unassign(handle, list);
                MemberEvent::Trouble(from_code("rebalance", other.into()))
            }
        };
        self.say(event);
    }
}
