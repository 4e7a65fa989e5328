//! Publishing and consuming beside the raw client, interleaved, on a server of your own:
//!
//! ```text
//! nats-server -js -sd /tmp/nats &
//! cargo run --release -p ebus-nats --example nats_throughput -- nats://127.0.0.1:4222 200000 5
//! ```
//! Both sides carry the key in a header, await every acknowledgement with the same number in flight, and own key and
//! payload of what they read. The raw reader has a consumer per partition, without acknowledgements, with pulls of 500.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::ContextBuilder;
use bytes::Bytes;
use ebus_core::{
    Backend, Error, Group, Key, Message, Publish, Settlement, SourceEvent, SourceOptions, Topic, TopicSpec,
};
use ebus_nats::{NatsBackend, NatsConfig};
use futures_util::StreamExt;
use tower_service::Service;

const PARTITIONS: u32 = 8;
const KEYS: usize = 2_000;
const PAYLOAD: usize = 230;
const IN_FLIGHT: usize = 2_000;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "nats://127.0.0.1:4222".into());
    let messages: usize = arguments.next().unwrap_or_else(|| "200000".into()).parse()?;
    let rounds: usize = arguments.next().unwrap_or_else(|| "5".into()).parse()?;
    println!(
        "{messages} messages of {PAYLOAD} B, {KEYS} keys, {PARTITIONS} partitions, {IN_FLIGHT} in flight, {rounds} rounds"
    );
    let keys: Vec<Key> = (0..KEYS).map(|key| Key::from(format!("order-{key}"))).collect();
    let payload = Bytes::from(vec![b'x'; PAYLOAD]);
    let mut publish = Vec::new();
    let mut consume = Vec::new();
    let run = std::process::id();
    for round in 0..rounds {
        let backend = NatsBackend::connect(NatsConfig::from_url(&url)?.with_max_in_flight(IN_FLIGHT)).await?;
        let ours = Topic::new(format!("bench.{run}.{round}.ours"))?;
        let raw = Topic::new(format!("bench.{run}.{round}.raw"))?;
        for topic in [&ours, &raw] {
            backend.create_topic(&TopicSpec::new(topic.clone(), PARTITIONS)).await?;
        }
        // Who goes first changes.
        let (a, b) = if round % 2 == 0 {
            let a = publish_ours(&backend, &ours, messages, &keys, &payload).await?;
            (a, publish_raw(&url, &raw, messages, &keys, &payload).await?)
        } else {
            let b = publish_raw(&url, &raw, messages, &keys, &payload).await?;
            (publish_ours(&backend, &ours, messages, &keys, &payload).await?, b)
        };
        publish.push((a, b));
        // Both read what ebus has published.
        let (a, b) = if round % 2 == 0 {
            let a = consume_ours(&backend, &ours, messages).await?;
            (a, consume_raw(&url, &ours, messages).await?)
        } else {
            let b = consume_raw(&url, &ours, messages).await?;
            (consume_ours(&backend, &ours, messages).await?, b)
        };
        consume.push((a, b));
        backend.close(Duration::from_secs(5)).await?;
        let context = async_nats::jetstream::new(async_nats::connect(&url).await?);
        for topic in [&ours, &raw] {
            context.delete_stream(topic.as_str().replace('.', "=")).await?;
        }
    }
    report("publish", &mut publish);
    report("consume", &mut consume);
    Ok(())
}

fn report(name: &str, rounds: &mut [(f64, f64)]) {
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let ours = median(&mut rounds.iter().map(|round| round.0).collect());
    let raw = median(&mut rounds.iter().map(|round| round.1).collect());
    let ratio = median(&mut rounds.iter().map(|round| round.0 / round.1).collect());
    println!("{name}: ours {ours:.0}/s, raw {raw:.0}/s, ratio {ratio:.2}");
}

fn rate(messages: usize, since: Instant) -> f64 {
    messages as f64 / since.elapsed().as_secs_f64()
}

async fn publish_ours(
    backend: &NatsBackend,
    topic: &Topic,
    messages: usize,
    keys: &[Key],
    payload: &Bytes,
) -> Result<f64, Error> {
    let mut producer = backend.producer();
    let began = Instant::now();
    let (receipts, mut waiting) = tokio::sync::mpsc::unbounded_channel();
    let waiter = tokio::spawn(async move {
        let mut stored = 0;
        while let Some(receipt) = waiting.recv().await {
            let receipt: ebus_nats::NatsPublish = receipt;
            receipt.await?;
            stored += 1;
        }
        Ok::<usize, Error>(stored)
    });
    for i in 0..messages {
        let message = Message::new(payload.clone()).with_key(keys[i % keys.len()].clone());
        std::future::poll_fn(|cx| producer.poll_ready(cx)).await?;
        receipts.send(producer.call(Publish::new(topic.clone(), message))).ok();
    }
    drop(receipts);
    let stored = waiter.await.expect("does not panic")?;
    assert_eq!(stored, messages);
    Ok(rate(messages, began))
}

/// One task sends in order, another awaits the acknowledgements.
async fn publish_raw(
    url: &str,
    topic: &Topic,
    messages: usize,
    keys: &[Key],
    payload: &Bytes,
) -> Result<f64, Failure> {
    let client = async_nats::connect(url).await?;
    let context = ContextBuilder::new()
        .timeout(Duration::from_secs(5))
        .max_ack_inflight(IN_FLIGHT)
        .backpressure_on_inflight(true)
        .build(client);
    let subjects: Vec<async_nats::Subject> =
        (0..PARTITIONS).map(|p| async_nats::Subject::from(format!("{topic}.{p}"))).collect();
    let began = Instant::now();
    let (acks, mut waiting) = tokio::sync::mpsc::unbounded_channel();
    let waiter = tokio::spawn(async move {
        let mut stored = 0;
        while let Some(ack) = waiting.recv().await {
            let ack: async_nats::jetstream::context::PublishAckFuture = ack;
            ack.await?;
            stored += 1;
        }
        Ok::<usize, Failure>(stored)
    });
    for i in 0..messages {
        let key = keys[i % keys.len()].as_str().unwrap_or_default();
        let mut headers = HeaderMap::new();
        headers.insert("Key", key);
        let subject = subjects[i % keys.len() % PARTITIONS as usize].clone();
        let ack = context.publish_with_headers(subject, headers, payload.clone()).await?;
        acks.send(ack).ok();
    }
    drop(acks);
    let stored = waiter.await??;
    assert_eq!(stored, messages);
    Ok(rate(messages, began))
}

async fn consume_ours(backend: &NatsBackend, topic: &Topic, messages: usize) -> Result<f64, Error> {
    let options = SourceOptions::new(Group::new("bench")?, vec![topic.clone()]);
    let mut source = backend.source(options).await?;
    let began = Instant::now();
    let mut seen = 0;
    let mut events = Vec::new();
    let mut settled = Vec::new();
    let mut owned = VecDeque::with_capacity(1);
    while seen < messages {
        source.recv(4_096, &mut events).await?;
        for event in events.drain(..) {
            match event {
                SourceEvent::Message(inbound) => {
                    seen += 1;
                    owned.clear();
                    owned.push_back((inbound.message.key, inbound.message.payload));
                    settled.push((inbound.token, Settlement::Finished));
                }
                SourceEvent::Trouble(error) => println!("trouble: {error}"),
                _ => {}
            }
        }
        source.settle(&mut settled);
    }
    let rate = rate(messages, began);
    source.close(Duration::from_secs(5)).await?;
    Ok(rate)
}

async fn consume_raw(url: &str, topic: &Topic, messages: usize) -> Result<f64, Failure> {
    let context = async_nats::jetstream::new(async_nats::connect(url).await?);
    let mut streams = Vec::new();
    for partition in 0..PARTITIONS {
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: 1 },
            ack_policy: AckPolicy::None,
            filter_subject: format!("{topic}.{partition}"),
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = context.create_consumer_on_stream(config, topic.as_str().replace('.', "=")).await?;
        streams.push(consumer);
    }
    let began = Instant::now();
    let mut all = Vec::new();
    for consumer in &streams {
        all.push(
            consumer
                .stream()
                .max_messages_per_batch(500)
                .heartbeat(Duration::from_secs(1))
                .expires(Duration::from_secs(10))
                .messages()
                .await?,
        );
    }
    let mut all = futures_util::stream::select_all(all);
    let mut owned = None;
    for _ in 0..messages {
        let Some(message) = all.next().await else { return Err("the messages ended".into()) };
        let message = message?;
        let sequence = message.info()?.stream_sequence;
        let key =
            message.headers.as_ref().and_then(|h| h.get("Ebus")).map(|key| Bytes::from(key.to_string()));
        owned = Some((sequence, key, message.message.payload));
    }
    assert!(owned.is_some());
    Ok(rate(messages, began))
}
