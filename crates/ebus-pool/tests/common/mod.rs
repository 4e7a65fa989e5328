//! A scripted source: the test says what it delivers, and sees what is settled and released.

#![allow(dead_code, unreachable_pub)] // Each test file uses its part.

pub mod batches;
pub mod letters;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{
    Assigned, Delivery, Epoch, Error, Group, Inbound, Lease, LedgerLimits, Message, Outcome, Owned,
    Ownership, PartitionId, Position, Settlement, Source, SourceEvent, Token, Topic,
};
use ebus_pool::{Pool, PoolConfig};
use tokio::sync::mpsc;

/// What the pool told the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Finished { partition: u32, epoch: u64, offset: u64 },
    Dropped { partition: u32, epoch: u64, offset: u64 },
    Released { partition: u32, epoch: u64 },
    Asked { partition: u32 },
    Paused { partition: u32 },
    Resumed { partition: u32 },
    Closed,
}

pub struct Script {
    events: mpsc::UnboundedSender<SourceEvent>,
    said: Arc<Mutex<Vec<Said>>>,
    ownership: Arc<Mutex<Ownership>>,
    subscribed: Arc<Mutex<Vec<Topic>>>,
    next: BTreeMap<u32, u64>,
}

pub struct ScriptedSource {
    events: mpsc::UnboundedReceiver<SourceEvent>,
    held_back: Option<SourceEvent>,
    said: Arc<Mutex<Vec<Said>>>,
    ownership: Arc<Mutex<Ownership>>,
    subscribed: Arc<Mutex<Vec<Topic>>>,
}

pub fn topic() -> Topic {
    Topic::new("orders").expect("legal")
}

pub fn config() -> PoolConfig {
    PoolConfig::new(Group::new("test").expect("legal")).with_shards(2)
}

pub fn script() -> (Script, Box<ScriptedSource>) {
    let (events, rx) = mpsc::unbounded_channel();
    let said = Arc::new(Mutex::new(Vec::new()));
    let ownership = Arc::new(Mutex::new(Ownership::new(LedgerLimits::default().with_max_span(1 << 20))));
    let subscribed = Arc::new(Mutex::new(Vec::new()));
    let source = ScriptedSource {
        events: rx,
        held_back: None,
        said: said.clone(),
        ownership: ownership.clone(),
        subscribed: subscribed.clone(),
    };
    (Script { events, said, ownership, subscribed, next: BTreeMap::new() }, Box::new(source))
}

impl Script {
    pub fn send(&self, event: SourceEvent) {
        self.events.send(event).expect("the source lives");
    }

    pub fn assign(&self, partition: u32) -> Owned {
        self.assign_with(partition, Lease::unlimited())
    }

    pub fn assign_with(&self, partition: u32, lease: Lease) -> Owned {
        self.assign_under(partition, Epoch(1), lease)
    }

    /// Under this epoch at least: what another source of the group had before has a lower one.
    pub fn assign_under(&self, partition: u32, epoch: Epoch, lease: Lease) -> Owned {
        let id = PartitionId::new(topic(), partition);
        let assigned = self.ownership().assign(id, epoch, &Position::default(), lease);
        let owned = assigned.owned;
        self.send(SourceEvent::Assigned { owned: vec![Assigned { ..assigned }] });
        owned
    }

    pub fn ownership(&self) -> std::sync::MutexGuard<'_, Ownership> {
        self.ownership.lock().expect("no test panicked with it")
    }

    /// Delivers the next message of a partition; its offset.
    pub fn deliver(&mut self, owned: Owned, key: Option<&str>) -> u64 {
        self.deliver_sized(owned, key, 8)
    }

    pub fn deliver_sized(&mut self, owned: Owned, key: Option<&str>, bytes: usize) -> u64 {
        let next = self.next.entry(owned.slot.0).or_default();
        let offset = *next;
        *next += 1;
        let token = self.ownership().track(owned, offset).expect("ascending").expect("not finished");
        let message = Message::new(vec![0; bytes]).with_optional_key(key.map(Into::into));
        self.send(SourceEvent::Message(Inbound { token, message }));
        offset
    }

    /// Starts a partition's offsets again: what a new owner reads.
    pub fn rewind(&mut self, owned: Owned, to: u64) {
        self.next.insert(owned.slot.0, to);
    }

    pub fn revoke(&self, owned: Owned, within: Duration) {
        let deadline = (tokio::time::Instant::now() + within).into_std();
        self.send(SourceEvent::Revoking { owned: vec![owned], deadline });
    }

    pub fn lose(&self, owned: Owned) {
        self.ownership().end(owned);
        self.send(SourceEvent::Lost { owned: vec![owned] });
    }

    /// What was settled is committed.
    pub fn commit(&self, owned: Owned) {
        self.send(SourceEvent::Committed { owned: vec![owned] });
    }

    /// How often the pool asked for a commit.
    pub fn asked(&self) -> usize {
        self.said().iter().filter(|s| matches!(s, Said::Asked { .. })).count()
    }

    /// Waits until the source is dropped.
    pub async fn gone(&self) {
        self.events.closed().await;
    }

    pub fn said(&self) -> Vec<Said> {
        self.said.lock().expect("no test panicked with it").clone()
    }

    /// The topics that the source was last told.
    pub fn subscribed(&self) -> Vec<Topic> {
        self.subscribed.lock().expect("no test panicked with it").clone()
    }

    pub fn finished(&self) -> Vec<u64> {
        let said = self.said();
        said.iter()
            .filter_map(|s| if let Said::Finished { offset, .. } = s { Some(*offset) } else { None })
            .collect()
    }

    pub fn dropped(&self) -> Vec<u64> {
        let said = self.said();
        said.iter()
            .filter_map(|s| if let Said::Dropped { offset, .. } = s { Some(*offset) } else { None })
            .collect()
    }

    pub fn released(&self) -> bool {
        self.said().iter().any(|s| matches!(s, Said::Released { .. }))
    }
}

/// What a source hands on that stands around another one, its field `source`: all but `recv` and `close`.
#[allow(unused_macros)] // Each test file uses its part.
macro_rules! hands_on {
    () => {
        fn settle(&mut self, batch: &mut Vec<(ebus_core::Token, ebus_core::Settlement)>) {
            self.source.settle(batch);
        }

        fn release(&mut self, owned: &[ebus_core::Owned]) {
            self.source.release(owned);
        }

        fn pause(&mut self, owned: &[ebus_core::Owned]) {
            self.source.pause(owned);
        }

        fn resume(&mut self, owned: &[ebus_core::Owned]) {
            self.source.resume(owned);
        }

        fn commit_now(&mut self, owned: &[ebus_core::Owned]) {
            self.source.commit_now(owned);
        }

        fn subscribe(&mut self, topics: &[ebus_core::Topic]) {
            self.source.subscribe(topics);
        }

        fn stale(&self) -> u64 {
            self.source.stale()
        }
    };
}
#[allow(unused_imports)]
pub(crate) use hands_on;

impl ScriptedSource {
    fn note(&self, said: Said) {
        self.said.lock().expect("no test panicked with it").push(said);
    }
}

#[async_trait]
impl Source for ScriptedSource {
    async fn recv(&mut self, room: usize, out: &mut Vec<SourceEvent>) -> Result<usize, Error> {
        let mut messages = 0;
        let before = out.len();
        loop {
            let event = match self.held_back.take() {
                Some(event) => event,
                None if out.len() > before => match self.events.try_recv() {
                    Ok(event) => event,
                    Err(_) => break,
                },
                None => match self.events.recv().await {
                    Some(event) => event,
                    None => return Ok(0),
                },
            };
            if let SourceEvent::Message(_) = event {
                if messages == room {
                    self.held_back = Some(event);
                    if out.len() > before {
                        break;
                    }
                    // Full, but ownership events behind the message must still come: this source has none behind it.
                    return std::future::pending().await;
                }
                messages += 1;
            }
            out.push(event);
        }
        Ok(out.len() - before)
    }

    fn settle(&mut self, batch: &mut Vec<(Token, Settlement)>) {
        let mut ownership = self.ownership.lock().expect("no test panicked with it");
        for (token, settlement) in batch.iter() {
            let Owned { slot, epoch } = token.owned();
            let partition = ownership.partition(slot).map_or(u32::MAX, |id| id.partition);
            let offset = token.offset();
            self.note(match settlement {
                Settlement::Finished => Said::Finished { partition, epoch: epoch.0, offset },
                Settlement::Dropped => Said::Dropped { partition, epoch: epoch.0, offset },
            });
        }
        ownership.settle(batch);
    }

    fn release(&mut self, owned: &[Owned]) {
        let mut ownership = self.ownership.lock().expect("no test panicked with it");
        for owned in owned {
            let partition = ownership.partition(owned.slot).map_or(u32::MAX, |id| id.partition);
            if ownership.end(*owned) {
                self.note(Said::Released { partition, epoch: owned.epoch.0 });
            }
        }
    }

    fn pause(&mut self, owned: &[Owned]) {
        for owned in owned {
            self.note(Said::Paused { partition: owned.slot.0 });
        }
    }

    fn resume(&mut self, owned: &[Owned]) {
        for owned in owned {
            self.note(Said::Resumed { partition: owned.slot.0 });
        }
    }

    /// The test says when they are committed.
    fn commit_now(&mut self, owned: &[Owned]) {
        for owned in owned {
            self.note(Said::Asked { partition: owned.slot.0 });
        }
    }

    fn subscribe(&mut self, topics: &[Topic]) {
        *self.subscribed.lock().expect("no test panicked with it") = topics.to_vec();
    }

    fn stale(&self) -> u64 {
        self.ownership.lock().expect("no test panicked with it").stale()
    }

    async fn close(self: Box<Self>, _within: Duration) -> Result<(), Error> {
        self.note(Said::Closed);
        Ok(())
    }
}

/// What the handler saw: starts and ends, in order.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Entry>>>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Start { key: String, offset: u64, attempt: u32 },
    End { key: String, offset: u64 },
    Cancelled { key: String, offset: u64 },
}

impl Log {
    pub fn entries(&self) -> Vec<Entry> {
        self.0.lock().expect("no test panicked with it").clone()
    }

    pub fn starts(&self) -> Vec<u64> {
        let entries = self.entries();
        entries
            .iter()
            .filter_map(|e| if let Entry::Start { offset, .. } = e { Some(*offset) } else { None })
            .collect()
    }

    pub fn cancelled(&self) -> usize {
        self.entries().iter().filter(|e| matches!(e, Entry::Cancelled { .. })).count()
    }

    fn push(&self, entry: Entry) {
        self.0.lock().expect("no test panicked with it").push(entry);
    }

    /// A run that is in the log from start to end, also when it is dropped or panics.
    pub fn run(&self, delivery: &Delivery) -> RunEntry {
        let key = delivery.key().map(ToString::to_string).unwrap_or_default();
        let offset = delivery.offset();
        self.push(Entry::Start { key: key.clone(), offset, attempt: delivery.attempt() });
        RunEntry { log: self.clone(), key, offset, ended: false }
    }
}

pub struct RunEntry {
    log: Log,
    key: String,
    offset: u64,
    ended: bool,
}

impl RunEntry {
    pub fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for RunEntry {
    fn drop(&mut self) {
        let (key, offset) = (self.key.clone(), self.offset);
        self.log.push(if self.ended { Entry::End { key, offset } } else { Entry::Cancelled { key, offset } });
    }
}

/// A handler of a function that gives an outcome.
pub fn handler<F, Fut>(f: F) -> impl ebus_core::Handler
where
    F: Fn(Delivery) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    tower::service_fn(move |delivery| {
        let outcome = f(delivery);
        async move { Ok::<_, Infallible>(outcome.await) }
    })
}

pub fn retry(after: Duration) -> Outcome {
    Outcome::Retry { after: Some(after), error: Error::new(ebus_core::ErrorKind::Handler, "not yet") }
}

pub fn reject() -> Outcome {
    Outcome::Reject { error: Error::new(ebus_core::ErrorKind::Handler, "never") }
}

/// Waits for a condition; panics with what it waited for.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(600), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    if waited.await.is_err() {
        panic!("waited in vain for: {what}");
    }
}

/// A pool whose handler takes `run` for each message.
pub fn slow_pool(source: Box<ScriptedSource>, log: &Log, run: Duration) -> Pool {
    let pool = Pool::start(source, config()).expect("valid");
    let seen = log.clone();
    pool.subscribe(
        topic(),
        handler(move |delivery| {
            let entry = seen.run(&delivery);
            async move {
                tokio::time::sleep(run).await;
                entry.end();
                Outcome::Ack
            }
        }),
    )
    .expect("open");
    pool
}
