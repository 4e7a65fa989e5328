//! What a case works with: names of its own, connections, publishers, members.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ebus_core::{
    Backend, Capability, Committed, Error, ErrorKind, Group, Message, NextOffset, Publish, PublishFuture,
    Publisher, ReadRange, Receipt, Topic, TopicSpec,
};
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::failure::Checked;
use super::faults::{Faults, LogFaults};
use super::harness::Harness;
use super::link::Wire;
use super::log::Log;
use super::member::{Life, MemberBuilder};
use super::own_broker::OwnBroker;
use super::rng::Rng;
use super::wait::eventually;
use crate::history::{Event, History, Kind};
use crate::oracle::Rules;
use crate::record::{Recorded, VERSION_HEADER};

/// How long the connections of a case may take to close.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// A connection, and what is below its records.
pub(super) struct Connected {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) below: Arc<dyn Backend>,
    pub(super) wire: Option<Wire>,
}

pub(super) struct Ctx {
    pub(super) harness: Arc<dyn Harness>,
    own_broker: Option<Arc<dyn OwnBroker>>,
    pub(super) history: History,
    pub(super) log: Log,
    pub(super) rng: Rng,
    pub(super) lives: Mutex<Vec<Arc<Life>>>,
    rules: Mutex<Rules>,
    receipts: Mutex<Vec<Receipt>>,
    prefix: String,
    connections: AtomicU32,
    /// The connection that no member has: for topics, publishing and reading back.
    pub(super) control: Arc<dyn Backend>,
    opened: Mutex<Vec<Arc<dyn Backend>>>,
}

impl Ctx {
    pub(super) async fn new(
        harness: Arc<dyn Harness>,
        own_broker: Option<Arc<dyn OwnBroker>>,
        prefix: String,
        seed: u64,
    ) -> Checked<Self> {
        let history = History::new();
        let backend = harness.connect().await?;
        let control: Arc<dyn Backend> = Arc::new(Recorded::new(backend, history.clone(), "control"));
        Ok(Self {
            harness,
            own_broker,
            history,
            log: Log::default(),
            rng: Rng::new(seed),
            lives: Mutex::default(),
            rules: Mutex::new(Rules::new()),
            receipts: Mutex::default(),
            prefix,
            connections: AtomicU32::new(0),
            opened: Mutex::new(vec![control.clone()]),
            control,
        })
    }

    pub(super) fn capability(&self) -> Capability {
        self.control.capability()
    }

    /// Whether several members share a group here.
    pub(super) fn several(&self) -> bool {
        self.capability().several_members
    }

    /// Faults of ownership; for cases that need them.
    pub(super) fn faults(&self) -> Arc<dyn Faults> {
        self.harness.faults().expect("the case says that it needs them")
    }

    /// Faults of what is stored; for cases that need them.
    pub(super) fn log_faults(&self) -> Arc<dyn LogFaults> {
        self.harness.log_faults().expect("the case says that it needs them")
    }

    pub(super) fn patience(&self) -> Duration {
        self.harness.patience()
    }

    /// Changes what the oracle allows or demands at the end.
    pub(super) fn rules(&self, change: impl FnOnce(Rules) -> Rules) {
        let mut rules = self.rules.lock();
        *rules = change(std::mem::take(&mut *rules));
    }

    pub(super) fn the_rules(&self) -> Rules {
        self.rules.lock().clone()
    }

    /// A name that only this case has.
    pub(super) fn name(&self, label: &str) -> String {
        format!("{}-{label}", self.prefix)
    }

    pub(super) fn group(&self, label: &str) -> Group {
        Group::new(self.name(label)).expect("prefixes and labels are legal")
    }

    /// A topic of this case that does not exist yet.
    pub(super) fn absent_topic(&self, label: &str) -> Topic {
        Topic::new(self.name(label)).expect("prefixes and labels are legal")
    }

    /// A new topic of this case.
    pub(super) async fn topic(&self, label: &str, partitions: u32) -> Checked<Topic> {
        let topic = self.absent_topic(label);
        let replicas = self.own_broker.as_ref().map_or(1, |broker| broker.nodes().min(3));
        let spec = TopicSpec::new(topic.clone(), partitions).with_replicas(replicas as u16);
        let end = Instant::now() + self.patience();
        let mut created = self.control.create_topic(&spec).await;
        // A cluster that has just started may need more than one request's time to agree on a new topic. Asked by another connection, for
        // all that the first one has been told before.
        while created.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable)
            && Instant::now() < end
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
            created = self.another(&self.unique("creator")).await?.create_topic(&spec).await;
        }
        created?;
        if let Some(broker) = &self.own_broker {
            broker.has_topic(&topic);
        }
        Ok(topic)
    }

    /// A name for a connection that no other has.
    pub(super) fn unique(&self, label: &str) -> String {
        format!("{label}.{}", self.connections.fetch_add(1, Ordering::Relaxed))
    }

    /// A new connection that is recorded under a name of its own; the name, and the connection below.
    pub(super) async fn connect(&self, label: &str) -> Checked<(Arc<dyn Backend>, Arc<dyn Backend>, String)> {
        let name = self.unique(label);
        let (recorded, below) = self.connect_as(&name).await?;
        Ok((recorded, below, name))
    }

    /// A new connection that is recorded under this name.
    pub(super) async fn connect_as(&self, name: &str) -> Checked<(Arc<dyn Backend>, Arc<dyn Backend>)> {
        let below = self.harness.connect().await?;
        let recorded = Recorded::new(below.clone(), self.history.clone(), name);
        Ok((Arc::new(recorded), below))
    }

    /// A new connection with a network of its own, where there is such a thing; otherwise a plain one.
    pub(super) async fn connect_linked_as(&self, name: &str) -> Checked<Connected> {
        let (below, wire) = match self.harness.connect_linked().await? {
            Some((below, link)) => (below, Some(Wire::new(link, &self.history, name))),
            None => (self.harness.connect().await?, None),
        };
        let backend = Arc::new(Recorded::new(below.clone(), self.history.clone(), name));
        Ok(Connected { backend, below, wire })
    }

    /// A connection for publishing with a network of its own, where there is such a thing; closed after the case.
    pub(super) async fn another_linked(&self, label: &str) -> Checked<(Arc<dyn Backend>, Option<Wire>)> {
        let connected = self.connect_linked_as(&self.unique(label)).await?;
        self.opened.lock().push(connected.backend.clone());
        Ok((connected.backend, connected.wire))
    }

    /// The case's own broker; for cases that need one.
    pub(super) fn own_broker(&self) -> Arc<dyn OwnBroker> {
        self.own_broker.clone().expect("the case says that it needs one")
    }

    /// The broker or a node of it is down or up now, by the case's doing.
    pub(super) fn note_broker(&self, kind: Kind) {
        self.history.record(Event::new(kind));
    }

    /// A connection of its own for publishing, closed after the case.
    pub(super) async fn another(&self, label: &str) -> Checked<Arc<dyn Backend>> {
        let (backend, ..) = self.connect(label).await?;
        self.opened.lock().push(backend.clone());
        Ok(backend)
    }

    /// A publisher of the control connection.
    pub(super) fn publisher(&self) -> Publisher {
        self.control.publisher()
    }

    /// A member of `group`; `start` brings it to life.
    pub(super) fn member<'c>(&'c self, label: &str, group: &Group, topics: &[&Topic]) -> MemberBuilder<'c> {
        MemberBuilder::new(self, label, group, topics)
    }

    /// Publishes versions of each key, pipelined, round by round; all are stored when it returns.
    pub(super) async fn publish<K: AsRef<str>>(
        &self,
        topic: &Topic,
        keys: &[K],
        versions: std::ops::RangeInclusive<u64>,
    ) -> Checked<Vec<Receipt>> {
        let mut publisher = self.publisher();
        let mut sent = Vec::new();
        for version in versions {
            for key in keys {
                sent.push(send(&mut publisher, topic, key.as_ref(), version).await?);
            }
        }
        let receipts = try_join_all(sent).await?;
        self.receipts.lock().extend(receipts.iter().cloned());
        Ok(receipts)
    }

    /// All that is in a topic, by partition and offset.
    pub(super) async fn read_all(&self, topic: &Topic) -> Checked<Vec<(u32, u64, Message)>> {
        let info = self.control.describe_topic(topic).await?;
        let mut all = Vec::new();
        for (partition, there) in (0..).zip(&info.partitions) {
            let range = ReadRange::new(topic.clone(), partition, there.earliest, there.end);
            let mut reader = self.control.read(range).await?;
            let mut read = Vec::new();
            while reader.next(1_024, &mut read).await? > 0 {}
            all.extend(read.into_iter().map(|(offset, message)| (partition, offset, message)));
        }
        Ok(all)
    }

    /// How many messages a topic holds.
    pub(super) async fn count(&self, topic: &Topic) -> Checked<usize> {
        Ok(self.read_all(topic).await?.len())
    }

    /// What a group has committed; recorded, so that the oracle can use it.
    pub(super) async fn committed(&self, group: &Group, topic: &Topic) -> Checked<Vec<Committed>> {
        Ok(self.control.committed(group, topic).await?)
    }

    /// How many of the messages that [`publish`](Self::publish) stored in a topic a group has committed as finished.
    pub(super) async fn finished(&self, group: &Group, topic: &Topic) -> Checked<usize> {
        Ok(self.finished_in(topic, &self.committed(group, topic).await?))
    }

    /// The same, of what was committed. Offsets are the broker's: they may begin anywhere and have gaps.
    pub(super) fn finished_in(&self, topic: &Topic, committed: &[Committed]) -> usize {
        let is_finished = |receipt: &&Receipt| {
            let one = committed.iter().find(|one| one.partition == receipt.partition);
            one.and_then(|one| one.position.as_ref()).is_some_and(|position| {
                receipt.offset < position.watermark.0 || position.finished.contains(receipt.offset)
            })
        };
        let receipts = self.receipts.lock();
        receipts.iter().filter(|receipt| receipt.topic == *topic).filter(is_finished).count()
    }

    pub(super) async fn ends(&self, topic: &Topic) -> Checked<Vec<NextOffset>> {
        let info = self.control.describe_topic(topic).await?;
        Ok(info.partitions.iter().map(|partition| partition.end).collect())
    }

    /// Waits until `is` is true.
    pub(super) async fn until(&self, what: &str, mut is: impl FnMut() -> bool) -> Checked {
        eventually(what, self.patience(), || std::future::ready(Ok(is().then_some(())))).await
    }

    /// Waits until `is` gives something.
    pub(super) async fn until_some<T, F>(&self, what: &str, is: impl FnMut() -> F) -> Checked<T>
    where
        F: Future<Output = Checked<Option<T>>>,
    {
        eventually(what, self.patience(), is).await
    }

    /// Waits until this many different messages were handled.
    pub(super) async fn until_handled(&self, count: usize) -> Checked {
        let result = self.until("messages are handled", || self.log.handled() >= count).await;
        result.map_err(|failure| {
            super::failure::Failure::new(format!("{failure}: {} of {count} were", self.log.handled()))
        })
    }

    /// Drains the members that live, and closes every connection.
    pub(super) async fn close(&self) -> Checked {
        let lives = std::mem::take(&mut *self.lives.lock());
        for life in lives {
            life.leave(CLOSE_WITHIN).await;
        }
        let opened = std::mem::take(&mut *self.opened.lock());
        for backend in opened {
            backend.close(CLOSE_WITHIN).await?;
        }
        Ok(())
    }
}

/// Enqueues one version of a key.
pub(super) async fn send(
    publisher: &mut Publisher,
    topic: &Topic,
    key: &str,
    version: u64,
) -> Result<PublishFuture, Error> {
    publisher.enqueue(Publish::new(topic.clone(), message(key, version))).await
}

/// Version `version` of `key`; the empty key is none.
pub(super) fn message(key: &str, version: u64) -> Message {
    let message = Message::new(format!("{key}#{version}")).with_header(VERSION_HEADER, version.to_string());
    if key.is_empty() { message } else { message.with_key(key) }
}

/// Keys with a common beginning.
pub(super) fn keys(label: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{label}{number}")).collect()
}
