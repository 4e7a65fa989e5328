//! The raw side: async-nats as well as we can write it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::RandomState;
use anyhow::{Context, Result, bail, ensure};
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::{Client, HeaderMap, Subject};
use bytes::Bytes;
use ebus_core::{Key, Message};
use futures_util::StreamExt;
use tokio::sync::Semaphore;

use crate::nats::server::{Server, subject};
use crate::work::PARTITIONS;

/// The header with the key.
pub(crate) const KEY: &str = "Key";
/// Messages that one acknowledgement of a floor covers.
pub(crate) const FLOOR: usize = 500;

/// How messages that were read are acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acks {
    /// Each by itself.
    Each,
    /// One for it and all before it, now and then: a crash brings all after that back.
    Floor,
    /// None: nothing is kept of what was read. What async-nats reads at most.
    None,
}

impl Acks {
    /// Messages of one pull.
    pub(crate) fn pull(self) -> usize {
        match self {
            Self::Each | Self::Floor => 2_000,
            Self::None => 500,
        }
    }
}

/// Whether a message that is published has an id, by which the server knows it again: what ours does against bytes of a broken
/// connection that come late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    None,
    Each,
}

/// Publishes `n` messages and waits for their acknowledgements, with up to `window` of them on their way.
///
/// One subscription for all acknowledgements and one task that takes them: 131,000-212,000/s, where `jetstream::Context`, with
/// a future for each, gave 95,000-187,000 (interleaved, windows of 1,000 to 4,000 alike).
pub(crate) async fn publish(
    client: Client,
    stream: String,
    messages: &'static [Message],
    n: usize,
    window: usize,
    ids: Ids,
) -> Result<f64> {
    let inbox = client.new_inbox();
    // As good as unique, because an inbox is.
    let publisher = inbox.rsplit('.').next().unwrap_or_default().to_owned();
    let mut acks = client.subscribe(format!("{inbox}.*")).await?;
    let subjects: Vec<_> =
        (0..PARTITIONS).map(|partition| Subject::from(subject(&stream, partition))).collect();
    let hash = RandomState::with_seeds(1, 2, 3, 4);
    let places = Arc::new(Semaphore::new(window));
    let begun = Instant::now();
    let taking = {
        let places = places.clone();
        tokio::spawn(async move {
            for _ in 0..n {
                let ack = acks.next().await.context("the subscription has ended")?;
                // As much as a user needs to know which message was stored and where.
                let _number: u64 = ack.subject.rsplit('.').next().unwrap_or_default().parse()?;
                let read: serde_json::Result<Ack> = serde_json::from_slice(&ack.payload);
                match read {
                    Ok(Ack { error: None, seq: 1.. }) => places.add_permits(1),
                    other => bail!("a message was not stored: {other:?} {:?}", ack.status),
                }
            }
            Ok(n as f64 / begun.elapsed().as_secs_f64())
        })
    };
    let sending = tokio::spawn(async move {
        for i in 0..n {
            let message = &messages[i % messages.len()];
            let key = message.key.as_ref().map(Key::as_bytes).unwrap_or_default();
            let partition = hash.hash_one(key) as usize % subjects.len();
            let mut headers = HeaderMap::new();
            headers.insert(KEY, std::str::from_utf8(key)?);
            if ids == Ids::Each {
                headers.insert(NATS_MESSAGE_ID, format!("{publisher}{i}"));
            }
            let reply = format!("{inbox}.{i}");
            places.acquire().await?.forget();
            let payload = message.payload.clone();
            client
                .publish_with_reply_and_headers(subjects[partition].clone(), reply, headers, payload)
                .await?;
        }
        anyhow::Ok(())
    });
    // If taking fails, sending waits for a place for ever.
    let rate = taking.await?;
    if rate.is_err() {
        sending.abort();
    }
    let rate = rate?;
    sending.await??;
    Ok(rate)
}

#[derive(Debug, serde::Deserialize)]
struct Ack {
    #[serde(default)]
    seq: u64,
    error: Option<serde_json::Value>,
}

/// Reads a stream of `n` messages by one durable pull consumer, owning key and payload, and acknowledges.
///
/// One consumer: with one for each subject it was slower by a fifth.
pub(crate) async fn consume(
    server: &Server,
    stream: &str,
    name: String,
    n: usize,
    acks: Acks,
) -> Result<f64> {
    let config = pull::Config {
        durable_name: Some(name),
        ack_policy: if acks == Acks::Each { AckPolicy::Explicit } else { AckPolicy::All },
        max_ack_pending: 100_000,
        ..pull::Config::default()
    };
    // A connection of its own, as ours has.
    let client = async_nats::connect(&server.url).await?;
    let jetstream = async_nats::jetstream::new(client.clone());
    let mut consumer = jetstream.create_consumer_on_stream(config, stream).await?;
    let mut messages = consumer
        .stream()
        .max_messages_per_batch(acks.pull())
        .heartbeat(Duration::from_secs(1))
        .messages()
        .await?;
    let reading = tokio::spawn(async move {
        let mut first = None;
        for seen in 1..=n {
            let message = messages.next().await.context("the messages have ended")??;
            first.get_or_insert_with(Instant::now);
            own(&message)?;
            if acks == Acks::Each || seen % FLOOR == 0 || seen == n {
                message.ack().await.map_err(|why| anyhow::anyhow!(why))?;
            }
        }
        anyhow::Ok(first.map_or(0.0, |first: Instant| n as f64 / first.elapsed().as_secs_f64()))
    });
    let rate = reading.await??;
    client.flush().await?;
    let asked = Instant::now();
    loop {
        let info = consumer.info().await?;
        let (unread, open) = (info.num_pending, info.num_ack_pending);
        if unread == 0 && open == 0 {
            break;
        }
        ensure!(
            asked.elapsed() < Duration::from_secs(10),
            "{unread} messages unread, {open} not acknowledged"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(rate)
}

/// Key and payload, as a handler gets them.
fn own(message: &async_nats::Message) -> Result<()> {
    let key =
        message.headers.as_ref().and_then(|headers| headers.get(KEY)).context("a message has no key")?;
    std::hint::black_box((Bytes::copy_from_slice(key.as_str().as_bytes()), message.payload.clone()));
    Ok(())
}

/// Reads a stream of `n` messages by a consumer for each subject, owning key and payload, without acknowledgements.
///
/// One for each subject: one for all was slower by a tenth.
pub(crate) async fn consume_bare(server: &Server, stream: &str, n: usize) -> Result<f64> {
    let client = async_nats::connect(&server.url).await?;
    let jetstream = async_nats::jetstream::new(client);
    let mut all = Vec::new();
    for partition in 0..PARTITIONS {
        let config = pull::Config {
            ack_policy: AckPolicy::None,
            filter_subject: subject(stream, partition),
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = jetstream.create_consumer_on_stream(config, stream).await?;
        let pulls = consumer.stream().max_messages_per_batch(Acks::None.pull());
        all.push(pulls.heartbeat(Duration::from_secs(1)).messages().await?);
    }
    let mut messages = futures_util::stream::select_all(all);
    let reading = tokio::spawn(async move {
        let mut first = None;
        for _ in 0..n {
            let message = messages.next().await.context("the messages have ended")??;
            first.get_or_insert_with(Instant::now);
            own(&message)?;
        }
        anyhow::Ok(first.map_or(0.0, |first: Instant| n as f64 / first.elapsed().as_secs_f64()))
    });
    reading.await?
}
