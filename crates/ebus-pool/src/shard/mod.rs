//! A shard: one task that runs many key lanes at once (G2, G3, G4).
//!
//! Each pass takes jobs in, polls what runs, brings back what waited for its retry, starts what is ready, and hands the
//! settlements over. A handler that does not wait ends within [`Shard::accept`]: no lane, no box, no queue. What the driver
//! commands is looked at before each job, so that an end never stands behind a backlog.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ebus_core::{Outcome, Owned, Settlement, Slot, Topic};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hashbrown::HashMap;
use slab::Slab;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio_util::time::DelayQueue;

use crate::handlers::Handling;
use crate::jobs::{FromShard, Job, Jobs, MOST, Outcomes, ToShard};
use crate::lane::{self, Head, Lane, LaneHash, Phase, now};
use crate::pace::Pace;
use crate::route::LaneKey;
use crate::run::{OfLane, Run};
use crate::runner::{Ended, PendingRun, Runner, drop_guarded};
use crate::shared::{LEASE_RECHECK, Shared};
use crate::spares::Spares;

/// Jobs taken in, and ends of runs looked at, before the other work of a pass.
const CHUNK: usize = 128;
/// Passes in one poll of the task, before other tasks of the thread have a turn.
const PASSES: usize = 16;
/// The longest wait: what the timers can hold is two years.
const LONGEST_WAIT: Duration = Duration::from_secs(365 * 86_400);

mod ahead;
mod batch;
mod begin;
mod outcome;
mod parked;
mod report;
mod tenure;

use batch::{BatchRun, Batches};
use begin::{Begun, begin};
use tenure::Tenure;

pub(crate) struct Shard {
    index: usize,
    shared: Arc<Shared>,
    commands: UnboundedReceiver<ToShard>,
    jobs: UnboundedReceiver<Jobs>,
    tx: UnboundedSender<FromShard>,
    pace: Pace,
    /// The runtime's clock at the beginning of this poll.
    now: Instant,
    intake: VecDeque<Job>,
    tenures: Vec<Option<Tenure>>,
    routes: Vec<Route>,
    route_of: std::collections::HashMap<Topic, usize>,
    lanes: Slab<Lane>,
    by_key: HashMap<LaneKey, usize, LaneHash>,
    running: FuturesUnordered<Run>,
    batch_runs: FuturesUnordered<BatchRun>,
    timers: DelayQueue<usize>,
    outcomes: Outcomes,
    spare_jobs: Spares<Vec<Job>>,
    spare_outcomes: Spares<Outcomes>,
    spare_queues: Spares<VecDeque<Job>>,
    /// What is over that was settled before its run: partition and bytes.
    over: Vec<(Slot, usize)>,
    /// Slots taken and not in use by a run.
    credit: usize,
    handled: u64,
    /// The route that is looked at first, so that none waits behind another for ever.
    next_route: usize,
}

/// A topic's handler and the lanes that wait for a slot or for its readiness.
struct Route {
    /// Of a topic that is handled message by message.
    runner: Option<Box<dyn Runner>>,
    /// Of one that is handled in batches.
    batches: Option<Batches>,
    ready: VecDeque<usize>,
    /// The handler was asked whether it is ready and was not: it may hold a place in some queue of its own.
    asked: bool,
    /// Its topic is not subscribed any more.
    given_up: bool,
}

impl Shard {
    pub(crate) fn new(
        index: usize,
        shared: Arc<Shared>,
        (commands, jobs): (UnboundedReceiver<ToShard>, UnboundedReceiver<Jobs>),
        tx: UnboundedSender<FromShard>,
    ) -> Self {
        // All of them together have room for a quarter of the budget at most.
        let spare_queues = shared.config.budget_messages / 4 / (2 * lane::FIRST) / shared.config.shards;
        Self {
            index,
            shared,
            commands,
            jobs,
            tx,
            pace: Pace::new(),
            now: now(),
            intake: VecDeque::new(),
            tenures: Vec::new(),
            routes: Vec::new(),
            route_of: std::collections::HashMap::new(),
            lanes: Slab::new(),
            by_key: HashMap::default(),
            running: FuturesUnordered::new(),
            batch_runs: FuturesUnordered::new(),
            timers: DelayQueue::new(),
            outcomes: Outcomes::default(),
            spare_jobs: Spares::new(2, MOST),
            spare_outcomes: Spares::new(2, 2 * MOST),
            spare_queues: Spares::new(spare_queues, 2 * lane::FIRST),
            over: Vec::new(),
            credit: 0,
            handled: 0,
            next_route: 0,
        }
    }

    /// Runs until the driver is gone.
    pub(crate) async fn run(mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
        self.running.iter_mut().for_each(Run::cancel);
        self.batch_runs.iter_mut().for_each(Run::cancel);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.pace.begin();
        self.now = now();
        for _ in 0..PASSES {
            let Pass { progress, enough, closed } = self.pass(cx);
            if closed {
                return Poll::Ready(());
            }
            if enough {
                break;
            }
            if !progress {
                match self.commands.poll_recv(cx) {
                    Poll::Ready(Some(command)) => self.command(command),
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => {
                        self.flush();
                        self.give_back_slots();
                        return Poll::Pending;
                    }
                }
            }
        }
        self.flush();
        self.shared.slots.release(self.index, std::mem::take(&mut self.credit));
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn pass(&mut self, cx: &mut Context<'_>) -> Pass {
        let mut pass = Pass { progress: false, enough: false, closed: self.take_commands() };
        for _ in 0..CHUNK {
            if pass.closed || pass.enough {
                break;
            }
            match self.intake.pop_front() {
                Some(job) => {
                    self.accept(job, cx);
                    pass.enough = self.pace.called(self.index);
                    if !self.commands.is_empty() {
                        pass.closed = self.take_commands();
                    }
                }
                None => match self.jobs.poll_recv(cx) {
                    Poll::Ready(Some(Jobs { jobs, spare })) => {
                        let emptied = std::mem::replace(&mut self.intake, jobs.into());
                        self.spare_jobs.keep(emptied.into());
                        self.spare_outcomes.keep(spare);
                        // What was sent before these jobs, such as the beginning of their ownership.
                        pass.closed = self.take_commands();
                    }
                    Poll::Ready(None) => pass.closed = true,
                    Poll::Pending => break,
                },
            }
            pass.progress = true;
        }
        for _ in 0..CHUNK {
            if pass.closed || pass.enough {
                break;
            }
            let Poll::Ready(Some(end)) = self.running.poll_next_unpin(cx) else { break };
            self.run_ended(end);
            pass.progress = true;
            pass.enough = self.pace.called(self.index);
        }
        self.end_batches(&mut pass, cx);
        while let Poll::Ready(Some(expired)) = self.timers.poll_expired(cx) {
            self.make_ready(expired.into_inner());
            pass.progress = true;
        }
        if self.shared.slots.others_starve(self.index) {
            // What ended runs left, not what was granted: shards that wait would hand that to each other for ever.
            self.shared.slots.release(self.index, std::mem::take(&mut self.credit));
        }
        self.start_ready(&mut pass, cx);
        self.let_go_of_handlers();
        if self.shared.config.at_most_once {
            self.commit_ahead();
        }
        if self.outcomes.settled.len().max(self.over.len()) >= MOST {
            self.flush();
        }
        pass
    }

    /// Does what the driver says; true when it is gone. Not bounded: commands are few, and quick.
    fn take_commands(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.command(command),
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
    }

    /// The shard rests: it has no use for any.
    fn give_back_slots(&mut self) {
        let granted = self.shared.slots.take_granted(self.index);
        self.shared.slots.release(self.index, std::mem::take(&mut self.credit) + granted);
    }

    /// Handlers that nothing waits for any more leave the queues that they stand in, and those of topics that were given up
    /// are dropped.
    fn let_go_of_handlers(&mut self) {
        for index in 0..self.routes.len() {
            let route = &mut self.routes[index];
            let waits =
                !route.ready.is_empty() || route.batches.as_ref().is_some_and(|b| !b.gathered.is_empty());
            if route.asked && !waits {
                route.asked = false;
                if let Some(runner) = &mut route.runner {
                    runner.let_go();
                }
                if let Some(batches) = &mut route.batches {
                    batches.runner.let_go();
                }
            }
            if route.given_up
                && (route.runner.is_some() || route.batches.is_some())
                && !self.tenures.iter().flatten().any(|tenure| tenure.route == index)
            {
                drop_guarded(route.runner.take());
                self.disband(index);
            }
        }
    }

    /// Hands settlements to the driver.
    fn flush(&mut self) {
        if self.handled > 0 {
            self.shared.counters.handled.fetch_add(std::mem::take(&mut self.handled), Relaxed);
        }
        if !self.outcomes.settled.is_empty() {
            let likely = self.outcomes.settled.len().min(MOST);
            let outcomes = std::mem::replace(&mut self.outcomes, self.spare_outcomes.take(likely));
            // A driver that is gone needs no settlements: its source is closed.
            let _ = self.tx.send(FromShard::Settled { outcomes, spare: self.spare_jobs.take(0) });
        }
        if !self.over.is_empty() {
            let _ = self.tx.send(FromShard::Over(std::mem::take(&mut self.over)));
        }
    }

    fn command(&mut self, command: ToShard) {
        match command {
            ToShard::Begin { owned, partition, lease, parked, full } => {
                self.begin_tenure(owned, partition, lease, parked);
                self.is_full(owned, full);
            }
            ToShard::End(owned) => self.end_tenures(&owned),
            ToShard::Cancel(owned) => self.cancel_tenures(&owned),
            ToShard::Handle { topic, handling } => {
                let index = self.route(&topic);
                self.disband(index);
                let route = &mut self.routes[index];
                (route.asked, route.given_up) = (false, false);
                drop_guarded(route.runner.take());
                match handling {
                    Handling::Each(runner) => route.runner = Some(runner),
                    Handling::Batches(batch, runner) => {
                        let budget = self.shared.config.budget_bytes;
                        route.batches = Some(Batches::new(batch, runner, budget));
                    }
                }
            }
            // It is what wakes the shard; the flag is read where it counts.
            ToShard::Press => {}
            ToShard::Full { owned, full } => self.is_full(owned, full),
            ToShard::GiveUp(topic) => {
                let route = self.route(&topic);
                self.routes[route].given_up = true;
            }
            ToShard::Hold { owned, key, held } => self.hold(owned, &key, held),
            ToShard::Redrive { owned, letter, done } => self.redrive(owned, letter, done),
            ToShard::Unhold { owned, key, below } => self.unhold(owned, &key, below),
            ToShard::Committed { owned, lanes } => self.committed(owned, &lanes),
            ToShard::Report(reply) => {
                // Who asked may have stopped waiting.
                let _ = reply.send(self.report());
            }
        }
    }

    fn route(&mut self, topic: &Topic) -> usize {
        if let Some(route) = self.route_of.get(topic) {
            return *route;
        }
        self.routes.push(Route {
            runner: None,
            batches: None,
            ready: VecDeque::new(),
            asked: false,
            given_up: false,
        });
        self.route_of.insert(topic.clone(), self.routes.len() - 1);
        self.routes.len() - 1
    }

    /// Takes a job in: behind its lane if there is one, or it starts at once.
    fn accept(&mut self, job: Job, cx: &mut Context<'_>) {
        let owned = job.token.owned();
        let index = owned.slot.index();
        let Some(tenure) =
            self.tenures.get(index).and_then(Option::as_ref).filter(|t| t.owned == owned && !t.ending)
        else {
            self.settle(job, Settlement::Dropped);
            return;
        };
        if let Some(lane) = job.lane.and_then(|key| self.by_key.get(&key)) {
            let (id, route) = (*lane, tenure.route);
            let lane = &mut self.lanes[id];
            if lane.queue.capacity() == 0 {
                lane.queue = self.spare_queues.take(lane::FIRST);
            }
            lane.push(job);
            if let Phase::Gathering { .. } = lane.phase {
                self.gather_more(route, id);
            }
            return;
        }
        if tenure.ahead.is_some()
            || tenure.parked.as_ref().is_some_and(|parked| parked.concerns(&job.message))
        {
            self.queue_new_lane(job);
            return;
        }
        let route = &mut self.routes[tenure.route];
        if !route.ready.is_empty() {
            self.queue_new_lane(job);
            return;
        }
        match begin(&self.shared, self.index, &mut self.credit, route, tenure, &job, 1, cx) {
            Begun::Ended(Ended::Outcome(Outcome::Ack)) => {
                self.handled += 1;
                let bytes = job.message.byte_len();
                self.outcomes.push(job.token, bytes, Settlement::Finished);
            }
            Begun::Ended(ended) => {
                let lane = self.new_lane(job, 1, Phase::Ready);
                self.head_ended(lane, Some(ended));
            }
            Begun::Running(run) => {
                let lane = self.new_lane(job, 1, Phase::Running { since: self.now });
                self.push_run(lane, owned, run);
            }
            Begun::Blocked => self.queue_new_lane(job),
            Begun::LeaseOver => {
                let lane = self.new_lane(job, 0, Phase::Ready);
                self.wait_for_lease(lane);
            }
        }
    }

    fn new_lane(&mut self, job: Job, attempts: u32, phase: Phase) -> usize {
        let key = job.lane;
        let head = Head { attempts, ..Head::new(job, self.now) };
        let lane = self.lanes.insert(Lane {
            key,
            head,
            queue: VecDeque::new(),
            phase,
            alone: 0,
            redrive: None,
            ahead: None,
        });
        if let Some(key) = key {
            self.by_key.insert(key, lane);
        }
        lane
    }

    fn queue_new_lane(&mut self, job: Job) {
        let lane = self.new_lane(job, 0, Phase::Ready);
        self.make_ready(lane);
    }

    /// Puts a lane into its route's queue, unless its key is parked, or it has to be committed before.
    fn make_ready(&mut self, lane: usize) {
        self.lanes[lane].phase = Phase::Ready;
        let owned = self.lanes[lane].head.job.token.owned();
        let is_ahead = self.lanes[lane].is_ahead();
        let Some(tenure) = self.tenure(owned) else {
            debug_assert!(false, "the head of a lane belongs to a tenure");
            return;
        };
        let (route, parks) = (tenure.route, tenure.parked.is_some());
        if let Some(ahead) = tenure.ahead.as_mut().filter(|_| !is_ahead) {
            return ahead.waiting.push_back(lane);
        }
        if parks && !self.may_run(lane) {
            return;
        }
        self.routes[route].ready.push_back(lane);
    }

    fn push_run(&mut self, lane: usize, owned: Owned, run: PendingRun) {
        if let Some(tenure) = self.tenure(owned) {
            tenure.running += 1;
        }
        self.running.push(Run::new(OfLane { lane, owned }, run));
    }

    fn wait(&mut self, lane: usize, delay: Duration) {
        self.wait_until(lane, delay.min(LONGEST_WAIT), false);
    }

    fn wait_for_lease(&mut self, lane: usize) {
        self.wait_until(lane, LEASE_RECHECK, true);
    }

    fn wait_until(&mut self, lane: usize, delay: Duration, lease_over: bool) {
        let until = tokio::time::Instant::now() + delay;
        let timer = self.timers.insert_at(lane, until);
        self.lanes[lane].phase = Phase::Waiting { timer, until: until.into_std(), lease_over };
    }
}

/// What a pass came to.
struct Pass {
    /// Something was done, so that there may be more.
    progress: bool,
    /// The poll has lasted long enough.
    enough: bool,
    /// The driver is gone.
    closed: bool,
}
