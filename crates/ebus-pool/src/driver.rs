//! The driver: owns the source and the budget, and ends ownerships in the right order (G1, G3, G5, G6).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ebus_core::{
    Assigned, Error, ErrorKind, Inbound, Message, Outcome, Owned, PartitionId, Settlement, Slot, Source,
    SourceEvent, Token, Topic,
};
use futures_util::FutureExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::config::PoolConfig;
use crate::dead_letter::{Obituary, Origin, letter};
use crate::endings::{Ending, Endings, Then};
use crate::jobs::{FromShard, Job, ShardReport, ToShard};
use crate::retry::RetryPolicy;
use crate::route::Router;
use crate::runner::{Ended, Runner};
use crate::share::Budget;
use crate::slots::Slots;
use crate::state::{AtomicCounters, DrainReport, Left, PartitionState, PoolState};

/// How long a drain that is past its deadline waits for shards whose thread a handler blocks.
const BLOCKED_GRACE: Duration = Duration::from_secs(5);
/// The least time for the last commit, when a drain has used its own up.
const LEAST_CLOSE: Duration = Duration::from_secs(1);
/// How long a state waits for a shard.
const REPORT_WITHIN: Duration = Duration::from_secs(1);

/// What driver, shards and handle share.
pub(crate) struct Shared {
    pub(crate) config: PoolConfig,
    pub(crate) slots: Slots,
    pub(crate) counters: AtomicCounters,
    pub(crate) dead_letter_error: std::sync::Mutex<Option<Error>>,
}

impl Shared {
    fn set_dead_letter_error(&self, error: Option<Error>) {
        *self.dead_letter_error.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = error;
    }

    pub(crate) fn dead_letter_error(&self) -> Option<Error> {
        self.dead_letter_error.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Publishes until the receipt is there. The message is settled after that, never before.
    pub(crate) async fn publish_dead_letter(
        self: Arc<Self>,
        origin: Origin,
        message: Message,
        why: Obituary,
    ) -> Ended {
        let Some((topic, publisher)) = &self.config.dead_letter else {
            return Ended::Outcome(Outcome::Reject { error: why.error });
        };
        let mut publisher = publisher.clone();
        let mut short = false;
        let mut delays = RetryPolicy::exponential().cap(Duration::from_secs(10)).backoff();
        loop {
            let publish = publisher.publish(letter(topic, &origin, &message, &why, short));
            let published = std::panic::AssertUnwindSafe(publish).catch_unwind().await;
            let error = match published {
                Ok(Ok(_receipt)) => {
                    self.set_dead_letter_error(None);
                    return Ended::Outcome(Outcome::Ack);
                }
                Ok(Err(error)) => error,
                Err(_) => Error::new(ErrorKind::Unexpected, "the publisher of dead letters panicked"),
            };
            if error.kind() == ErrorKind::TooLarge && !short {
                short = true;
                continue;
            }
            tracing::warn!(group = %origin.group, partition = %origin.partition, offset = origin.offset, to = %topic,
                error = %error.chain(), "dead letter not published; its key waits until it is");
            self.set_dead_letter_error(Some(error));
            tokio::time::sleep(delays.next().unwrap_or_default()).await;
        }
    }
}

/// From the handle to the driver.
pub(crate) enum Control {
    /// Handles a topic from now on, one runner a shard.
    Handle {
        topic: Topic,
        runners: Vec<Box<dyn Runner>>,
    },
    Pause(Topic),
    Resume(Topic),
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
    /// The ownership before this one has not ended in every shard: what it waits with.
    held_back: Option<(Assigned, Vec<Job>)>,
}

struct Draining {
    deadline: Instant,
    handled_before: u64,
}

pub(crate) struct Driver {
    shared: Arc<Shared>,
    source: Box<dyn Source>,
    control: UnboundedReceiver<Control>,
    from_shards: UnboundedReceiver<FromShard>,
    shards: Vec<UnboundedSender<ToShard>>,
    router: Router,
    budget: Budget,
    partitions: Vec<Option<Partition>>,
    owned_count: usize,
    any_over_share: bool,
    endings: Endings,
    /// Ended for a drain, not released.
    drained: HashSet<Owned>,
    topics: Vec<Topic>,
    paused_topics: HashSet<Topic>,
    batches: Vec<Vec<Job>>,
    left: Vec<Left>,
    draining: Option<Draining>,
    trouble: Option<Error>,
    report: watch::Sender<Option<DrainReport>>,
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        source: Box<dyn Source>,
        control: UnboundedReceiver<Control>,
        from_shards: UnboundedReceiver<FromShard>,
        shards: Vec<UnboundedSender<ToShard>>,
        report: watch::Sender<Option<DrainReport>>,
    ) -> Self {
        let config = &shared.config;
        Self {
            router: Router::new(shards.len()),
            budget: Budget::new(config.budget_messages, config.budget_bytes),
            batches: shards.iter().map(|_| Vec::new()).collect(),
            shared,
            source,
            control,
            from_shards,
            shards,
            partitions: Vec::new(),
            owned_count: 0,
            any_over_share: false,
            endings: Endings::default(),
            drained: HashSet::new(),
            topics: Vec::new(),
            paused_topics: HashSet::new(),
            left: Vec::new(),
            draining: None,
            trouble: None,
            report,
        }
    }

    pub(crate) async fn run(mut self) {
        let mut events = Vec::new();
        let mut handle_lives = true;
        let ended = loop {
            while let Ok(message) = self.from_shards.try_recv() {
                self.shard_said(message);
            }
            if let Some(draining) = &self.draining {
                let blocked = Instant::now() >= draining.deadline + BLOCKED_GRACE;
                if self.endings.is_empty() || blocked {
                    break None;
                }
            }
            let room = if self.draining.is_some() { 0 } else { self.budget.room() };
            let wake = self.next_wake();
            tokio::select! {
                control = self.control.recv(), if handle_lives => match control {
                    Some(control) => self.control(control),
                    None if self.draining.is_some() => handle_lives = false,
                    None => {
                        let (held, group) = (self.budget.held().messages, &self.shared.config.group);
                        tracing::warn!(%group, held, "consumer dropped without drain; its runs are cancelled");
                        return;
                    }
                },
                message = self.from_shards.recv() => match message {
                    Some(message) => self.shard_said(message),
                    None => break Some(Error::new(ErrorKind::Unexpected, "the shards of the pool have ended")),
                },
                () = sleep_until(wake) => {
                    let due = self.endings.take_due(Instant::now());
                    self.cancel(&due);
                }
                received = self.source.recv(room, &mut events) => match received {
                    Ok(0) => break Some(Error::closed("consume")),
                    Ok(_) => self.take_in(&mut events),
                    Err(error) => break Some(error),
                },
            }
        };
        self.finish(ended).await;
    }

    fn next_wake(&self) -> Option<Instant> {
        let blocked = self.draining.as_ref().map(|draining| draining.deadline + BLOCKED_GRACE);
        self.endings.next_cancel().into_iter().chain(blocked).min()
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::Handle { topic, runners } => {
                for (shard, runner) in self.shards.iter().zip(runners) {
                    send(shard, ToShard::Handler { topic: topic.clone(), runner });
                }
                if !self.topics.contains(&topic) {
                    self.topics.push(topic);
                    self.source.subscribe(&self.topics);
                }
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
        for event in events.drain(..) {
            if let SourceEvent::Message(inbound) = event {
                self.route(inbound);
                continue;
            }
            self.send_batches();
            match event {
                SourceEvent::Assigned { owned } => {
                    owned.into_iter().for_each(|assigned| self.assigned(assigned))
                }
                SourceEvent::Revoking { owned, deadline } => {
                    self.revoking(owned, Instant::from_std(deadline))
                }
                SourceEvent::Released { owned, committed } => {
                    if let Err(error) = committed {
                        tracing::warn!(partitions = owned.len(), error = %error.chain(),
                            "last commit of a hand-over not accepted; what finished since the one before runs again");
                        self.trouble = Some(error);
                    }
                }
                SourceEvent::Lost { owned } => self.lost(&owned),
                SourceEvent::Trouble(error) => {
                    tracing::warn!(group = %self.shared.config.group, error = %error.chain(), "source in trouble, goes on");
                    self.trouble = Some(error);
                }
                other => tracing::debug!(event = ?other, "an event of a later version of the contract"),
            }
        }
        self.send_batches();
        self.apply_pauses();
        self.shared.counters.stale.store(self.source.stale(), Relaxed);
    }

    fn route(&mut self, inbound: Inbound) {
        let Inbound { token, message } = inbound;
        let owned = token.owned();
        let bytes = message.byte_len();
        let partition = self.partitions.get_mut(owned.slot.index()).and_then(Option::as_mut);
        let Some(partition) = partition.filter(|partition| partition.owned == owned && !partition.ending)
        else {
            self.source.settle(&mut vec![(token, Settlement::Dropped)]);
            return;
        };
        self.budget.take(owned.slot, bytes);
        let lane = message.key.as_ref().map(|key| self.router.lane(partition.seed, key));
        let job = Job { token, message, lane };
        if let Some((_, jobs)) = &mut partition.held_back {
            jobs.push(job);
            return;
        }
        let shard = match lane {
            Some(lane) => self.router.shard(lane),
            None => self.router.shard_without_key(),
        };
        self.batches[shard].push(job);
    }

    fn send_batches(&mut self) {
        for (shard, batch) in self.shards.iter().zip(&mut self.batches) {
            if !batch.is_empty() {
                send(shard, ToShard::Jobs(std::mem::take(batch)));
            }
        }
    }

    fn assigned(&mut self, assigned: Assigned) {
        let owned = assigned.owned;
        let id = Arc::new(assigned.partition.clone());
        let seed = self.router.topic_seed(&id.topic);
        if self.partitions.len() <= owned.slot.index() {
            self.partitions.resize_with(owned.slot.index() + 1, || None);
        }
        let mut partition =
            Partition { owned, id, seed, ending: false, paused: false, over_share: false, held_back: None };
        if self.endings.has_slot(owned.slot) {
            partition.held_back = Some((assigned, Vec::new()));
        } else {
            self.begin(&assigned);
        }
        self.partitions[owned.slot.index()] = Some(partition);
        self.count_owned();
        if let Some(draining) = &self.draining {
            let deadline = draining.deadline;
            self.end(&[owned], Then::Drain, deadline);
        }
    }

    fn begin(&self, assigned: &Assigned) {
        for shard in &self.shards {
            let partition = Arc::new(assigned.partition.clone());
            send(shard, ToShard::Begin { owned: assigned.owned, partition, lease: assigned.lease.clone() });
        }
    }

    fn current(&mut self, owned: Owned) -> Option<&mut Partition> {
        self.partitions.get_mut(owned.slot.index())?.as_mut().filter(|partition| partition.owned == owned)
    }

    fn count_owned(&mut self) {
        self.owned_count = self.partitions.iter().flatten().filter(|partition| !partition.ending).count();
    }

    fn revoking(&mut self, owned: Vec<Owned>, deadline: Instant) {
        let (drained, open): (Vec<_>, Vec<_>) =
            owned.into_iter().partition(|owned| self.drained.remove(owned));
        if !drained.is_empty() {
            self.source.release(&drained);
        }
        self.end(&open, Then::Release, deadline);
    }

    /// Ends ownerships: starts nothing more of them, and lets what runs end until the deadline.
    fn end(&mut self, owned: &[Owned], then: Then, deadline: Instant) {
        let shards = self.shards.len();
        let mut begun = Vec::new();
        let mut never_began = Vec::new();
        for owned in owned {
            if let Some(ending) = self.endings.get_mut(*owned) {
                ending.then = then;
                continue;
            }
            let Some(partition) = self.current(*owned).filter(|partition| !partition.ending) else {
                // Known to the source and not to us: nothing of it can run.
                if then == Then::Release {
                    never_began.push(*owned);
                }
                continue;
            };
            partition.ending = true;
            match partition.held_back.take() {
                Some((_, jobs)) => {
                    never_began.push(*owned);
                    for job in jobs {
                        self.settle_now(job);
                    }
                }
                None => {
                    self.endings.begin(*owned, shards, then, deadline);
                    begun.push(*owned);
                }
            }
        }
        if !begun.is_empty() {
            for shard in &self.shards {
                send(shard, ToShard::End(begun.clone()));
            }
        }
        for owned in never_began {
            self.ended(owned, then);
        }
        self.count_owned();
    }

    fn settle_now(&mut self, job: Job) {
        self.budget.give(job.token.owned().slot, job.message.byte_len());
        self.source.settle(&mut vec![(job.token, Settlement::Dropped)]);
    }

    fn lost(&mut self, owned: &[Owned]) {
        self.end(owned, Then::Forget, Instant::now());
        for owned in owned {
            self.drained.remove(owned);
        }
        self.cancel(owned);
    }

    fn cancel(&mut self, owned: &[Owned]) {
        let open: Vec<Owned> = owned.iter().copied().filter(|owned| self.endings.contains(*owned)).collect();
        if open.is_empty() {
            return;
        }
        for owned in &open {
            self.endings.cancelled(*owned);
        }
        for shard in &self.shards {
            send(shard, ToShard::Cancel(open.clone()));
        }
    }

    fn shard_said(&mut self, message: FromShard) {
        match message {
            FromShard::Settled { mut batch, sizes } => {
                for ((token, _), bytes) in batch.iter().zip(sizes) {
                    self.budget.give(token.owned().slot, bytes);
                }
                if !self.endings.is_empty() {
                    batch.retain(|(token, _): &(Token, Settlement)| !self.endings.is_lost(token.owned()));
                }
                self.source.settle(&mut batch);
                if self.any_over_share {
                    self.apply_pauses();
                }
            }
            FromShard::Ended { owned, left } => {
                if let Some(ending) = self.endings.confirm(owned, left) {
                    self.note_left(owned, &ending);
                    self.ended(owned, ending.then);
                }
            }
        }
    }

    fn note_left(&mut self, owned: Owned, ending: &Ending) {
        let left = ending.left;
        if self.draining.is_none() || left.queued + left.failing + left.cancelled == 0 {
            return;
        }
        if let Some(partition) = self.partitions.get(owned.slot.index()).and_then(Option::as_ref) {
            self.left.push(Left {
                partition: PartitionId::clone(&partition.id),
                queued: left.queued,
                failing: left.failing,
                cancelled: left.cancelled,
            });
        }
    }

    /// Every shard has confirmed the end of this ownership.
    fn ended(&mut self, owned: Owned, then: Then) {
        match then {
            Then::Release => self.source.release(&[owned]),
            Then::Forget => {}
            Then::Drain => {
                self.drained.insert(owned);
            }
        }
        let slot = owned.slot;
        if self.current(owned).is_some() {
            self.partitions[slot.index()] = None;
        } else if !self.endings.has_slot(slot) {
            self.begin_held_back(slot);
        }
        self.count_owned();
    }

    /// The former ownership has ended everywhere: the next one of the partition begins.
    fn begin_held_back(&mut self, slot: Slot) {
        let Some(partition) = self.partitions[slot.index()].as_mut() else { return };
        let Some((assigned, jobs)) = partition.held_back.take() else { return };
        self.begin(&assigned);
        for job in jobs {
            let shard = match job.lane {
                Some(lane) => self.router.shard(lane),
                None => self.router.shard_without_key(),
            };
            self.batches[shard].push(job);
        }
        self.send_batches();
    }

    /// Tells the source which partitions to read: those that the user has not paused and that hold no more than they should.
    fn apply_pauses(&mut self) {
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        self.any_over_share = false;
        for partition in self.partitions.iter_mut().flatten().filter(|partition| !partition.ending) {
            partition.over_share =
                self.budget.is_over(partition.owned.slot, self.owned_count, partition.over_share);
            self.any_over_share |= partition.over_share;
            let want = partition.over_share || self.paused_topics.contains(&partition.id.topic);
            if want != partition.paused {
                partition.paused = want;
                if want { pause.push(partition.owned) } else { resume.push(partition.owned) }
            }
        }
        if !pause.is_empty() {
            self.source.pause(&pause);
        }
        if !resume.is_empty() {
            self.source.resume(&resume);
        }
    }

    fn drain(&mut self, within: Duration) {
        if self.draining.is_some() {
            return;
        }
        let deadline = Instant::now() + within;
        self.draining = Some(Draining { deadline, handled_before: self.finished() });
        let all: Vec<Owned> = self.partitions.iter().flatten().map(|partition| partition.owned).collect();
        let open: Vec<Owned> = all.into_iter().filter(|owned| !self.endings.contains(*owned)).collect();
        self.end(&open, Then::Drain, deadline);
    }

    fn finished(&self) -> u64 {
        let counters = self.shared.counters.snapshot();
        counters.handled + counters.dead_letters + counters.dropped
    }

    /// Closes the source and reports.
    async fn finish(mut self, ended: Option<Error>) {
        let by_itself = ended.is_some();
        if by_itself {
            let all: Vec<Owned> = self.partitions.iter().flatten().map(|partition| partition.owned).collect();
            self.lost(&all);
        }
        let blocked: Vec<(Owned, Ending)> = self.endings.drain().collect();
        if !by_itself && !blocked.is_empty() {
            tracing::error!(
                partitions = blocked.len(),
                "handlers block their threads past the deadline of the drain"
            );
        }
        let finished = self.finished();
        let (deadline, before) =
            self.draining.as_ref().map_or((Instant::now(), finished), |d| (d.deadline, d.handled_before));
        let within = deadline.saturating_duration_since(Instant::now()).max(LEAST_CLOSE);
        let closed = self.source.close(within).await;
        let committed = match ended {
            Some(error) => Err(error),
            None => closed,
        };
        let counters = self.shared.counters.snapshot();
        let report = DrainReport { finished: finished - before, left: self.left, committed, counters };
        if let (true, Err(error)) = (by_itself, &report.committed) {
            tracing::error!(group = %self.shared.config.group, error = %error.chain(), "consumer has ended by itself");
        }
        self.report.send_replace(Some(report));
    }

    fn state(&self, reply: oneshot::Sender<PoolState>) {
        let held = self.budget.held();
        let partitions = self.partitions.iter().flatten().map(|partition| {
            let held = self.budget.held_by(partition.owned.slot);
            PartitionState {
                partition: PartitionId::clone(&partition.id),
                epoch: partition.owned.epoch,
                held_messages: held.messages,
                held_bytes: held.bytes,
                paused: partition.paused,
                ending: partition.ending,
            }
        });
        let mut state = PoolState {
            held_messages: held.messages,
            held_bytes: held.bytes,
            partitions: partitions.collect(),
            counters: self.shared.counters.snapshot(),
            dead_letter_error: self.shared.dead_letter_error(),
            trouble: self.trouble.clone(),
            ..PoolState::default()
        };
        let asked: Vec<oneshot::Receiver<ShardReport>> = self
            .shards
            .iter()
            .map(|shard| {
                let (reply, answer) = oneshot::channel();
                send(shard, ToShard::Report(reply));
                answer
            })
            .collect();
        tokio::spawn(async move {
            let deadline = Instant::now() + REPORT_WITHIN;
            for answer in asked {
                match tokio::time::timeout_at(deadline, answer).await {
                    Ok(Ok(report)) => {
                        state.in_flight += report.running;
                        state.lanes += report.lanes;
                        state.stuck.extend(report.stuck);
                    }
                    _ => state.blocked_shards += 1,
                }
            }
            state.stuck.sort_by_key(|stuck| std::cmp::Reverse(stuck.age));
            // Who asked may have stopped waiting.
            let _ = reply.send(state);
        });
    }
}

/// A shard that is gone is noticed by the end of its channel.
fn send(shard: &UnboundedSender<ToShard>, message: ToShard) {
    if shard.send(message).is_err() {
        tracing::error!("a shard of the pool has ended");
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
