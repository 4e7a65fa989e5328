//! The handle of a running pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use ebus_core::{BatchHandler, Error, ErrorKind, Handler, Source, Topic};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;

use crate::batch::Batch;
use crate::config::PoolConfig;
use crate::driver::{Control, Driver, ShardHandle};
use crate::handlers::{Handlers, Handling, batches, each};
use crate::parked::AllLists;
use crate::shard::Shard;
use crate::shared::Shared;
use crate::slots::Slots;
use crate::state::{AtomicCounters, Counters, DrainReport, PoolState};

/// Runs handlers on what a source delivers.
///
/// Dropping it stops at once: runs are cancelled, nothing more is committed, and a warning is logged. Use
/// [`drain`](Self::drain) to finish what runs.
#[derive(Debug)]
pub struct Pool {
    control: UnboundedSender<Control>,
    report: watch::Receiver<Option<DrainReport>>,
    shared: Arc<Shared>,
    shards: usize,
    draining: AtomicBool,
}

impl Pool {
    /// Starts without handlers: nothing is handled before the first [`subscribe`](Self::subscribe).
    ///
    /// # Errors
    /// `ConfigInvalid`, naming all that is wrong.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(source: Box<dyn Source>, config: PoolConfig) -> Result<Self, Error> {
        Self::start_with(source, config, Handlers::new())
    }

    /// Starts with these handlers; the source is asked for all of their topics at once.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming all that is wrong.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start_with(
        source: Box<dyn Source>,
        config: PoolConfig,
        handlers: Handlers,
    ) -> Result<Self, Error> {
        config.validate()?;
        if config.most_parked.is_some() && config.parking.is_none() {
            let message = "parked keys have no place to be kept; give the pool one";
            return Err(Error::new(ErrorKind::ConfigInvalid, message).with_operation("start"));
        }
        handlers.validate(&config)?;
        let shards = config.shards;
        let shared = Arc::new(Shared {
            slots: Slots::new(config.max_in_flight, shards),
            counters: AtomicCounters::default(),
            dead_letter_errors: Default::default(),
            lists: AllLists::new(config.most_list_bytes()),
            redrives: Arc::new(Semaphore::new(config.most_redrives())),
            press: AtomicBool::new(false),
            config,
        });
        let (to_driver, from_shards) = unbounded_channel();
        let mut tasks = JoinSet::new();
        let to_shards = (0..shards)
            .map(|index| {
                let (commands, commands_rx) = unbounded_channel();
                let (jobs, jobs_rx) = unbounded_channel();
                let shard = Shard::new(index, shared.clone(), (commands_rx, jobs_rx), to_driver.clone());
                tasks.spawn(shard.run());
                ShardHandle { commands, jobs }
            })
            .collect();
        drop(to_driver);
        let (control, control_rx) = unbounded_channel();
        let handlers = handlers.into_handlings(shards);
        let (report, report_rx) = watch::channel(None);
        let driver = Driver::new(shared.clone(), source, control_rx, from_shards, (to_shards, tasks), report);
        tokio::spawn(driver.run(handlers));
        Ok(Self { control, report: report_rx, shared, shards, draining: AtomicBool::new(false) })
    }

    /// Handles `topic` with `handler` from now on; an earlier handler of it is replaced for runs that start later.
    ///
    /// # Errors
    /// `Closed` when the pool drains or has ended.
    pub fn subscribe<H: Handler>(&self, topic: Topic, handler: H) -> Result<(), Error> {
        self.handle(topic, each(handler)(self.shards))
    }

    /// Handles `topic` in batches from now on; an earlier handler of it is replaced for runs that start later.
    ///
    /// # Errors
    /// `ConfigInvalid` for a batch that could not fill; `Closed` when the pool drains or has ended.
    pub fn subscribe_batch<H: BatchHandler>(
        &self,
        topic: Topic,
        batch: Batch,
        handler: H,
    ) -> Result<(), Error> {
        let problems = batch.problems(&self.shared.config);
        if !problems.is_empty() {
            return Err(Error::new(ErrorKind::ConfigInvalid, problems.join("; "))
                .with_operation("subscribe")
                .with_context("topic", &topic));
        }
        self.handle(topic, batches(batch, handler)(self.shards))
    }

    fn handle(&self, topic: Topic, handlings: Vec<Handling>) -> Result<(), Error> {
        if self.draining.load(Relaxed) {
            return Err(Error::closed("subscribe"));
        }
        self.send(Control::Handle { topic, handlings }, "subscribe")
    }

    /// Gives a topic up: its partitions go to the other members as at a rebalance, with the time for a hand-over for what
    /// runs; what is queued is theirs. The other topics go on. A pause of the topic ends with it.
    ///
    /// # Errors
    /// `Closed` when the pool has ended.
    pub fn unsubscribe(&self, topic: &Topic) -> Result<(), Error> {
        self.send(Control::Unhandle(topic.clone()), "unsubscribe")
    }

    /// Stops reading a topic; what is held is handled, and the partitions stay owned. It lasts over rebalances.
    ///
    /// # Errors
    /// `Closed` when the pool has ended.
    pub fn pause(&self, topic: &Topic) -> Result<(), Error> {
        self.send(Control::Pause(topic.clone()), "pause")
    }

    /// Reads a topic again; not while all are paused.
    ///
    /// # Errors
    /// `Closed` when the pool has ended.
    pub fn resume(&self, topic: &Topic) -> Result<(), Error> {
        self.send(Control::Resume(topic.clone()), "resume")
    }

    /// Stops reading all topics, those that are subscribed later too; what is held is handled, and the partitions stay owned.
    ///
    /// # Errors
    /// `Closed` when the pool has ended.
    pub fn pause_all(&self) -> Result<(), Error> {
        self.send(Control::PauseAll(true), "pause")
    }

    /// Reads all topics again, but for those that are paused by themselves.
    ///
    /// # Errors
    /// `Closed` when the pool has ended.
    pub fn resume_all(&self) -> Result<(), Error> {
        self.send(Control::PauseAll(false), "resume")
    }

    fn send(&self, control: Control, operation: &'static str) -> Result<(), Error> {
        self.control.send(control).map_err(|_| Error::closed(operation))
    }

    /// What happened since the start, without asking anybody.
    pub fn counters(&self) -> Counters {
        self.shared.counters.snapshot()
    }

    /// What is held, what is stuck and why.
    ///
    /// Answers within about a second, also when handlers block their threads.
    pub async fn state(&self) -> PoolState {
        let (reply, answer) = oneshot::channel();
        // A pool that has ended drops the question, and with it the answer.
        let _ = self.send(Control::State(reply), "state");
        if let Ok(state) = answer.await {
            return state;
        }
        let ended = self.report.borrow().as_ref().and_then(|report| report.committed.clone().err());
        PoolState { counters: self.counters(), ended, ..PoolState::default() }
    }

    /// Waits until the pool has ended by itself or by a drain, and says how.
    ///
    /// # Cancel safety
    /// Safe: dropping it changes nothing.
    pub async fn ended(&self) -> DrainReport {
        let mut report = self.report.clone();
        let ended = report.wait_for(Option::is_some).await.ok().and_then(|report| report.clone());
        ended.unwrap_or_else(|| DrainReport {
            finished: 0,
            left: Vec::new(),
            committed: Err(Error::new(
                ErrorKind::Unexpected,
                "the driver of the pool has ended without a report",
            )),
            counters: self.counters(),
        })
    }

    /// Starts nothing more, lets what runs end within `within`, cancels the rest, commits, and leaves the group. The last
    /// commit may take a second more.
    ///
    /// Asked again, also from other tasks, it gives the same report; the sooner deadline counts. A handler that waits for the
    /// drain of its own pool waits until it is cancelled.
    ///
    /// # Cancel safety
    /// The drain goes on when this future is dropped.
    pub async fn drain(&self, within: Duration) -> DrainReport {
        self.draining.store(true, Relaxed);
        // A pool that has ended has its report.
        let _ = self.send(Control::Drain(within), "drain");
        self.ended().await
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}
