//! One run: connections, topics, publishers and members, and waiting until all is handled.

use std::sync::Arc;
use std::time::Duration;

use ebus::envelope::typed;
use ebus::{Bus, Capability, Consumer, Error, ErrorKind, Group, RetryPolicy, Topic, TopicSpec};
use ebus_testkit::history::History;
use ebus_testkit::record::{Recorded, RecordedHandler};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Options;
use super::broker::Broker;
use super::done::Done;
use super::handle::{Work, handle};
use super::plan::Plan;
use super::progress::Progress;
use super::publish::publish;

/// Handler runs that a member may have in progress: the default, said here because the verdict judges it.
pub(crate) const MAX_IN_FLIGHT: usize = 1_024;
const PUBLISHERS: u32 = 4;
/// How often progress is shown.
const TICK: Duration = Duration::from_millis(50);
/// How long a run goes on while nothing happens.
const PATIENCE: Duration = Duration::from_secs(60);
const DRAIN_WITHIN: Duration = Duration::from_secs(60);
/// How long the members may take to share the partitions out before anything is published.
const SETTLE_WITHIN: Duration = Duration::from_secs(60);

/// What is there while a run lasts.
pub(crate) struct Run {
    pub(crate) plan: Arc<Plan>,
    pub(crate) history: History,
    pub(crate) topic: Topic,
    pub(crate) dead_letters: Topic,
    pub(crate) group: Group,
    pub(crate) members: u32,
    pub(crate) backend: Capability,
    broker: Broker,
    partitions: u32,
    churn: bool,
    done: Arc<Done>,
    /// Reads, and publishes nothing.
    pub(crate) reader: Bus,
}

/// A member of the group, on a connection of its own.
struct Member {
    bus: Bus,
    consumer: Arc<Consumer>,
}

/// How a run went, for people; the verdict does not ask for it.
#[derive(Debug, Default)]
pub(crate) struct Course {
    /// What went wrong beside the promises: each makes the run a failed one.
    pub(crate) trouble: Vec<String>,
}

impl Course {
    fn say(&mut self, trouble: Option<String>) {
        // Publishers and members often meet the same.
        self.trouble.extend(trouble.filter(|trouble| !self.trouble.contains(trouble)));
    }
}

impl Run {
    /// Connects and creates the topics of the run.
    pub(crate) async fn prepare(options: &Options, plan: Plan) -> Result<Self, Error> {
        let broker = Broker::new(&options.url)?;
        let reader = Bus::new(broker.connect().await?);
        let members = options.members_on(&reader.capability())?;
        // A slow key holds up at most the uncommitted span of its partition (16,384 messages): with half of that in a
        // partition, no other key waits for it.
        let partitions = plan.events().div_ceil(8_192).clamp(u64::from(members.max(6)), 64) as u32;
        // New on the broker, and short: it stands in every event of the history.
        let id = format!("demo-{:012x}", fastrand::u64(..1 << 48));
        let (topic, dead_letters) = (Topic::new(&id)?, Topic::new(format!("{id}.dlq"))?);
        reader.create_topic(&TopicSpec::new(topic.clone(), partitions)).await?;
        reader.create_topic(&TopicSpec::new(dead_letters.clone(), 3)).await?;
        let events = plan.events();
        let done = Arc::new(Done::new(events, vec![Self::leave_at(events), Self::join_at(events)]));
        Ok(Self {
            plan: Arc::new(plan),
            history: History::new(),
            topic,
            dead_letters,
            group: Group::new(id)?,
            members,
            backend: reader.capability(),
            broker,
            partitions,
            churn: options.churn,
            done,
            reader,
        })
    }

    fn leave_at(events: u64) -> u64 {
        (events / 3).max(1)
    }

    fn join_at(events: u64) -> u64 {
        (events / 2).max(1)
    }

    /// Publishes and handles everything, and leaves the group.
    pub(crate) async fn go(&self, progress: &Progress) -> Result<Course, Error> {
        let mut course = Course::default();
        let mut members = Vec::new();
        for number in 1..=self.members {
            members.push(self.join(number).await?);
        }
        self.settled(&members).await?;
        let mut publishers = self.publishers().await?;
        // Counts dead letters of those that have left too.
        let mut consumers: Vec<Arc<Consumer>> =
            members.iter().map(|member| member.consumer.clone()).collect();
        let leaver = self.churn.then(|| members.swap_remove(0));
        let mut churn = std::pin::pin!(self.churn(leaver));
        let mut tick = tokio::time::interval(TICK);
        let mut calm = Calm::new();
        let (mut publishing, mut churning) = (true, self.churn);
        while publishing || churning || !self.is_done(&consumers) {
            tokio::select! {
                _ = tick.tick() => {}
                joined = &mut churn, if churning => {
                    churning = false;
                    let joined = joined?;
                    consumers.push(joined.consumer.clone());
                    members.push(joined);
                }
                published = publishers.join_next(), if publishing => match published {
                    Some(published) => course.say(trouble_of(published)),
                    None => publishing = false,
                },
            }
            let (stored, handled) = (self.done.stored(), self.done.count());
            progress.show(stored, handled);
            if !publishing && !course.trouble.is_empty() && self.is_done(&consumers) {
                // What was published is handled, and churn would wait for what was not.
                break;
            }
            if calm.lasts(stored + handled + buried(&consumers)) > PATIENCE {
                course.say(Some(self.why(&members, stored, handled).await));
                break;
            }
        }
        progress.say("leaving");
        for member in members {
            course.say(leave(member).await);
        }
        publishers.shutdown().await;
        Ok(course)
    }

    /// Whether all that was published is handled, or has its dead letter.
    fn is_done(&self, consumers: &[Arc<Consumer>]) -> bool {
        self.done.count() >= self.done.stored() && buried(consumers) >= self.done.rejected()
    }

    /// One member more.
    async fn join(&self, number: u32) -> Result<Member, Error> {
        let name = format!("member-{number}");
        let backend = self.broker.connect().await?;
        let bus = Bus::new(Arc::new(Recorded::new(backend, self.history.clone(), &name)));
        let work = Work { plan: self.plan.clone(), done: self.done.clone() };
        let handler = typed(handle).with(Arc::new(work));
        let consumer = bus
            .consumer(self.group.as_str())
            .on(&self.topic, RecordedHandler::new(handler, self.history.clone(), &self.group, &name))
            .retry(RetryPolicy::exponential().first(Duration::from_millis(20)).max_attempts(10))
            .dead_letter(&self.dead_letters)
            .max_in_flight(MAX_IN_FLIGHT)
            .start()
            .await?;
        Ok(Member { bus, consumer: Arc::new(consumer) })
    }

    /// Waits until every partition has its owner, so that latency is not that of joining.
    async fn settled(&self, members: &[Member]) -> Result<(), Error> {
        let begun = Instant::now();
        loop {
            let mut owned = Vec::new();
            for member in members {
                owned.push(member.consumer.state().await.partitions.len());
            }
            let shared = owned.iter().all(|owned| *owned > 0);
            if shared && owned.iter().sum::<usize>() == self.partitions as usize {
                return Ok(());
            }
            if begun.elapsed() > SETTLE_WITHIN {
                let message = format!(
                    "the members did not share the {} partitions out within {SETTLE_WITHIN:?}; they own {owned:?}; see the log \
                     with RUST_LOG=info",
                    self.partitions
                );
                return Err(Error::new(ErrorKind::Timeout, message).with_operation("demo"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn publishers(&self) -> Result<JoinSet<Result<(), Error>>, Error> {
        let publishers = PUBLISHERS.min(self.plan.aggregates());
        let mut tasks = JoinSet::new();
        for number in 0..publishers {
            let backend = self.broker.connect().await?;
            let name = format!("publisher-{}", number + 1);
            let bus = Bus::new(Arc::new(Recorded::new(backend, self.history.clone(), name)));
            let share = self.plan.share(number, publishers);
            let (plan, topic, done) = (self.plan.clone(), self.topic.clone(), self.done.clone());
            tasks.spawn(async move {
                let published = publish(bus.clone(), share, plan, topic, done).await;
                let closed = bus.close(DRAIN_WITHIN).await;
                published.and(closed)
            });
        }
        Ok(tasks)
    }

    /// The leaver leaves when a third is handled, and one joins at half.
    async fn churn(&self, leaver: Option<Member>) -> Result<Member, Error> {
        self.done.reached(Self::leave_at(self.plan.events())).await;
        if let Some(trouble) = match leaver {
            Some(leaver) => leave(leaver).await,
            None => None,
        } {
            return Err(Error::new(ErrorKind::Unexpected, trouble).with_operation("demo"));
        }
        self.done.reached(Self::join_at(self.plan.events())).await;
        self.join(self.members + 1).await
    }

    /// Why nothing happens any more.
    async fn why(&self, members: &[Member], stored: u64, handled: u64) -> String {
        let mut text = format!("nothing happened for {PATIENCE:?}, at {handled} of {stored} events");
        for member in members {
            let state = member.consumer.state().await;
            for error in state.trouble.iter().chain(&state.dead_letter_error).chain(&state.ended) {
                text.push_str(&format!("; {}", error.chain()));
            }
            if let Some(stuck) = state.stuck.first() {
                let error = stuck.last_error.as_ref().map(ToString::to_string).unwrap_or_default();
                text.push_str(&format!("; {} offset {} is stuck: {error}", stuck.partition, stuck.offset));
            }
        }
        text
    }
}

fn buried(consumers: &[Arc<Consumer>]) -> u64 {
    consumers.iter().map(|consumer| consumer.counters().dead_letters).sum()
}

/// Drains a member and disconnects it; what went wrong.
async fn leave(member: Member) -> Option<String> {
    let report = member.consumer.drain(DRAIN_WITHIN).await;
    let closed = member.bus.close(DRAIN_WITHIN).await;
    let error = report.committed.and(closed).err()?;
    Some(format!("a member did not leave cleanly: {}", error.chain()))
}

fn trouble_of(published: Result<Result<(), Error>, tokio::task::JoinError>) -> Option<String> {
    match published {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("publishing ended early: {}", error.chain())),
        Err(error) => Some(format!("a publisher ended: {error}")),
    }
}

/// Since when nothing changed.
struct Calm {
    seen: u64,
    since: Instant,
}

impl Calm {
    fn new() -> Self {
        Self { seen: 0, since: Instant::now() }
    }

    fn lasts(&mut self, now: u64) -> Duration {
        if self.seen != now {
            *self = Self { seen: now, since: Instant::now() };
        }
        self.since.elapsed()
    }
}
