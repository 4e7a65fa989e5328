//! Faults of what a real Kafka stores, for the conformance suite: retention, gaps, foreign positions, a topic made anew.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use ebus_core::{Backend, Error, ErrorKind, Group, NextOffset, PartitionId, Topic, TopicSpec};
use ebus_kafka::{KafkaBackend, KafkaConfig};
use ebus_testkit::conformance::LogFaults;
use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

#[path = "by_hand.rs"]
pub(crate) mod by_hand;

/// How long one fault may take.
const WITHIN: Duration = Duration::from_secs(20);

/// The most messages of an aborted transaction: a gap of a million would take as many.
const MOST: u64 = 1_000;

pub(crate) struct KafkaLogFaults {
    url: String,
    /// Whose transactions are aborted.
    aborts: Arc<Mutex<Option<BaseProducer>>>,
}

impl KafkaLogFaults {
    pub(crate) fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), aborts: Arc::default() }
    }

    fn bootstrap(&self) -> &str {
        self.url.trim_start_matches("kafka://")
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>, Error> {
        ClientConfig::new().set("bootstrap.servers", self.bootstrap()).create().map_err(failed)
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Unexpected, "a fault could not be made").with_source(error)
}

fn number(partition: &PartitionId) -> i32 {
    i32::try_from(partition.partition).unwrap_or(i32::MAX)
}

#[async_trait]
impl LogFaults for KafkaLogFaults {
    async fn trim(&self, partition: &PartitionId, below: u64) -> Result<(), Error> {
        let mut list = TopicPartitionList::new();
        let below = Offset::Offset(i64::try_from(below).map_err(failed)?);
        list.add_partition_offset(partition.topic.as_str(), number(partition), below).map_err(failed)?;
        let done = self.admin()?.delete_records(&list, &AdminOptions::new()).await.map_err(failed)?;
        done.elements().iter().try_for_each(|element| element.error().map_err(failed))
    }

    /// By a transaction that is aborted: its messages and its marker, two offsets at least.
    async fn skip_offsets(&self, partition: &PartitionId, offsets: u64) -> Result<(), Error> {
        if offsets == 0 {
            return Ok(());
        }
        let (bootstrap, partition) = (self.bootstrap().to_owned(), partition.clone());
        let (aborts, messages) = (self.aborts.clone(), (offsets - 1).clamp(1, MOST));
        let abort = move || {
            let mut producer = aborts.lock();
            let producer = match &mut *producer {
                Some(producer) => producer,
                none => none.insert(transactional(&bootstrap)?),
            };
            producer.begin_transaction()?;
            for _ in 0..messages {
                let record = BaseRecord::<[u8], [u8]>::to(partition.topic.as_str());
                let record = record.partition(number(&partition)).payload(b"of an aborted transaction");
                producer.send(record).map_err(|(error, _)| error)?;
            }
            producer.flush(WITHIN)?;
            producer.abort_transaction(WITHIN)
        };
        tokio::task::spawn_blocking(abort).await.map_err(failed)?.map_err(failed)
    }

    async fn overwrite_position(
        &self,
        group: &Group,
        partition: &PartitionId,
        watermark: NextOffset,
        text: &[u8],
    ) -> Result<(), Error> {
        let offset = i64::try_from(watermark.0).map_err(failed)?;
        let place = (partition.topic.as_str(), number(partition));
        by_hand::commit_by_hand(self.bootstrap(), group.as_str(), place, offset, Some(text)).map_err(failed)
    }

    async fn remake_topic(&self, topic: &Topic) -> Result<(), Error> {
        let backend = KafkaBackend::connect(KafkaConfig::from_url(&self.url)?).await?;
        let size = backend.describe_topic(topic).await?.partitions.len();
        let spec = TopicSpec::new(topic.clone(), u32::try_from(size).map_err(failed)?);
        let gone = self.admin()?.delete_topics(&[topic.as_str()], &AdminOptions::new()).await;
        for result in gone.map_err(failed)? {
            result.map_err(|(topic, code)| Error::new(ErrorKind::Unexpected, format!("{topic}: {code}")))?;
        }
        // Its name is free when every broker has heard of it.
        let end = tokio::time::Instant::now() + WITHIN;
        let mut empty = false;
        while !empty {
            let there = backend.create_topic(&spec).await;
            empty = there.as_ref().is_ok_and(|info| info.partitions.iter().all(|one| one.end.0 == 0));
            if tokio::time::Instant::now() >= end {
                return Err(there.err().unwrap_or_else(|| Error::new(ErrorKind::Timeout, "the topic stays")));
            }
        }
        backend.close(WITHIN).await
    }
}

fn transactional(bootstrap: &str) -> rdkafka::error::KafkaResult<BaseProducer> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("transactional.id", format!("aborts-{now:x}"))
        .set("linger.ms", "0")
        .create()?;
    producer.init_transactions(WITHIN)?;
    Ok(producer)
}
