//! A store of parked keys that records what could be kept: until then, what was redriven may run again (G6).

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use ebus_core::{Epoch, Error, Parking, PartitionId};

use crate::history::{Event, History, Kind, Name, Outcome, name};

/// Records `kept` of each write, with its answer.
pub(super) struct RecordedParking {
    pub(super) inner: Arc<dyn Parking>,
    pub(super) history: History,
    pub(super) group: Name,
    pub(super) member: Name,
}

/// A write that is under way. Given up, it is recorded as refused: nobody learnt that it was not.
struct Write<'a> {
    history: &'a History,
    event: Option<Event>,
}

impl Write<'_> {
    fn end(&mut self, outcome: Outcome, error: Option<&Error>) {
        if let Some(mut event) = self.event.take() {
            event.outcome = Some(outcome);
            event.error = error.map(Error::chain);
            self.history.record(event);
        }
    }
}

impl Drop for Write<'_> {
    fn drop(&mut self) {
        self.end(Outcome::Refused, None);
    }
}

#[async_trait]
impl Parking for RecordedParking {
    fn max_bytes(&self) -> usize {
        self.inner.max_bytes()
    }

    async fn claim(&self, partition: &PartitionId, epoch: Epoch) -> Result<Option<Bytes>, Error> {
        self.inner.claim(partition, epoch).await
    }

    async fn keep(&self, partition: &PartitionId, epoch: Epoch, value: Bytes) -> Result<(), Error> {
        let mut event = Event::new(Kind::Kept);
        event.group = Some(self.group.clone());
        event.member = Some(self.member.clone());
        event.topic = Some(name(partition.topic.as_str()));
        event.partition = Some(partition.partition);
        event.epoch = Some(epoch.0);
        let mut write = Write { history: &self.history, event: Some(event) };
        let kept = self.inner.keep(partition, epoch, value).await;
        let outcome = if kept.is_ok() { Outcome::Accepted } else { Outcome::Refused };
        write.end(outcome, kept.as_ref().err());
        kept
    }

    async fn read(&self, partition: &PartitionId) -> Result<Option<Bytes>, Error> {
        self.inner.read(partition).await
    }

    async fn ask(&self, partition: &PartitionId, request: Bytes) -> Result<(), Error> {
        self.inner.ask(partition, request).await
    }

    async fn asked(&self, partition: &PartitionId) -> Result<Vec<Bytes>, Error> {
        self.inner.asked(partition).await
    }

    async fn answered(&self, partition: &PartitionId, request: &Bytes) -> Result<(), Error> {
        self.inner.answered(partition, request).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ebus_core::{Backend, ErrorKind, Group, Topic, TopicSpec};
    use ebus_memory::{MemoryBroker, MemoryConfig};

    use super::*;
    use crate::record::Recorded;

    /// Answers a write never.
    struct Silent;

    #[async_trait]
    impl Parking for Silent {
        fn max_bytes(&self) -> usize {
            1 << 20
        }

        async fn claim(&self, _: &PartitionId, _: Epoch) -> Result<Option<Bytes>, Error> {
            Ok(None)
        }

        async fn keep(&self, _: &PartitionId, _: Epoch, _: Bytes) -> Result<(), Error> {
            std::future::pending().await
        }

        async fn read(&self, _: &PartitionId) -> Result<Option<Bytes>, Error> {
            Ok(None)
        }

        async fn ask(&self, _: &PartitionId, _: Bytes) -> Result<(), Error> {
            Ok(())
        }

        async fn asked(&self, _: &PartitionId) -> Result<Vec<Bytes>, Error> {
            Ok(Vec::new())
        }

        async fn answered(&self, _: &PartitionId, _: &Bytes) -> Result<(), Error> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn writes_are_recorded_with_their_answers_and_without_one_as_refused() {
        let history = History::new();
        let broker = MemoryBroker::new(MemoryConfig::default()).expect("legal");
        let group = Group::new("g").expect("legal");
        let partition = PartitionId::new(Topic::new("t").expect("legal"), 3);
        let backend = Recorded::new(Arc::new(broker.connect()), history.clone(), "m");
        backend.create_topic(&TopicSpec::new(partition.topic.clone(), 4)).await.expect("is new");
        let store = backend.parking(&group).await.expect("is there");
        store.claim(&partition, Epoch(7)).await.expect("the first");
        store.keep(&partition, Epoch(7), Bytes::new()).await.expect("the owner's");
        broker.faults().parking_fails(&group, Some(ErrorKind::Unavailable));
        store.keep(&partition, Epoch(7), Bytes::new()).await.expect_err("the fault");
        let silent = RecordedParking {
            inner: Arc::new(Silent),
            history: history.clone(),
            group: name("g"),
            member: name("m"),
        };
        let write = silent.keep(&partition, Epoch(8), Bytes::new());
        tokio::time::timeout(Duration::from_millis(1), write).await.expect_err("no answer");
        let events = history.events();
        let told: Vec<_> = events.iter().map(|event| (event.kind, event.epoch, event.outcome)).collect();
        let kept = |epoch, outcome| (Kind::Kept, Some(epoch), Some(outcome));
        assert_eq!(told, [kept(7, Outcome::Accepted), kept(7, Outcome::Refused), kept(8, Outcome::Refused)]);
        let first = &events[0];
        assert_eq!(
            (first.group.as_deref(), first.member.as_deref(), first.topic.as_deref(), first.partition),
            (Some("g"), Some("m"), Some("t"), Some(3))
        );
    }
}
