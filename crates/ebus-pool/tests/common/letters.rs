//! A dead-letter topic of one partition and a store of parked keys, which fail when they are told to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ebus_core::{
    Backend, Capability, Committed, Epoch, Error, ErrorKind, Group, Message, NextOffset, Parking,
    PartitionId, PartitionInfo, Publish, Publisher, ReadRange, Reader, Receipt, Source, SourceOptions, Topic,
    TopicInfo, TopicSpec,
};
use ebus_pool::{ParkedKey, PoolConfig, dead_letter, parked_keys};

/// Cheap to clone; clones are the same.
#[derive(Clone, Default)]
pub struct Letters(Arc<Mutex<State>>);

pub struct State {
    /// What is stored.
    pub letters: Vec<Message>,
    pub value: Option<Bytes>,
    pub epoch: u64,
    pub requests: Vec<Bytes>,
    /// Every write and claim fails with this.
    pub store_fails: Option<ErrorKind>,
    /// Every publish fails.
    pub publish_fails: bool,
    /// Accepted writes.
    pub kept: usize,
    /// Reading letters fails.
    pub read_fails: bool,
    /// How often the list was asked for.
    pub claims: usize,
    /// From where letters were read.
    pub reads: Vec<u64>,
    pub max_bytes: Option<usize>,
    /// Where the partition ends that is consumed.
    pub source_end: u64,
    /// Ids of what was published lately: the same again is not stored.
    pub ids: Option<BTreeMap<String, u64>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            letters: Vec::new(),
            value: None,
            epoch: 0,
            requests: Vec::new(),
            store_fails: None,
            publish_fails: false,
            kept: 0,
            read_fails: false,
            claims: 0,
            reads: Vec::new(),
            max_bytes: None,
            source_end: 1 << 40,
            ids: None,
        }
    }
}

pub fn dead_topic() -> Topic {
    Topic::new("orders.dlq").expect("legal")
}

fn group() -> Group {
    Group::new("test").expect("legal")
}

impl Letters {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panicked with it")
    }

    /// Settings that park at most `most` keys here.
    pub fn config(&self, most: usize) -> PoolConfig {
        let letters = self.clone();
        let publisher = Publisher::new(tower::service_fn(move |publish: Publish| {
            let stored = letters.store(publish);
            async move { stored }
        }));
        super::config()
            .with_dead_letter(dead_topic(), publisher)
            .with_parked_keys(most)
            .with_parking(Arc::new(self.clone()), Arc::new(self.clone()))
    }

    fn store(&self, publish: Publish) -> Result<Receipt, Error> {
        let mut state = self.state();
        if state.publish_fails {
            return Err(failed(ErrorKind::Unavailable));
        }
        let place = state.letters.len() as u64;
        if let (Some(ids), Some(id)) = (&mut state.ids, publish.id) {
            if let Some(first) = ids.get(&id) {
                return Ok(Receipt::new(publish.topic, 0, *first).with_duplicate(true));
            }
            ids.insert(id, place);
        }
        state.letters.push(publish.message);
        Ok(Receipt::new(publish.topic, 0, place))
    }

    /// Of each letter the offset of its message and the reason.
    pub fn told(&self) -> Vec<(u64, String)> {
        let header =
            |message: &Message, name| message.headers.first_str(name).expect("a dead letter").to_owned();
        let told = |message| {
            let offset = header(message, dead_letter::OFFSET).parse().expect("a number");
            (offset, header(message, dead_letter::REASON))
        };
        self.state().letters.iter().map(told).collect()
    }

    pub async fn parked(&self) -> Vec<ParkedKey> {
        parked_keys(self, &group(), &super::topic()).await.expect("the list can be read")
    }

    pub async fn redrive(&self, key: &str) -> Result<(), Error> {
        ebus_pool::redrive(self, &group(), &super::topic(), &key.into()).await
    }
}

fn failed(kind: ErrorKind) -> Error {
    Error::new(kind, "as the test asks")
}

#[async_trait]
impl Parking for Letters {
    fn max_bytes(&self) -> usize {
        self.state().max_bytes.unwrap_or(1 << 20)
    }

    async fn claim(&self, _: &PartitionId, epoch: Epoch) -> Result<Option<Bytes>, Error> {
        let mut state = self.state();
        state.claims += 1;
        if let Some(kind) = state.store_fails {
            return Err(failed(kind));
        }
        if epoch.0 < state.epoch {
            return Err(failed(ErrorKind::Fenced));
        }
        state.epoch = epoch.0;
        Ok(state.value.clone())
    }

    async fn keep(&self, _: &PartitionId, epoch: Epoch, value: Bytes) -> Result<(), Error> {
        let mut state = self.state();
        if let Some(kind) = state.store_fails {
            return Err(failed(kind));
        }
        if epoch.0 < state.epoch {
            return Err(failed(ErrorKind::Fenced));
        }
        assert!(value.len() <= state.max_bytes.unwrap_or(1 << 20), "more than was promised to fit");
        (state.value, state.kept) = (Some(value), state.kept + 1);
        Ok(())
    }

    async fn read(&self, _: &PartitionId) -> Result<Option<Bytes>, Error> {
        Ok(self.state().value.clone())
    }

    async fn ask(&self, _: &PartitionId, request: Bytes) -> Result<(), Error> {
        let mut state = self.state();
        if !state.requests.contains(&request) {
            state.requests.push(request);
        }
        Ok(())
    }

    async fn asked(&self, _: &PartitionId) -> Result<Vec<Bytes>, Error> {
        Ok(self.state().requests.clone())
    }

    async fn answered(&self, _: &PartitionId, request: &Bytes) -> Result<(), Error> {
        self.state().requests.retain(|other| other != request);
        Ok(())
    }
}

/// Reads what was stored when it was made.
struct Stored(Vec<(u64, Message)>);

#[async_trait]
impl Reader for Stored {
    async fn next(&mut self, most: usize, out: &mut Vec<(u64, Message)>) -> Result<usize, Error> {
        let taken = most.min(self.0.len());
        out.extend(self.0.drain(..taken));
        Ok(taken)
    }
}

#[async_trait]
impl Backend for Letters {
    fn capability(&self) -> Capability {
        Capability::new("letters", 1 << 20)
    }

    fn publisher(&self) -> Publisher {
        unreachable!("the pool publishes dead letters by its own publisher")
    }

    async fn source(&self, _: SourceOptions) -> Result<Box<dyn Source>, Error> {
        Err(failed(ErrorKind::Unsupported))
    }

    async fn create_topic(&self, _: &TopicSpec) -> Result<TopicInfo, Error> {
        Err(failed(ErrorKind::Unsupported))
    }

    async fn describe_topic(&self, topic: &Topic) -> Result<TopicInfo, Error> {
        let state = self.state();
        if state.read_fails && *topic == dead_topic() {
            return Err(failed(ErrorKind::Unavailable));
        }
        let end = if *topic == dead_topic() { state.letters.len() as u64 } else { state.source_end };
        let end = NextOffset(end);
        Ok(TopicInfo::new(topic.clone(), vec![PartitionInfo { earliest: 0, end }]))
    }

    async fn read(&self, range: ReadRange) -> Result<Box<dyn Reader>, Error> {
        let mut state = self.state();
        state.reads.push(range.from);
        let letters: BTreeMap<u64, Message> = (0..).zip(state.letters.iter().cloned()).collect();
        Ok(Box::new(Stored(
            letters.range(range.from..range.to.0).map(|(at, letter)| (*at, letter.clone())).collect(),
        )))
    }

    async fn committed(&self, _: &Group, _: &Topic) -> Result<Vec<Committed>, Error> {
        Ok(Vec::new())
    }

    async fn parking(&self, _: &Group) -> Result<Arc<dyn Parking>, Error> {
        Ok(Arc::new(self.clone()))
    }

    async fn close(&self, _: Duration) -> Result<(), Error> {
        Ok(())
    }
}
