//! The raw side: rdkafka as well as we can write it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use ebus_core::{Key, Message};
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::work::PARTITIONS;

/// As our side sets them, and as many messages in flight. With the default of 100,000 a message takes a quarter more CPU
/// time: what is in flight no longer fits into the caches.
pub(crate) const PRODUCER: [(&str, &str); 9] = [
    ("acks", "all"),
    ("enable.idempotence", "true"),
    ("partitioner", "murmur2_random"),
    ("compression.codec", "lz4"),
    ("linger.ms", "5"),
    ("batch.size", "1000000"),
    ("batch.num.messages", "100000"),
    ("queue.buffering.max.messages", "16384"),
    ("message.timeout.ms", "30000"),
];

/// As our side sets them.
pub(crate) const CONSUMER: [(&str, &str); 7] = [
    ("fetch.queue.backoff.ms", "5"),
    ("queued.min.messages", "20000"),
    ("queued.max.messages.kbytes", "8192"),
    ("isolation.level", "read_committed"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("auto.offset.reset", "earliest"),
    ("enable.auto.commit", "false"),
];

pub(crate) const COMMIT_INTERVAL: Duration = Duration::from_millis(200);
const SLAB: usize = 64 << 10;

pub(crate) fn shown(settings: &[(&str, &str)]) -> String {
    settings.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// Counts delivery reports.
#[derive(Default)]
pub(crate) struct Reports {
    stored: AtomicUsize,
    failed: Mutex<Option<KafkaError>>,
}

impl Reports {
    /// Fails when a message was not stored.
    fn none_failed(&self) -> Result<()> {
        match self.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error).context("a message was not stored"),
            None => Ok(()),
        }
    }

    /// Fails when not all of `n` messages were stored.
    pub(crate) fn check(&self, n: usize) -> Result<()> {
        self.none_failed()?;
        let stored = self.stored.load(Ordering::Relaxed);
        ensure!(stored == n, "{stored} messages were stored, not {n}");
        Ok(())
    }
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.stored.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, _)) => {
                *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
            }
        }
    }
}

/// Publishes `n` messages and waits for their delivery reports. Blocks.
///
/// The thread that publishes serves the reports too: on two cores this takes less than a thread for each
/// (`ThreadedProducer`).
pub(crate) fn publish(mut client: ClientConfig, topic: &str, messages: &[Message], n: usize) -> Result<f64> {
    for (name, value) in PRODUCER {
        client.set(name, value);
    }
    let producer: BaseProducer<Reports> = client.create_with_context(Reports::default())?;
    let begun = Instant::now();
    for i in 0..n {
        let message = &messages[i % messages.len()];
        let key = message.key.as_ref().map(Key::as_bytes).unwrap_or_default();
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).key(key).payload(&message.payload);
        while let Err((error, again)) = producer.send(record) {
            ensure!(
                error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull),
                "could not publish: {error}"
            );
            producer.poll(Duration::from_millis(10));
            producer.context().none_failed()?;
            record = again;
        }
        if i % 256 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(Duration::from_secs(60)).context("not all was delivered")?;
    let rate = n as f64 / begun.elapsed().as_secs_f64();
    producer.context().check(n)?;
    Ok(rate)
}

/// Reads a topic of `n` messages in a new group, owning key and payload, and commits. Blocks.
pub(crate) fn consume(mut client: ClientConfig, topic: &str, group: &str, lengths: &[i64]) -> Result<f64> {
    for (name, value) in CONSUMER {
        client.set(name, value);
    }
    client.set("group.id", group);
    let consumer: BaseConsumer = client.create()?;
    consumer.subscribe(&[topic])?;
    let n = lengths.iter().sum::<i64>();
    let mut next = Next::default();
    let mut slab = BytesMut::new();
    let (mut first, mut committed) = (None, Instant::now());
    let mut seen = 0;
    let waiting_since = Instant::now();
    while seen < n {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else {
            ensure!(waiting_since.elapsed() < Duration::from_secs(120), "{seen} messages of {n} after 120 s");
            continue;
        };
        let message = message?;
        first.get_or_insert_with(Instant::now);
        std::hint::black_box(own(&message, &mut slab));
        next.has_read(&message)?;
        seen += 1;
        if seen % 1_024 == 0 && committed.elapsed() >= COMMIT_INTERVAL {
            consumer.commit(&next.list(topic)?, CommitMode::Async)?;
            committed = Instant::now();
        }
    }
    let rate = n as f64 / first.unwrap_or(waiting_since).elapsed().as_secs_f64();
    consumer.commit(&next.list(topic)?, CommitMode::Sync)?;
    for partition in consumer.committed(Duration::from_secs(10))?.elements() {
        let end = Offset::Offset(lengths[usize::try_from(partition.partition())?]);
        let position = partition.offset();
        ensure!(
            position == end,
            "partition {}: {position:?} is committed, not {end:?}",
            partition.partition()
        );
    }
    Ok(rate)
}

/// Key and payload in memory of ours, cut from one slab: fewer allocations than a detached message has.
fn own(message: &impl rdkafka::Message, slab: &mut BytesMut) -> (Bytes, Bytes) {
    let (key, payload) = (message.key().unwrap_or_default(), message.payload().unwrap_or_default());
    if slab.capacity() < key.len() + payload.len() {
        *slab = BytesMut::with_capacity(SLAB.max(key.len() + payload.len()));
    }
    slab.extend_from_slice(key);
    let owned_key = slab.split().freeze();
    slab.extend_from_slice(payload);
    (owned_key, slab.split().freeze())
}

/// What is read next in each partition.
#[derive(Default)]
pub(crate) struct Next([Option<i64>; PARTITIONS as usize]);

impl Next {
    pub(crate) fn has_read(&mut self, message: &impl rdkafka::Message) -> Result<()> {
        self.0[usize::try_from(message.partition())?] = Some(message.offset() + 1);
        Ok(())
    }

    pub(crate) fn is_some(&self) -> bool {
        self.0.iter().any(Option::is_some)
    }

    /// As commit takes it.
    pub(crate) fn list(&self, topic: &str) -> Result<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for (partition, next) in (0..).zip(self.0) {
            if let Some(next) = next {
                list.add_partition_offset(topic, partition, Offset::Offset(next))?;
            }
        }
        Ok(list)
    }
}
