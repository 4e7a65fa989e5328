//! A broker and members that are driven by hand.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ebus_core::{
    Backend, Error, Group, Inbound, Message, Owned, PartitionId, Publish, Receipt, Settlement, Source,
    SourceEvent, SourceOptions, Token, Topic, TopicSpec,
};
use ebus_memory::{MemoryBackend, MemoryConfig, TopicPolicy};

pub(crate) fn topic() -> Topic {
    Topic::new("orders").unwrap()
}

pub(crate) fn group() -> Group {
    Group::new("billing").unwrap()
}

pub(crate) fn partition(number: u32) -> PartitionId {
    PartitionId::new(topic(), number)
}

pub(crate) fn config() -> MemoryConfig {
    MemoryConfig::default().with_topic_policy(TopicPolicy::MustExist)
}

pub(crate) async fn broker_with(partitions: u32, config: MemoryConfig) -> MemoryBackend {
    let backend = MemoryBackend::new(config).unwrap();
    backend.create_topic(&TopicSpec::new(topic(), partitions)).await.unwrap();
    backend
}

pub(crate) async fn broker(partitions: u32) -> MemoryBackend {
    broker_with(partitions, config()).await
}

pub(crate) fn numbered(key: &str, number: u64) -> Publish {
    Publish::new(topic(), Message::new(number.to_be_bytes().to_vec()).with_key(key))
}

pub(crate) async fn publish(
    backend: &MemoryBackend,
    key: &str,
    numbers: std::ops::Range<u64>,
) -> Vec<Receipt> {
    let mut publisher = backend.publisher();
    let mut receipts = Vec::new();
    for number in numbers {
        receipts.push(publisher.publish(numbered(key, number)).await.unwrap());
    }
    receipts
}

pub(crate) fn number(message: &Message) -> u64 {
    u64::from_be_bytes(message.payload.as_ref().try_into().unwrap())
}

/// A member, and all that its source has said.
pub(crate) struct Member {
    pub(crate) source: Box<dyn Source>,
    pub(crate) tokens: Vec<(Token, Message)>,
    pub(crate) owned: HashMap<PartitionId, Owned>,
    pub(crate) names: HashMap<Owned, PartitionId>,
    pub(crate) revoking: Vec<Owned>,
    /// Of which the source has said that they are full.
    pub(crate) full: HashSet<Owned>,
    pub(crate) released: Vec<(Owned, Result<(), Error>)>,
    pub(crate) lost: Vec<Owned>,
    pub(crate) troubles: Vec<Error>,
}

pub(crate) fn options() -> SourceOptions {
    SourceOptions::new(group(), vec![topic()])
}

impl Member {
    pub(crate) async fn join(backend: &MemoryBackend) -> Self {
        Self::join_with(backend, options()).await
    }

    pub(crate) async fn join_with(backend: &MemoryBackend, options: SourceOptions) -> Self {
        Self {
            source: backend.source(options).await.unwrap(),
            tokens: Vec::new(),
            owned: HashMap::new(),
            names: HashMap::new(),
            revoking: Vec::new(),
            full: HashSet::new(),
            released: Vec::new(),
            lost: Vec::new(),
            troubles: Vec::new(),
        }
    }

    /// One `recv`, checked against the contract: no message of what is not owned, or is being revoked.
    pub(crate) async fn recv(&mut self, room: usize) -> usize {
        let mut events = Vec::new();
        let count = self.source.recv(room, &mut events).await.unwrap();
        assert_eq!(count, events.len());
        for event in events {
            match event {
                SourceEvent::Assigned { owned } => {
                    for assigned in owned {
                        let before = self.owned.insert(assigned.partition.clone(), assigned.owned);
                        assert_eq!(before, None, "assigned twice");
                        self.names.insert(assigned.owned, assigned.partition);
                    }
                }
                SourceEvent::Message(Inbound { token, message }) => {
                    let owned = token.owned();
                    assert!(
                        self.owned.values().any(|other| *other == owned),
                        "a message of what is not owned"
                    );
                    assert!(!self.revoking.contains(&owned), "a message of what is being revoked");
                    self.tokens.push((token, message));
                }
                SourceEvent::Revoking { owned, .. } => self.revoking.extend(owned),
                SourceEvent::Released { owned, committed } => {
                    for one in owned {
                        self.gone(one);
                        self.released.push((one, committed.clone()));
                    }
                }
                SourceEvent::Lost { owned } => owned.into_iter().for_each(|one| {
                    self.gone(one);
                    self.lost.push(one);
                }),
                SourceEvent::Full { full, freed } => {
                    full.into_iter().for_each(|one| assert!(self.full.insert(one), "it was full before"));
                    freed.iter().for_each(|one| assert!(self.full.remove(one), "it was not full"));
                }
                SourceEvent::Trouble(error) => self.troubles.push(error),
                other => panic!("{other:?}"),
            }
        }
        count
    }

    fn gone(&mut self, one: Owned) {
        self.owned.retain(|_, owned| *owned != one);
        self.revoking.retain(|owned| *owned != one);
        self.full.remove(&one);
    }

    /// Receives until nothing comes for a while (of paused time).
    pub(crate) async fn drain(&mut self) {
        self.drain_for(Duration::from_millis(20)).await;
    }

    pub(crate) async fn drain_for(&mut self, quiet: Duration) {
        while let Ok(count) = tokio::time::timeout(quiet, self.recv(usize::MAX)).await {
            if count == 0 {
                return;
            }
        }
    }

    /// Settles the messages that `which` names, in order.
    pub(crate) fn finish(&mut self, which: impl Fn(u64) -> bool) -> Vec<u64> {
        let (done, open): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.tokens).into_iter().partition(|(_, message)| which(number(message)));
        self.tokens = open;
        let numbers = done.iter().map(|(_, message)| number(message)).collect();
        let mut batch = done.into_iter().map(|(token, _)| (token, Settlement::Finished)).collect();
        self.source.settle(&mut batch);
        assert!(batch.is_empty());
        numbers
    }

    /// Drops what is open of what is being revoked, and releases it.
    pub(crate) fn release(&mut self) {
        let revoking = self.revoking.clone();
        self.tokens.retain(|(token, _)| !revoking.contains(&token.owned()));
        self.source.release(&revoking);
    }

    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.tokens.iter().map(|(_, message)| number(message)).collect()
    }

    pub(crate) fn partitions(&self) -> Vec<u32> {
        let mut numbers: Vec<_> = self.owned.keys().map(|partition| partition.partition).collect();
        numbers.sort_unstable();
        numbers
    }

    pub(crate) async fn close(self) -> Result<(), Error> {
        self.source.close(Duration::from_secs(1)).await
    }
}
