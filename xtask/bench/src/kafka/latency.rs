//! From publishing to the handler, over the broker, under a light load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use ebus_core::{Backend, Key, Topic};
use ebus_kafka::{KafkaBackend, KafkaConfig};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use tokio::sync::oneshot;

use crate::kafka::cluster::Cluster;
use crate::kafka::raw::{self, Reports};
use crate::latency::{Latency, Percentiles};
use crate::ours;
use crate::stopwatch::{Stopwatch, load};
use crate::work::PARTITIONS;

/// Kafka in between.
#[derive(Default)]
pub(crate) struct EndToEnd(Option<Cluster>);

impl EndToEnd {
    async fn new_topic(&mut self) -> Result<(&mut Cluster, String)> {
        let cluster = self.0.as_mut().context("not prepared")?;
        let topic = cluster.create_topic().await?;
        Ok((cluster, topic))
    }
}

#[async_trait]
impl Latency for EndToEnd {
    fn name(&self) -> &'static str {
        "kafka-latency"
    }

    fn work(&self) -> String {
        format!(
            "{}; {PARTITIONS} partitions, 230 bytes; publisher and reader have a connection each, a topic and a group for each run",
            load()
        )
    }

    fn ours_is(&self) -> String {
        let config = KafkaConfig::new("");
        format!(
            "KafkaProducer, linger {:?}, {} in flight per broker; {}",
            config.linger,
            config.batches_in_flight,
            ours::SETTINGS
        )
    }

    fn baseline_is(&self) -> String {
        format!(
            "rdkafka ThreadedProducer, five in flight per broker; BaseConsumer on a thread of its own, an asynchronous commit every \
             200 ms; {} {}",
            raw::shown(&raw::PRODUCER),
            raw::shown(&raw::CONSUMER)
        )
    }

    async fn prepare(&mut self) -> Result<()> {
        self.0 = Some(Cluster::find()?);
        Ok(())
    }

    async fn ours(&mut self) -> Result<Percentiles> {
        let (cluster, topic) = self.new_topic().await?;
        let backend = KafkaBackend::connect(KafkaConfig::from_url(&cluster.url)?).await?;
        let percentiles =
            ours::latency(&backend, backend.producer(), &Topic::new(topic.as_str())?, &topic).await?;
        backend.close(Duration::from_secs(10)).await?;
        cluster.delete_topic(&topic).await?;
        Ok(percentiles)
    }

    async fn baseline(&mut self) -> Result<Percentiles> {
        let (cluster, topic) = self.new_topic().await?;
        let stopwatch = Stopwatch::new();
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = oneshot::channel();
        let mut reading = {
            let (client, topic, stopwatch, stop) =
                (cluster.client(), topic.clone(), stopwatch.clone(), stop.clone());
            tokio::task::spawn_blocking(move || read(client, &topic, &stopwatch, ready, &stop))
        };
        // When the reader fails, its error says more.
        if is_ready.await.is_ok() {
            publish(cluster.client(), topic.clone(), stopwatch.clone()).await?;
        }
        tokio::select! {
            () = stopwatch.done() => stop.store(true, Ordering::Release),
            ended = &mut reading => {
                ended??;
                bail!("the reader ended before it had read all");
            }
        }
        reading.await??;
        cluster.delete_topic(&topic).await?;
        stopwatch.percentiles()
    }

    async fn clean_up(&mut self) -> Result<()> {
        match self.0.take() {
            Some(mut cluster) => cluster.delete_topics().await,
            None => Ok(()),
        }
    }
}

/// Publishes at the pace, and waits for all delivery reports.
async fn publish(mut client: ClientConfig, topic: String, stopwatch: Arc<Stopwatch>) -> Result<()> {
    for (name, value) in raw::PRODUCER {
        client.set(name, value);
    }
    let producer: ThreadedProducer<Reports> = client.create_with_context(Reports::default())?;
    // On a worker of the runtime, as ours.
    let publishing = tokio::spawn(async move {
        let mut paced = stopwatch.paced();
        let mut sent = 0;
        while let Some(message) = paced.next().await {
            let key = message.key.as_ref().map(Key::as_bytes).unwrap_or_default();
            let record = BaseRecord::<[u8], [u8]>::to(&topic).key(key).payload(&message.payload);
            producer.send(record).map_err(|(error, _)| error).context("could not publish")?;
            sent += 1;
        }
        tokio::task::spawn_blocking(move || {
            producer.flush(Duration::from_secs(30)).context("not all was delivered")?;
            producer.context().check(sent)
        })
        .await?
    });
    publishing.await?
}

/// Reads until told to stop, and says when it has all partitions. Blocks.
fn read(
    mut client: ClientConfig,
    topic: &str,
    stopwatch: &Stopwatch,
    ready: oneshot::Sender<()>,
    stop: &AtomicBool,
) -> Result<()> {
    for (name, value) in raw::CONSUMER {
        client.set(name, value);
    }
    client.set("group.id", topic);
    let consumer: BaseConsumer = client.create()?;
    consumer.subscribe(&[topic])?;
    let (begun, mut ready) = (Instant::now(), Some(ready));
    let mut next = raw::Next::default();
    let mut committed = begun;
    while !stop.load(Ordering::Acquire) {
        let message = consumer.poll(Duration::from_millis(if ready.is_some() { 10 } else { 100 }));
        if ready.is_some() {
            if consumer.assignment()?.count() == PARTITIONS as usize {
                // Who waits is there as long as this runs.
                let _ = ready.take().map(|ready| ready.send(()));
            } else {
                ensure!(begun.elapsed() < Duration::from_secs(30), "no partitions after 30 s");
            }
        }
        if let Some(message) = message {
            let message = message?;
            stopwatch.handled(message.payload().unwrap_or_default());
            next.has_read(&message)?;
        }
        if committed.elapsed() >= raw::COMMIT_INTERVAL && next.is_some() {
            consumer.commit(&next.list(topic)?, CommitMode::Async)?;
            committed = Instant::now();
        }
    }
    consumer.commit(&next.list(topic)?, CommitMode::Sync)?;
    Ok(())
}
