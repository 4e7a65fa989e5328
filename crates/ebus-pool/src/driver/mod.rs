//! The driver: owns the source and the budget, and ends ownerships in the right order (G1, G3, G5, G6).

use std::collections::HashSet;
use std::iter::once_with;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ebus_core::{
    Assigned, Error, ErrorKind, FOR_EVER, Inbound, Owned, PartitionId, Settlement, Source, SourceEvent, Topic,
};
use futures_util::FutureExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::endings::{Endings, Then};
use crate::handlers::Handling;
use crate::jobs::{FromShard, Job, Jobs, MOST, Outcomes, ToShard};
use crate::parked::{FromKeeper, ParkedKey};
use crate::route::{LaneKey, Router};
use crate::share::Budget;
use crate::shared::Shared;
use crate::spares::Spares;
use crate::state::{DrainReport, Left, PoolState};

mod ahead;
mod ending;
mod finish;
mod intake;
mod outcomes;
mod parked;
mod state;

use ahead::Ahead;
use finish::{End, Grace};
use parked::PartitionKeeper;

/// From the handle to the driver.
pub(crate) enum Control {
    /// Handles a topic from now on, one handling a shard.
    Handle {
        topic: Topic,
        handlings: Vec<Handling>,
    },
    Unhandle(Topic),
    Pause(Topic),
    Resume(Topic),
    PauseAll(bool),
    State(oneshot::Sender<PoolState>),
    Drain(Duration),
}

struct Partition {
    owned: Owned,
    id: Arc<PartitionId>,
    seed: u64,
    ending: bool,
    /// What the source was told.
    paused: bool,
    over_share: bool,
    /// The source reads no more of it before something of it is finished.
    full: bool,
    /// The ownership before this one has not ended in every shard, or its parked keys are not known: what it waits with.
    held_back: Option<HeldBack>,
    /// `None` when no keys are parked in this pool.
    keeper: Option<PartitionKeeper>,
    /// Empty unless the pool is at most once.
    ahead: Ahead,
}

/// An ownership that begins when the one before it has ended, and its parked keys are known.
struct HeldBack {
    assigned: Assigned,
    jobs: Vec<Job>,
    /// `None` until they are known; it is not read meanwhile.
    parked: Option<Vec<ParkedKey>>,
    /// It has ended before it began: what follows once the one before it has ended too. Not earlier, because a run of that one
    /// may still be in progress here.
    then: Option<Then>,
}

struct Draining {
    deadline: Instant,
    handled_before: u64,
}

/// The ways to a shard.
pub(crate) struct ShardHandle {
    pub(crate) commands: UnboundedSender<ToShard>,
    pub(crate) jobs: UnboundedSender<Jobs>,
}

impl ShardHandle {
    /// A shard that is gone is noticed by the end of its task.
    fn tell(&self, command: ToShard) {
        if self.commands.send(command).is_err() {
            tracing::error!("a shard of the pool has ended");
        }
    }
}

pub(crate) struct Driver {
    shared: Arc<Shared>,
    source: Box<dyn Source>,
    control: UnboundedReceiver<Control>,
    from_shards: UnboundedReceiver<FromShard>,
    shards: Vec<ShardHandle>,
    /// The shards' tasks: none ends before the driver.
    tasks: JoinSet<()>,
    /// The keepers of parked keys, one a partition.
    keepers: JoinSet<()>,
    to_driver: UnboundedSender<FromKeeper>,
    from_keepers: UnboundedReceiver<FromKeeper>,
    router: Router,
    budget: Budget,
    partitions: Vec<Option<Partition>>,
    owned_count: usize,
    any_over_share: bool,
    /// Some topic is handled in batches, or was.
    in_batches: bool,
    endings: Endings,
    /// Ended for a drain, not released.
    drained: HashSet<Owned>,
    topics: Vec<Topic>,
    paused_topics: HashSet<Topic>,
    all_paused: bool,
    /// Topics that were unsubscribed: not read while the source still owns them.
    given_up: HashSet<Topic>,
    batches: Vec<Vec<Job>>,
    spare_jobs: Spares<Vec<Job>>,
    spare_outcomes: Spares<Outcomes>,
    left: Vec<Left>,
    draining: Option<Draining>,
    trouble: Option<Error>,
    report: watch::Sender<Option<DrainReport>>,
    last_read: Instant,
}

/// Between two reads while the pool is nearly full: a source that is faster than the handlers would else be read a few
/// messages at a time, at the cost of a read for each few.
const REST: Duration = Duration::from_millis(1);

/// Emptied lists of each kind that the driver keeps: those of two reads, where shards are few. Where they are many, some are made anew.
const SPARES: usize = 16;

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        source: Box<dyn Source>,
        control: UnboundedReceiver<Control>,
        from_shards: UnboundedReceiver<FromShard>,
        (shards, tasks): (Vec<ShardHandle>, JoinSet<()>),
        report: watch::Sender<Option<DrainReport>>,
    ) -> Self {
        let config = &shared.config;
        let (to_driver, from_keepers) = unbounded_channel();
        Self {
            router: Router::new(shards.len()),
            budget: Budget::new(config.budget_messages, config.budget_bytes),
            batches: shards.iter().map(|_| Vec::new()).collect(),
            spare_jobs: Spares::new(SPARES, MOST),
            spare_outcomes: Spares::new(SPARES, 2 * MOST),
            tasks,
            keepers: JoinSet::new(),
            to_driver,
            from_keepers,
            shared,
            source,
            control,
            from_shards,
            shards,
            partitions: Vec::new(),
            owned_count: 0,
            any_over_share: false,
            in_batches: false,
            endings: Endings::default(),
            drained: HashSet::new(),
            topics: Vec::new(),
            paused_topics: HashSet::new(),
            all_paused: false,
            given_up: HashSet::new(),
            left: Vec::new(),
            draining: None,
            trouble: None,
            report,
            last_read: Instant::now(),
        }
    }

    pub(crate) async fn run(mut self, handlers: Vec<(Topic, Vec<Handling>)>) {
        let driven = AssertUnwindSafe(self.drive(handlers)).catch_unwind().await;
        let ended = driven.unwrap_or_else(|_| {
            End::Broken(Error::new(
                ErrorKind::Unexpected,
                "the source, or the driver of the pool, panicked; the log line of the panic says where",
            ))
        });
        self.finish(ended).await;
    }

    /// Until it ends.
    async fn drive(&mut self, handlers: Vec<(Topic, Vec<Handling>)>) -> End {
        if !handlers.is_empty() {
            for (topic, handlings) in handlers {
                self.handle(&topic, handlings);
                self.topics.push(topic);
            }
            self.source.subscribe(&self.topics);
        }
        let mut events = Vec::new();
        let mut handle_lives = true;
        let mut grace = Grace::default();
        loop {
            while let Ok(message) = self.from_shards.try_recv() {
                self.shard_said(message);
            }
            if self.draining.is_some() {
                if self.endings.is_empty() || grace.is_over() {
                    return End::Drained;
                }
                grace.run(self.endings.all_cancelled());
            }
            self.press_batches();
            let (room, rested) = self.room();
            let wake = self.endings.next_cancel().into_iter().chain(grace.next).chain(rested).min();
            tokio::select! {
                control = self.control.recv(), if handle_lives => match control {
                    Some(control) => self.control(control),
                    None if self.draining.is_some() => handle_lives = false,
                    None => {
                        let (held, group) = (self.budget.held().messages, &self.shared.config.group);
                        tracing::warn!(%group, held, "consumer dropped without drain; its runs are cancelled");
                        return End::Forgotten;
                    }
                },
                message = self.from_shards.recv() => match message {
                    Some(message) => self.shard_said(message),
                    None => return End::Failed(Error::new(ErrorKind::Unexpected, "the shards of the pool have ended")),
                },
                Some(_) = self.tasks.join_next() => {
                    return End::Failed(Error::new(ErrorKind::Unexpected, "a shard of the pool has ended by a panic outside of any run; its log line says where"));
                }
                Some(message) = self.from_keepers.recv() => self.keeper_said(message),
                Some(Err(ended)) = self.keepers.join_next() => if ended.is_panic() {
                    return End::Failed(Error::new(ErrorKind::Unexpected, "the keeper of parked keys has ended by a panic; its log line says where"));
                },
                () = sleep_until(wake) => {
                    let due = self.endings.take_due(Instant::now());
                    self.cancel(&due);
                }
                received = self.source.recv(room, &mut events) => match received {
                    Ok(0) => return End::Failed(Error::closed("consume")),
                    Ok(_) => self.take_in(&mut events),
                    Err(error) => return End::Failed(error),
                },
            }
        }
    }

    fn handle(&mut self, topic: &Topic, handlings: Vec<Handling>) {
        self.in_batches |= handlings.iter().any(|handling| matches!(handling, Handling::Batches(..)));
        for (shard, handling) in self.shards.iter().zip(handlings) {
            shard.tell(ToShard::Handle { topic: topic.clone(), handling });
        }
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::Handle { topic, handlings } => {
                self.handle(&topic, handlings);
                self.given_up.remove(&topic);
                if !self.topics.contains(&topic) && self.draining.is_none() {
                    self.topics.push(topic);
                    self.source.subscribe(&self.topics);
                }
            }
            Control::Unhandle(topic) => {
                let before = self.topics.len();
                self.topics.retain(|other| *other != topic);
                if self.topics.len() == before || self.draining.is_some() {
                    return;
                }
                self.source.subscribe(&self.topics);
                // Its runs go on until its partitions are released; its handler is kept until then.
                for shard in &self.shards {
                    shard.tell(ToShard::GiveUp(topic.clone()));
                }
                self.paused_topics.remove(&topic);
                self.given_up.insert(topic);
                self.apply_pauses();
            }
            Control::PauseAll(paused) => {
                self.all_paused = paused;
                self.apply_pauses();
            }
            Control::Pause(topic) => {
                self.paused_topics.insert(topic);
                self.apply_pauses();
            }
            Control::Resume(topic) => {
                self.paused_topics.remove(&topic);
                self.apply_pauses();
            }
            Control::State(reply) => self.state(reply),
            Control::Drain(within) => self.drain(within),
        }
    }

    fn take_in(&mut self, events: &mut Vec<SourceEvent>) {
        self.budget.begin_read();
        self.last_read = Instant::now();
        let mut events = events.drain(..);
        while let Some(event) = events.as_slice().first() {
            let place = match event {
                SourceEvent::Message(inbound) => self.place(inbound),
                _ => None,
            };
            let Some((shard, lane)) = place else {
                match events.next() {
                    Some(SourceEvent::Message(inbound)) => self.set_aside(inbound),
                    Some(event) => self.happened(event),
                    None => break,
                }
                continue;
            };
            // Made where it belongs. Put together on the stack first, its parts are read again before they have reached the
            // cache, and the driver waits for them half of its time.
            self.batches[shard].extend(once_with(|| match events.next() {
                Some(SourceEvent::Message(Inbound { token, message })) => Job { token, message, lane },
                _ => unreachable!("what has a place is a message"),
            }));
            if self.batches[shard].len() >= MOST {
                self.send_batch(shard);
            }
        }
        drop(events);
        self.send_batches();
        self.apply_pauses();
        self.shared.counters.stale.store(self.source.stale(), Relaxed);
    }

    /// All but a message: after those that came before it.
    fn happened(&mut self, event: SourceEvent) {
        self.send_batches();
        match event {
            SourceEvent::Assigned { owned } => owned.into_iter().for_each(|assigned| self.assigned(assigned)),
            SourceEvent::Revoking { owned, deadline } => self.revoking(owned, Instant::from_std(deadline)),
            SourceEvent::Released { owned, committed } => {
                if let Err(error) = committed {
                    tracing::warn!(partitions = owned.len(), error = %error.chain(),
                            "last commit of a hand-over not accepted; what finished since the one before runs again");
                    self.trouble = Some(error);
                }
            }
            SourceEvent::Lost { owned } => self.lost(&owned),
            SourceEvent::Committed { owned } => self.committed(&owned),
            SourceEvent::Full { full, freed } => {
                full.into_iter().for_each(|owned| self.is_full(owned, true));
                freed.into_iter().for_each(|owned| self.is_full(owned, false));
            }
            SourceEvent::Trouble(error) => {
                tracing::warn!(group = %self.shared.config.group, error = %error.chain(), "source in trouble, goes on");
                self.trouble = Some(error);
            }
            other => tracing::debug!(event = ?other, "an event of a later version of the contract"),
        }
    }

    /// Where a message goes, and counts it: `None` when it cannot go there now.
    #[inline(always)] // The way of every message.
    fn place(&mut self, inbound: &Inbound) -> Option<(usize, Option<LaneKey>)> {
        let owned = inbound.token.owned();
        let partition = self.partitions.get(owned.slot.index())?.as_ref()?;
        if partition.owned != owned || partition.ending || partition.held_back.is_some() {
            return None;
        }
        self.budget.take(owned.slot, inbound.message.byte_len());
        let lane = inbound.message.key.as_ref().map(|key| self.router.lane(partition.seed, key));
        Some((self.router.shard(lane), lane))
    }

    /// A message of an ownership that has not begun is kept for that; of one that is over, it is dropped.
    fn set_aside(&mut self, inbound: Inbound) {
        let Inbound { token, message } = inbound;
        let owned = token.owned();
        let partition = self.partitions.get_mut(owned.slot.index()).and_then(Option::as_mut);
        let waits = partition.filter(|partition| partition.owned == owned && !partition.ending);
        let Some(Partition { seed, held_back: Some(held_back), .. }) = waits else {
            self.source.settle(&mut vec![(token, Settlement::Dropped)]);
            return;
        };
        self.budget.take(owned.slot, message.byte_len());
        let lane = message.key.as_ref().map(|key| self.router.lane(*seed, key));
        held_back.jobs.push(Job { token, message, lane });
    }

    fn send_batches(&mut self) {
        for shard in 0..self.shards.len() {
            if !self.batches[shard].is_empty() {
                self.send_batch(shard);
            }
        }
    }

    fn send_batch(&mut self, shard: usize) {
        let likely = (2 * self.batches[shard].len()).min(MOST);
        let jobs = std::mem::replace(&mut self.batches[shard], self.spare_jobs.take(likely));
        // A shard that is gone is noticed by the end of its task.
        if self.shards[shard].jobs.send(Jobs { jobs, spare: self.spare_outcomes.take(likely) }).is_err() {
            tracing::error!("a shard of the pool has ended");
        }
    }

    fn assigned(&mut self, assigned: Assigned) {
        let owned = assigned.owned;
        let id = Arc::new(assigned.partition.clone());
        let seed = self.router.topic_seed(&id.topic);
        if self.partitions.len() <= owned.slot.index() {
            self.partitions.resize_with(owned.slot.index() + 1, || None);
        }
        if let Some(former) = self.partitions[owned.slot.index()].as_ref().map(|former| former.owned) {
            // The source may begin an ownership without a word about the one before; it has ended by that.
            if !self.endings.contains(former) {
                self.lost(&[former]);
            }
        }
        let keeper = self.keep_parked(&assigned, seed);
        let parked = keeper.is_none().then(Vec::new);
        let partition = Partition {
            owned,
            id,
            seed,
            ending: false,
            paused: false,
            over_share: false,
            full: false,
            held_back: Some(HeldBack { assigned, jobs: Vec::new(), parked, then: None }),
            keeper,
            ahead: Ahead::default(),
        };
        self.partitions[owned.slot.index()] = Some(partition);
        if !self.endings.has_slot(owned.slot) {
            self.begin_held_back(owned.slot);
        }
        self.count_owned();
        if let Some(draining) = &self.draining {
            let deadline = draining.deadline;
            self.end(&[owned], Then::Drain, deadline);
        }
    }

    fn current(&mut self, owned: Owned) -> Option<&mut Partition> {
        self.partitions.get_mut(owned.slot.index())?.as_mut().filter(|partition| partition.owned == owned)
    }

    fn count_owned(&mut self) {
        self.owned_count = self.partitions.iter().flatten().filter(|partition| !partition.ending).count();
    }
}

/// `now`, and as far behind it as there is time.
fn after(now: Instant, wait: Duration) -> Instant {
    now + wait.min(FOR_EVER)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
