//! From publishing to the handler, over the server, under a light load.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::{HeaderMap, Subject};
use async_trait::async_trait;
use ebus_core::{Backend, Key};
use ebus_nats::NatsBackend;
use futures_util::StreamExt;

use crate::latency::{Latency, Percentiles};
use crate::nats::raw::{Acks, KEY};
use crate::nats::server::{Server, subject};
use crate::ours;
use crate::stopwatch::{Stopwatch, load};
use crate::work::PARTITIONS;

/// JetStream in between.
#[derive(Default)]
pub(crate) struct EndToEnd {
    server: Option<Server>,
    groups: usize,
}

impl EndToEnd {
    fn server(&mut self) -> Result<(&mut Server, String)> {
        self.groups += 1;
        let group = format!("latency-{}", self.groups);
        Ok((self.server.as_mut().context("not prepared")?, group))
    }
}

#[async_trait]
impl Latency for EndToEnd {
    fn name(&self) -> &'static str {
        "nats-latency"
    }

    fn work(&self) -> String {
        format!(
            "{}; {PARTITIONS} subjects of a stream on file, 230 bytes; publisher and reader have a connection each, a stream for \
             each run",
            load()
        )
    }

    fn ours_is(&self) -> String {
        format!("NatsProducer; {}", ours::SETTINGS)
    }

    fn baseline_is(&self) -> String {
        format!(
            "async-nats publish with a reply subject, key in a header; durable pull consumer, pulls of {}, AckPolicy::Explicit, an \
             acknowledgement for each message",
            Acks::Each.pull()
        )
    }

    async fn prepare(&mut self) -> Result<()> {
        self.server = Some(Server::find().await?);
        Ok(())
    }

    async fn ours(&mut self) -> Result<Percentiles> {
        let (server, group) = self.server()?;
        let backend = NatsBackend::connect(server.config()?).await?;
        let topic = server.create_topic(&backend).await?;
        let percentiles = ours::latency(&backend, backend.producer(), &topic, &group).await?;
        backend.close(Duration::from_secs(10)).await?;
        server.delete_stream(topic.as_str()).await?;
        Ok(percentiles)
    }

    async fn baseline(&mut self) -> Result<Percentiles> {
        let (server, group) = self.server()?;
        let stream = server.create_stream().await?;
        let reader = async_nats::jetstream::new(async_nats::connect(&server.url).await?);
        let config = pull::Config {
            durable_name: Some(group),
            ack_policy: AckPolicy::Explicit,
            max_ack_pending: 100_000,
            ..pull::Config::default()
        };
        let consumer = reader.create_consumer_on_stream(config, &*stream).await?;
        let pulls = consumer.stream().max_messages_per_batch(Acks::Each.pull());
        let mut messages = pulls.heartbeat(Duration::from_secs(1)).messages().await?;
        let stopwatch = Stopwatch::new();
        let seen = stopwatch.clone();
        let reading = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                let message = message?;
                seen.handled(&message.payload);
                message.ack().await.map_err(|why| anyhow::anyhow!(why))?;
            }
            anyhow::Ok(())
        });
        let client = async_nats::connect(&server.url).await?;
        let publishing = tokio::spawn(publish(client, stream.clone(), stopwatch.clone()));
        publishing.await??;
        stopwatch.done().await;
        reading.abort();
        server.delete_stream(&stream).await?;
        stopwatch.percentiles()
    }

    async fn clean_up(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.delete_streams().await;
        }
        Ok(())
    }
}

/// Publishes at the pace, and waits for all acknowledgements.
async fn publish(client: async_nats::Client, stream: String, stopwatch: Arc<Stopwatch>) -> Result<()> {
    let inbox = client.new_inbox();
    let mut acks = client.subscribe(format!("{inbox}.*")).await?;
    let subjects: Vec<_> = (0..PARTITIONS).map(|at| Subject::from(subject(&stream, at))).collect();
    let mut paced = stopwatch.paced();
    let mut sent = 0;
    while let Some(message) = paced.next().await {
        let key = message.key.as_ref().map(Key::as_bytes).unwrap_or_default();
        let mut headers = HeaderMap::new();
        headers.insert(KEY, std::str::from_utf8(key)?);
        let to = subjects[sent % subjects.len()].clone();
        client
            .publish_with_reply_and_headers(to, format!("{inbox}.{sent}"), headers, message.payload)
            .await?;
        sent += 1;
    }
    for _ in 0..sent {
        acks.next().await.context("the subscription has ended")?;
    }
    Ok(())
}
