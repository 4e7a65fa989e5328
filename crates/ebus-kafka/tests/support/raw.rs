//! A member without a pool: it does what it is told and keeps what it is told.
#![allow(dead_code)] // Each test binary that has this module uses a part of it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ebus_core::{
    Assigned, Backend, Error, Inbound, Message, Owned, PartitionId, Publish, Settlement, Source, SourceEvent,
    SourceOptions, Topic,
};
use libtest_mimic::Failed;

pub(crate) type Tested<T = ()> = Result<T, Failed>;

/// How long a condition may take: a rebalance of the consumer protocol on a busy machine, and the take-over of a lost member.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Raw {
    source: Option<Box<dyn Source>>,
    /// What it owns now.
    pub(crate) owned: HashMap<Owned, Assigned>,
    /// Messages in the order in which they came, and when.
    pub(crate) inbound: Vec<(Inbound, Instant)>,
    pub(crate) revoking: Vec<Owned>,
    pub(crate) released: Vec<(Owned, Result<(), Error>)>,
    pub(crate) lost: Vec<Owned>,
    pub(crate) troubles: Vec<Error>,
    pub(crate) ended: Option<Error>,
    /// Every ownership that ever was.
    places: HashMap<Owned, PartitionId>,
}

impl Raw {
    pub(crate) async fn join(backend: &dyn Backend, options: SourceOptions) -> Tested<Self> {
        Ok(Self::of(backend.source(options).await?))
    }

    pub(crate) fn of(source: Box<dyn Source>) -> Self {
        Self {
            source: Some(source),
            owned: HashMap::new(),
            inbound: Vec::new(),
            revoking: Vec::new(),
            released: Vec::new(),
            lost: Vec::new(),
            troubles: Vec::new(),
            ended: None,
            places: HashMap::new(),
        }
    }

    pub(crate) fn source(&mut self) -> &mut dyn Source {
        &mut **self.source.as_mut().expect("it was not closed yet")
    }

    /// Takes in what there is, and waits a moment for more.
    pub(crate) async fn look(&mut self) {
        self.look_with(10_000).await;
    }

    pub(crate) async fn look_with(&mut self, room: usize) {
        let mut events = Vec::new();
        // `recv` may be dropped at any await.
        let moment = Duration::from_millis(10);
        if self.ended.is_some() {
            return tokio::time::sleep(moment).await;
        }
        let got = tokio::time::timeout(moment, self.source().recv(room, &mut events)).await;
        if let Ok(Err(error)) = got {
            self.ended = Some(error);
        }
        for event in events {
            match event {
                SourceEvent::Assigned { owned } => {
                    for assigned in owned {
                        self.places.insert(assigned.owned, assigned.partition.clone());
                        self.owned.insert(assigned.owned, assigned);
                    }
                }
                SourceEvent::Message(inbound) => self.inbound.push((inbound, Instant::now())),
                SourceEvent::Revoking { owned, .. } => self.revoking.extend(owned),
                SourceEvent::Released { owned, committed } => {
                    self.owned.retain(|one, _| !owned.contains(one));
                    self.released.extend(owned.into_iter().map(|one| (one, committed.clone())));
                }
                SourceEvent::Lost { owned } => {
                    self.owned.retain(|one, _| !owned.contains(one));
                    self.revoking.retain(|one| !owned.contains(one));
                    self.lost.extend(owned);
                }
                SourceEvent::Trouble(error) => self.troubles.push(error),
                _ => {}
            }
        }
    }

    /// Settles as finished what came and `which` picks; how many.
    pub(crate) fn finish(&mut self, mut which: impl FnMut(&Inbound) -> bool) -> usize {
        let (of, other): (Vec<_>, Vec<_>) = self.inbound.drain(..).partition(|(inbound, _)| which(inbound));
        self.inbound = other;
        let mut batch: Vec<_> =
            of.into_iter().map(|(inbound, _)| (inbound.token, Settlement::Finished)).collect();
        let count = batch.len();
        self.source().settle(&mut batch);
        count
    }

    /// Lets all go that is being revoked.
    pub(crate) fn release(&mut self) {
        let revoking = std::mem::take(&mut self.revoking);
        self.source().release(&revoking);
    }

    pub(crate) fn partition(&self, owned: Owned) -> u32 {
        self.places.get(&owned).expect("what is owned was assigned").partition
    }

    /// The partitions that it owns, in order.
    pub(crate) fn partitions(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.owned.values().map(|assigned| assigned.partition.partition).collect();
        all.sort_unstable();
        all
    }

    /// How many partitions of this topic it owns.
    pub(crate) fn of_topic(&self, topic: &Topic) -> usize {
        self.owned.values().filter(|assigned| assigned.partition.topic == *topic).count()
    }

    /// The places of messages that came, in order of arrival.
    pub(crate) fn offsets(&self, partition: u32) -> Vec<u64> {
        let of = self.inbound.iter().filter(|(one, _)| self.partition(one.token.owned()) == partition);
        of.map(|(one, _)| one.token.offset()).collect()
    }

    pub(crate) async fn close(&mut self) -> Result<(), Error> {
        self.close_within(Duration::from_secs(10)).await
    }

    pub(crate) async fn close_within(&mut self, within: Duration) -> Result<(), Error> {
        self.source.take().expect("it is closed once").close(within).await
    }
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raw")
            .field("partitions", &self.partitions())
            .field("inbound", &self.inbound.len())
            .field("revoking", &self.revoking)
            .field("released", &self.released)
            .field("lost", &self.lost)
            .field("troubles", &self.troubles)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// Lets these members go on until `done`.
pub(crate) async fn until<const N: usize>(
    what: &str,
    mut members: [&mut Raw; N],
    mut done: impl FnMut(&mut [&mut Raw; N]) -> bool,
) -> Tested {
    let end = Instant::now() + PATIENCE;
    while !done(&mut members) {
        if Instant::now() >= end {
            return Err(format!("not in time: {what}: {members:#?}").into());
        }
        for member in &mut members {
            member.look().await;
        }
    }
    Ok(())
}

/// Lets these members go on for a while.
pub(crate) async fn go_on<const N: usize>(mut members: [&mut Raw; N], time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        for member in &mut members {
            member.look().await;
        }
    }
}

/// A name that no other test and no other run has.
pub(crate) fn fresh(what: &str) -> Tested<Topic> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(Topic::new(format!("{what}-{:x}", now.as_nanos()))?)
}

/// Publishes so many messages without a key: they go round the partitions as the client likes.
pub(crate) async fn publish(backend: &dyn Backend, topic: &Topic, count: usize) -> Tested<Vec<(u32, u64)>> {
    let mut publisher = backend.publisher();
    let mut sent = Vec::new();
    for number in 0..count {
        let message = Message::new(format!("{number}")).with_key(format!("k{number}"));
        sent.push(publisher.enqueue(Publish::new(topic.clone(), message)).await?);
    }
    let mut stored = Vec::new();
    for one in sent {
        let receipt = one.await?;
        stored.push((receipt.partition, receipt.offset));
    }
    Ok(stored)
}

/// Runs an async test on a runtime of its own.
pub(crate) fn block<F: Future<Output = Tested>>(test: F) -> Tested {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(test)
}
