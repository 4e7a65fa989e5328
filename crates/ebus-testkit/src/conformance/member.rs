//! Members of a group, as a process each.

use std::sync::Arc;
use std::time::Duration;

use ebus_core::{
    Backend, BatchOutcome, Delivery, Error, ErrorKind, Group, Outcome, Source, SourceOptions, Topic,
};
use ebus_pool::{Batch, DrainReport, Handlers, Pool, PoolConfig, PoolState, RetryPolicy};
use parking_lot::Mutex;

use super::batches::{self, BatchFn, batch_fn};
use super::ctx::{Connected, Ctx};
use super::failure::{Checked, Failure};
use super::handler::{HandlerFn, handler_fn};
use super::link::Wire;
use super::wait::eventually;
use crate::history::{Event, History, Kind, name};
use crate::record::RecordedHandler;

/// How soon a failed message of a case runs again, if the case says nothing.
const RETRY: Duration = Duration::from_millis(20);

/// A member that is being described.
pub(super) struct MemberBuilder<'c> {
    ctx: &'c Ctx,
    label: String,
    group: Group,
    handler: HandlerFn,
    batches: Option<(Batch, BatchFn)>,
    options: SourceOptions,
    pool: PoolConfig,
    dead_letter: Option<Topic>,
    most_parked: Option<usize>,
    again: Option<String>,
    silent: bool,
    mortal: bool,
}

impl<'c> MemberBuilder<'c> {
    pub(super) fn new(ctx: &'c Ctx, label: &str, group: &Group, topics: &[&Topic]) -> Self {
        let topics: Vec<Topic> = topics.iter().map(|topic| (*topic).clone()).collect();
        Self {
            ctx,
            label: label.to_owned(),
            group: group.clone(),
            handler: handler_fn(|_| async { Outcome::Ack }),
            batches: None,
            options: SourceOptions::new(group.clone(), topics),
            pool: PoolConfig::new(group.clone()).with_retry(RetryPolicy::fixed(RETRY)),
            dead_letter: None,
            most_parked: None,
            again: None,
            silent: false,
            mortal: false,
        }
    }

    /// Handles all topics; without it every message is a success.
    pub(super) fn handler<F, R>(mut self, handle: F) -> Self
    where
        F: Fn(Delivery) -> R + Send + Sync + 'static,
        R: Future<Output = Outcome> + Send + 'static,
    {
        self.handler = handler_fn(handle);
        self
    }

    /// Handles all topics in batches.
    pub(super) fn batches<F, R>(mut self, batch: Batch, handle: F) -> Self
    where
        F: Fn(Vec<Delivery>) -> R + Send + Sync + 'static,
        R: Future<Output = BatchOutcome> + Send + 'static,
    {
        self.batches = Some((batch, batch_fn(handle)));
        self
    }

    pub(super) fn options(mut self, change: impl FnOnce(SourceOptions) -> SourceOptions) -> Self {
        self.options = change(self.options);
        self
    }

    pub(super) fn pool(mut self, change: impl FnOnce(PoolConfig) -> PoolConfig) -> Self {
        self.pool = change(self.pool);
        self
    }

    /// It is at most once; before [`pool`](Self::pool). The oracle holds it against the group.
    pub(super) fn at_most_once(mut self) -> Self {
        self.ctx.rules(|rules| rules.at_most_once(self.group.as_str()));
        self.pool = PoolConfig::new(self.group.clone()).with_at_most_once();
        self
    }

    /// It drops what fails; before [`pool`](Self::pool). The oracle holds it against the group.
    pub(super) fn drop_on_failure(mut self) -> Self {
        self.ctx.rules(|rules| rules.drop_on_failure(self.group.as_str()));
        self.pool = PoolConfig::new(self.group.clone()).with_drop_on_failure();
        self
    }

    /// It reads its topics before anything handles them.
    pub(super) fn without_handlers(mut self) -> Self {
        self.silent = true;
        self
    }

    /// Dead letters go to `topic`, by the member's own connection.
    pub(super) fn dead_letter(mut self, topic: &Topic) -> Self {
        self.dead_letter = Some(topic.clone());
        self
    }

    /// Keys of dead letters are parked, at most so many in a partition. The oracle holds it against the group.
    pub(super) fn parks(mut self, most: usize) -> Self {
        self.most_parked = Some(most);
        self
    }

    /// The same process as a member before: the oracle does not excuse that it forgot what it knew.
    pub(super) fn again(mut self, name: &str) -> Self {
        self.again = Some(name.to_owned());
        self
    }

    /// It has a network of its own, where there is such a thing: the case will kill it, or cut it off.
    pub(super) fn mortal(mut self) -> Self {
        self.mortal = true;
        self
    }

    /// Joins the group.
    pub(super) async fn start(self) -> Checked<Member> {
        let name = self.again.unwrap_or_else(|| self.ctx.unique(&self.label));
        let Connected { backend, below, wire } = if self.mortal {
            self.ctx.connect_linked_as(&name).await?
        } else {
            let (backend, below) = self.ctx.connect_as(&name).await?;
            Connected { backend, below, wire: None }
        };
        let source = join(self.ctx, &*backend, &self.options).await?;
        let mut pool = self.pool;
        if let Some(topic) = self.dead_letter {
            pool = pool.with_dead_letter(topic, backend.publisher());
        }
        if let Some(most) = self.most_parked {
            let group = self.group.as_str();
            self.ctx.rules(|rules| rules.parks(group));
            let store = backend.parking(&self.group).await?;
            pool = pool.with_parked_keys(most).with_parking(store, backend.clone());
        }
        let mut handlers = Handlers::new();
        for topic in self.options.topics.iter().filter(|_| !self.silent) {
            handlers = match &self.batches {
                Some((batch, handler)) => {
                    let handler = batches::observed(self.ctx, handler.clone(), &self.group, &name);
                    handlers.batch(topic.clone(), *batch, handler)
                }
                None => {
                    handlers.on(topic.clone(), observed(self.ctx, self.handler.clone(), &self.group, &name))
                }
            };
        }
        let pool = Pool::start_with(source, pool, handlers)?;
        let life = Arc::new(Life {
            name,
            alive: Mutex::new(Some(Alive { pool: Arc::new(pool), backend, below })),
            wire,
        });
        self.ctx.lives.lock().push(life.clone());
        let member = Member {
            group: self.group,
            harness: self.ctx.harness.clone(),
            history: self.ctx.history.clone(),
            patience: self.ctx.patience(),
            mortal: self.mortal,
            life,
        };
        Ok(member)
    }
}

/// `handler`, with its runs in the log of the case and in the history.
fn observed(ctx: &Ctx, handler: HandlerFn, group: &Group, member: &str) -> RecordedHandler<HandlerFn> {
    let (log, name) = (ctx.log.clone(), member.to_owned());
    let logged = handler_fn(move |delivery: Delivery| {
        let (log, name) = (log.clone(), name.clone());
        let run = handler.run(delivery.clone());
        async move {
            let outcome = run.await;
            log.ended(&name, &delivery, &outcome);
            outcome
        }
    });
    RecordedHandler::new(logged, ctx.history.clone(), group, member)
}

/// Where a group has one member, the place of one that was killed is free only after a while.
async fn join(ctx: &Ctx, backend: &dyn Backend, options: &SourceOptions) -> Checked<Box<dyn Source>> {
    eventually("the group takes a member", ctx.patience(), || async {
        match backend.source(options.clone()).await {
            Ok(source) => Ok(Some(source)),
            Err(error)
                if !ctx.several() && matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Fenced) =>
            {
                Ok(None)
            }
            Err(error) => Err(Failure::from(error)),
        }
    })
    .await
}

/// A member that lives, or did.
pub(super) struct Life {
    pub(super) name: String,
    alive: Mutex<Option<Alive>>,
    /// Also of a dead one, until the case is over: what is left of its connection must not meet another client's network.
    wire: Option<Wire>,
}

struct Alive {
    pool: Arc<Pool>,
    backend: Arc<dyn Backend>,
    below: Arc<dyn Backend>,
}

impl Life {
    pub(super) fn pool(&self) -> Option<Arc<Pool>> {
        self.alive.lock().as_ref().map(|alive| alive.pool.clone())
    }

    pub(super) async fn leave(&self, within: Duration) {
        let Some(alive) = self.alive.lock().take() else { return };
        let _ = alive.pool.drain(within).await;
        let _ = alive.backend.close(within).await;
    }
}

/// A member of a group.
pub(super) struct Member {
    life: Arc<Life>,
    group: Group,
    harness: Arc<dyn super::Harness>,
    history: History,
    patience: Duration,
    mortal: bool,
}

impl Member {
    /// The pool of a member that was not ended by the case.
    pub(super) fn pool(&self) -> Arc<Pool> {
        self.life.pool().expect("the case has not ended this member yet")
    }

    pub(super) fn name(&self) -> &str {
        &self.life.name
    }

    pub(super) fn subscribe<F, R>(&self, ctx: &Ctx, topic: &Topic, handle: F) -> Result<(), Error>
    where
        F: Fn(Delivery) -> R + Send + Sync + 'static,
        R: Future<Output = Outcome> + Send + 'static,
    {
        let handler = observed(ctx, handler_fn(handle), &self.group, &self.life.name);
        self.pool().subscribe(topic.clone(), handler)
    }

    pub(super) async fn state(&self) -> PoolState {
        self.pool().state().await
    }

    /// Partitions that it owns.
    pub(super) async fn owns(&self) -> usize {
        self.state().await.partitions.len()
    }

    /// Waits until it owns at least one partition.
    pub(super) async fn until_it_owns(&self, least: usize) -> Checked {
        let what = format!("{} owns {least} partitions", self.life.name);
        eventually(&what, self.patience, || async { Ok((self.owns().await >= least).then_some(())) }).await
    }

    /// Leaves as a program does that is told to stop.
    pub(super) async fn drain(&self, within: Duration) -> DrainReport {
        let pool = self.pool();
        let report = pool.drain(within).await;
        drop(pool);
        self.life.leave(within).await;
        report
    }

    /// Is forgotten by the user: its pool is dropped without a drain, in a process that lives on. Its connection is left.
    pub(super) fn forget(self) -> Option<Arc<dyn Backend>> {
        self.life.alive.lock().take().map(|alive| alive.backend)
    }

    /// Its network; `None` where there is none to break.
    pub(super) fn wire(&self) -> Option<&Wire> {
        assert!(self.mortal, "a case says `mortal()` of a member that it will cut off");
        self.life.wire.as_ref()
    }

    /// Dies, as by a SIGKILL.
    pub(super) async fn kill(self) -> Checked {
        assert!(self.mortal, "a case says `mortal()` of a member that it will kill");
        let alive = self.life.alive.lock().take();
        let Some(Alive { pool, backend, below }) = alive else { return Ok(()) };
        drop(backend);
        let pool = Arc::try_unwrap(pool)
            .map_err(|_| Failure::new("a case must not keep the pool of a member that it kills"))?;
        let link = self.life.wire.as_ref().map(|wire| wire.link().clone());
        self.harness.kill(pool, below, link).await;
        let mut killed = Event::new(Kind::Killed);
        killed.member = Some(name(&self.life.name));
        self.history.record(killed);
        Ok(())
    }
}
