//! One schedule: what happens, step by step, and what must be true at its end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebus_core::{
    Backend, ErrorKind, Group, Message, PartitionId, Publish, PublishFuture, Publisher, ReadRange, Receipt,
    Topic, TopicSpec,
};
use ebus_memory::{Chaos, Fault, MemoryBroker, MemoryConfig};
use ebus_testkit::history::{History, Kind};
use ebus_testkit::oracle::{Rules, Verdict, judge};
use ebus_testkit::record::{Origin, Recorded, VERSION_HEADER};
use tokio::task::JoinSet;

use crate::member::Member;
use crate::plan::{Plan, Random};

/// What must happen often enough over all schedules to be worth the name.
pub(crate) const KINDS: &[&str] = &[
    "revoke",
    "revoke to",
    "lose",
    "lose to",
    "crash",
    "commits fail",
    "unavailable",
    "store twice",
    "delay receipts",
    "skip offsets",
    "trim",
    "join",
    "leave",
    "kill",
    "freeze",
    "pause",
    "dead letters down",
    "replayed",
    "dead letters",
    "redriven",
    "asked",
    "parking fails",
    "cancelled",
    "schedules in batches",
    "schedules at most once",
];

/// The header that names the publisher.
const PUBLISHER: &str = "publisher";

/// In paused time: far beyond what any plan needs for what is left at the end.
const PATIENCE: Duration = Duration::from_secs(600);

pub(crate) fn topic() -> Topic {
    Topic::new("orders").expect("legal")
}

pub(crate) fn dead() -> Topic {
    Topic::new("orders.dead").expect("legal")
}

pub(crate) fn group() -> Group {
    Group::new("billing").expect("legal")
}

pub(crate) fn key_and_version(message: &Message) -> Option<(u64, u64)> {
    let key = message.key.as_ref()?.as_str()?.strip_prefix('k')?.parse().ok()?;
    Some((key, message.headers.first_str(VERSION_HEADER)?.parse().ok()?))
}

/// What a schedule came to.
pub(crate) struct Told {
    pub(crate) tally: BTreeMap<&'static str, u64>,
    trace: Vec<String>,
    verdict: Verdict,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}", self.trace.join("\n"), self.verdict)
    }
}

struct World {
    plan: Arc<Plan>,
    random: Random,
    history: History,
    broker: MemoryBroker,
    control: Recorded<dyn Backend>,
    chaos: Chaos,
    dead_chaos: Chaos,
    publishers: Vec<Publisher>,
    members: Vec<Member>,
    joined: u64,
    /// Members that leave, and members that thaw.
    background: JoinSet<()>,
    publishing: JoinSet<()>,
    receipts: Arc<Mutex<Vec<Receipt>>>,
    /// What members have counted as settled and never started.
    lost: Arc<AtomicU64>,
    versions: BTreeMap<u64, u64>,
    paused: bool,
    tally: BTreeMap<&'static str, u64>,
    trace: Vec<String>,
}

pub(crate) async fn run(plan: Plan) -> Result<Told, String> {
    let mut world = World::new(plan).await;
    for _ in 0..world.plan.steps {
        world.step().await;
    }
    let ended = world.finish().await;
    let events = world.history.events();
    // A batch is one run of the member, and as many to the oracle as it has keys.
    let keys = world.plan.batches.map_or(1, |(messages, _)| messages);
    let mut rules = Rules::new().max_in_flight(world.plan.max_in_flight.max(3) * keys);
    if world.plan.commits_kept {
        rules = rules.commit_within(world.plan.commit_interval + Duration::from_millis(10));
    }
    if world.plan.parks.is_some() {
        rules = rules.parks(group().as_str());
    }
    if world.plan.once {
        rules = rules.at_most_once(group().as_str());
    }
    let verdict = judge(&events, &rules);
    let checked = match ended {
        Ok(()) => world.read_back(&events).await,
        failed => failed,
    };
    let counted = world.lost.load(Ordering::Relaxed);
    let checked = checked.and_then(|()| match verdict.unstarted {
        unstarted if unstarted > counted => {
            Err(format!("{unstarted} were settled and never started, and members have counted {counted}"))
        }
        _ => Ok(()),
    });
    if let (true, Ok(())) = (verdict.kept(), &checked) {
        world.count("replayed", verdict.replayed);
        world.count("dead letters", verdict.dead_letters);
        world.count("redriven", verdict.redriven);
        world.count("schedules in batches", u64::from(world.plan.batches.is_some()));
        world.count("schedules at most once", u64::from(world.plan.once));
        world.count("lost at most once", verdict.unstarted_at_crashes + verdict.unstarted);
        world.count("messages", verdict.stored);
        world.count("runs", verdict.runs);
        return Ok(Told { tally: world.tally, trace: world.trace, verdict });
    }
    let why = checked.err().unwrap_or_default();
    Err(format!("{why}\n{:#?}\n{}\n{verdict}", world.plan, world.trace.join("\n")))
}

impl World {
    async fn new(plan: Plan) -> Self {
        let config =
            MemoryConfig::default().with_retention(plan.retain, 1 << 30).with_max_idle(plan.max_idle);
        let broker = MemoryBroker::new(config).expect("the plan is legal");
        let history = History::with_clock(|| tokio::time::Instant::now().into_std());
        let backend: Arc<dyn Backend> = Arc::new(broker.connect());
        let control = Recorded::new(backend, history.clone(), "control");
        for (topic, partitions) in [(topic(), plan.partitions), (dead(), 2)] {
            control.create_topic(&TopicSpec::new(topic, partitions)).await.expect("is new");
        }
        let chaos = |salt: u64| {
            let chaos = Chaos::new(broker.faults(), plan.seed ^ salt);
            if plan.commits_kept { chaos.without_failing_commits() } else { chaos }
        };
        let publishers = (0..2).map(|n| {
            Recorded::new(Arc::new(broker.connect()), history.clone(), format!("publisher.{n}")).publisher()
        });
        let mut world = Self {
            random: Random::new(plan.seed),
            chaos: chaos(1),
            dead_chaos: chaos(2),
            publishers: publishers.collect(),
            members: Vec::new(),
            joined: 0,
            background: JoinSet::new(),
            publishing: JoinSet::new(),
            receipts: Arc::default(),
            lost: Arc::default(),
            versions: BTreeMap::new(),
            paused: false,
            tally: BTreeMap::new(),
            trace: Vec::new(),
            plan: Arc::new(plan),
            history,
            broker,
            control,
        };
        for _ in 0..world.random.within(1, 3) {
            world.join().await;
        }
        world
    }

    fn count(&mut self, what: &'static str, by: u64) {
        *self.tally.entry(what).or_default() += by;
    }

    fn note(&mut self, what: &'static str, more: impl fmt::Debug) {
        self.count(what, 1);
        self.trace.push(format!("{:>9.3} ms {what} {more:?}", self.history.now_ns() as f64 / 1e6));
    }

    /// Asks for a parked key, or for all.
    async fn redrive(&mut self, all: bool) -> usize {
        if self.plan.parks.is_none() {
            return 0;
        }
        let below = self.control.inner().clone();
        let parked = ebus_pool::parked_keys(&*below, &group(), &topic()).await.unwrap_or_default();
        for parked in &parked {
            if all || self.random.one_in(2) {
                self.note("asked", &parked.key);
                let _ = ebus_pool::redrive(&*below, &group(), &topic(), &parked.key).await;
            }
        }
        parked.len()
    }

    fn parking_fails(&mut self) {
        // What could not be kept of a redrive runs again after a crash.
        if self.plan.parks.is_none() || self.plan.commits_kept {
            return;
        }
        let fails = self.random.one_in(2).then_some(ErrorKind::Unavailable);
        self.note("parking fails", fails);
        self.broker.faults().parking_fails(&group(), fails);
    }

    async fn step(&mut self) {
        if self.random.one_in(6) {
            self.redrive(false).await;
        }
        if self.random.one_in(12) {
            self.parking_fails();
        }
        match self.random.within(0, 99) {
            0..35 => self.publish().await,
            35..65 => {
                if let Some(fault) = self.chaos.step(&group(), &topic()) {
                    self.note(kind(&fault), fault);
                }
            }
            65..70 => {
                // Of the dead-letter topic alone: whoever owns it is none.
                if let Some(fault) = self.dead_chaos.step(&Group::new("nobody").expect("legal"), &dead()) {
                    self.note("dead letters down", fault);
                }
            }
            70..78 => self.join().await,
            78..84 => self.leave(),
            84..88 => self.kill(),
            88..93 => self.freeze(),
            93..96 => self.pause(),
            _ => drop(self.control.committed(&group(), &topic()).await.expect("is there")),
        }
        if !self.random.one_in(3) {
            tokio::time::sleep(self.random.millis(0, 150)).await;
        }
        self.bury().await;
    }

    async fn publish(&mut self) {
        let count = self.random.within(1, 15);
        self.trace.push(format!("publish {count}"));
        for _ in 0..count {
            let key = self.random.within(0, self.plan.keys);
            let version = self.versions.entry(key).or_default();
            *version += 1;
            let mut message =
                Message::new(format!("{key}#{version}")).with_header(VERSION_HEADER, version.to_string());
            // The last one is no key at all.
            if key < self.plan.keys {
                message = message.with_key(format!("k{key}"));
            }
            let publisher = self.random.within(0, 1) as usize;
            message = message.with_header(PUBLISHER, publisher.to_string());
            let publish = Publish::new(topic(), message);
            let sent = self.publishers[publisher].enqueue(publish).await.expect("the connection is open");
            if self.random.one_in(10) {
                // Does not un-publish.
                drop(sent);
            } else {
                let late = self.random.millis(0, 3);
                self.publishing.spawn(stored(sent, late, self.receipts.clone()));
            }
        }
    }

    async fn join(&mut self) {
        if self.members.len() < 4 {
            self.joined += 1;
            let name = format!("m{}", self.joined);
            self.note("join", &name);
            self.members.push(Member::join(&self.broker, &self.history, &self.plan, &name).await);
            if self.paused {
                let _ = self.members.last().map(|member| member.pool.pause(&topic()));
            }
        }
    }

    fn take(&mut self) -> Option<Member> {
        let index = self.random.draw() as usize % self.members.len().max(1);
        let member = (index < self.members.len()).then(|| self.members.remove(index))?;
        self.told(&member);
        Some(member)
    }

    fn leave(&mut self) {
        let Some(member) = self.take() else { return };
        let within = self.random.millis(0, 2_000);
        self.note("leave", within);
        let lost = self.lost.clone();
        self.background.spawn(async move {
            let report = member.leave(within).await;
            lost.fetch_add(report.counters.lost, Ordering::Relaxed);
        });
    }

    fn kill(&mut self) {
        if let Some(member) = self.take() {
            self.note("kill", "");
            self.lost.fetch_add(member.pool.counters().lost, Ordering::Relaxed);
            drop(member);
        }
    }

    fn freeze(&mut self) {
        if self.plan.commits_kept || self.members.is_empty() {
            return;
        }
        let index = self.random.draw() as usize % self.members.len();
        let time = self.random.millis(1, 2 * self.plan.max_idle.as_millis() as u64);
        self.note("freeze", time);
        let thaws = self.members[index].freeze(time);
        self.background.spawn(thaws);
    }

    fn pause(&mut self) {
        self.paused = !self.paused;
        self.note("pause", self.paused);
        for member in &self.members {
            // A member that has ended by a crash needs none.
            let _ = if self.paused { member.pool.pause(&topic()) } else { member.pool.resume(&topic()) };
        }
    }

    async fn somebody_lives(&mut self) {
        // A crash is learnt of at the next `recv`.
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.bury().await;
        if self.members.is_empty() {
            self.join().await;
        }
    }

    /// Takes away who was crashed.
    async fn bury(&mut self) {
        let mut index = 0;
        while index < self.members.len() {
            if self.members[index].has_ended().await {
                let member = self.members.remove(index);
                self.told(&member);
                self.lost.fetch_add(member.pool.counters().lost, Ordering::Relaxed);
            } else {
                index += 1;
            }
        }
    }

    /// What a member that goes says about its life.
    fn told(&mut self, member: &Member) {
        let counters = member.pool.counters();
        self.count("cancelled", counters.cancelled);
        self.count("stale", counters.stale);
    }

    /// The trouble ends; then everything is finished in time, and all leave with their last commits accepted.
    async fn finish(&mut self) -> Result<(), String> {
        self.trace.push("calm".to_owned());
        self.chaos.calm();
        self.plan.healed.store(true, Ordering::Relaxed);
        self.broker.faults().parking_fails(&group(), None);
        self.dead_chaos.calm();
        for topic in [topic(), dead()] {
            let _ = self.broker.faults().delay_receipts(&topic, Duration::ZERO);
        }
        if self.paused {
            self.pause();
        }
        self.somebody_lives().await;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let (publishing, background) =
            (std::mem::take(&mut self.publishing), std::mem::take(&mut self.background));
        let mut rest = Box::pin(async {
            publishing.join_all().await;
            background.join_all().await;
        });
        // A topic that is full waits for messages whose keys may wait for a place in the list.
        while tokio::time::timeout(Duration::from_millis(50), &mut rest).await.is_err() {
            if tokio::time::Instant::now() > deadline {
                return Err("publishing or leaving hangs".to_owned());
            }
            self.redrive(true).await;
        }
        self.somebody_lives().await;
        let below = self.control.inner().clone();
        let ends = ends(&*below, self.plan.partitions).await;
        // A message whose key found no place in the list waits for one.
        while self.redrive(true).await > 0 || !is_finished(&*below, &ends).await {
            if tokio::time::Instant::now() > deadline {
                let mut states = String::new();
                for member in &self.members {
                    states.push_str(&format!("{:#?}\n", member.pool.state().await));
                }
                let committed = below.committed(&group(), &topic()).await;
                return Err(format!("not finished in {PATIENCE:?}: {ends:?}, {committed:?}\n{states}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for member in std::mem::take(&mut self.members) {
            self.told(&member);
            let report = member.leave(Duration::from_secs(10)).await;
            self.lost.fetch_add(report.counters.lost, Ordering::Relaxed);
            report.committed.map_err(|error| format!("the last commit of a calm leave: {error}"))?;
        }
        Ok(())
    }

    /// Every receipt names what is there, and all that is there was handled to success or is in the dead-letter topic.
    async fn read_back(&self, events: &[ebus_testkit::history::Event]) -> Result<(), String> {
        let below = self.control.inner();
        let mut done = BTreeSet::new();
        for event in events {
            if event.kind == Kind::End && event.outcome == Some(ebus_testkit::history::Outcome::Ack) {
                done.extend(event.partition.zip(event.offset));
            }
        }
        for partition in 0..2 {
            for (_, message) in read(&**below, &PartitionId::new(dead(), partition)).await {
                let origin =
                    Origin::of(&message).ok_or("what is in the dead-letter topic is no dead letter")?;
                // At the end no key is parked: each of its dead letters was redriven, and handled.
                if self.plan.parks.is_none() || message.key.is_none() {
                    done.insert((origin.partition, origin.offset));
                }
            }
        }
        let mut there = BTreeMap::new();
        let mut starts = Vec::new();
        for partition in 0..self.plan.partitions {
            let all = read(&**below, &PartitionId::new(topic(), partition)).await;
            starts.push(all.first().map_or(u64::MAX, |(offset, _)| *offset));
            in_order_of_call(&all)?;
            there.extend(all.into_iter().map(|(offset, message)| ((partition, offset), message)));
        }
        // At most once, what is there may be lost: the history knows why.
        if let Some(place) = there.keys().find(|place| !done.contains(*place) && !self.plan.once) {
            return Err(format!("{place:?} is there, and neither handled nor a dead letter"));
        }
        let receipts = self.receipts.lock().expect("not poisoned");
        let lost = receipts.iter().find(|receipt| {
            let place = (receipt.partition, receipt.offset);
            // What is trimmed was committed by then, and the history knows it.
            !there.contains_key(&place) && receipt.offset >= starts[receipt.partition as usize]
        });
        lost.map_or(Ok(()), |receipt| Err(format!("{receipt:?} names nothing")))
    }
}

/// Looks at a publish for the first time a while after its call.
async fn stored(sent: PublishFuture, late: Duration, receipts: Arc<Mutex<Vec<Receipt>>>) {
    tokio::time::sleep(late).await;
    // What failed is the history's to know.
    if let Ok(receipt) = sent.await {
        receipts.lock().expect("not poisoned").push(receipt);
    }
}

async fn read(backend: &dyn Backend, partition: &PartitionId) -> Vec<(u64, Message)> {
    let info = backend.describe_topic(&partition.topic).await.expect("is there");
    let there = info.partitions[partition.partition as usize];
    let range = ReadRange::new(partition.topic.clone(), partition.partition, there.earliest, there.end);
    let mut reader = backend.read(range).await.expect("is there");
    let mut all = Vec::new();
    while reader.next(1_000, &mut all).await.expect("is there") > 0 {}
    all
}

/// What one publisher was given of a key is stored in the order in which it was given (G7), seen from outside: the recorder
/// stands behind the erased publisher.
fn in_order_of_call(all: &[(u64, Message)]) -> Result<(), String> {
    let mut last = BTreeMap::new();
    for (offset, message) in all {
        let Some((key, version)) = key_and_version(message) else { continue };
        let publisher = message.headers.first_str(PUBLISHER);
        let before = last.insert((publisher, key), version).unwrap_or_default();
        if before > version {
            return Err(format!(
                "at {offset} is version {version} of k{key}, behind {before} of the same publisher"
            ));
        }
    }
    Ok(())
}

/// The offset after the last message of each partition; offsets that were skipped behind it do not count.
async fn ends(backend: &dyn Backend, partitions: u32) -> Vec<u64> {
    let mut ends = Vec::new();
    for partition in 0..partitions {
        let all = read(backend, &PartitionId::new(topic(), partition)).await;
        ends.push(all.last().map_or(0, |(offset, _)| offset + 1));
    }
    ends
}

async fn is_finished(backend: &dyn Backend, ends: &[u64]) -> bool {
    let committed = backend.committed(&group(), &topic()).await.expect("is there");
    let watermark = |partition: usize| {
        let one = committed.iter().find(|one| one.partition as usize == partition);
        one.and_then(|one| one.position.as_ref()).map_or(0, |position| position.watermark.0)
    };
    ends.iter().enumerate().all(|(partition, end)| watermark(partition) >= *end)
}

fn kind(fault: &Fault) -> &'static str {
    match fault {
        Fault::Revoke(..) => "revoke",
        Fault::RevokeTo(..) => "revoke to",
        Fault::Lose(..) => "lose",
        Fault::LoseTo(..) => "lose to",
        Fault::Crash(..) => "crash",
        Fault::CommitsFail(..) => "commits fail",
        Fault::Unavailable(..) => "unavailable",
        Fault::StoreTwice(..) => "store twice",
        Fault::DelayReceipts(..) => "delay receipts",
        Fault::SkipOffsets(..) => "skip offsets",
        Fault::Trim(..) => "trim",
        _ => "another fault",
    }
}
