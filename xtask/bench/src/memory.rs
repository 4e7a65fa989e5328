//! The in-process broker end to end: publish, consume with key lanes and committed positions, a handler that does nothing.
//!
//! The baseline keeps nothing: a bounded channel per worker, one send per message.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use async_trait::async_trait;
use ebus_core::{Backend, Group, Outcome, Publish, SourceOptions, Topic, TopicSpec};
use ebus_memory::{MemoryBackend, MemoryConfig};
use ebus_pool::{Handlers, Pool, PoolConfig};
use tower::Service;

use crate::runner::Benchmark;
use crate::work::{Countdown, PARTITIONS, messages};

const MESSAGES: usize = 3_000_000;

/// Publish, consume and commit in one process.
pub(crate) struct EndToEnd;

#[async_trait]
impl Benchmark for EndToEnd {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn messages(&self) -> usize {
        MESSAGES
    }

    fn work(&self) -> String {
        format!(
            "{MESSAGES} messages made beforehand, from publish to handler, 10,000 keys, 230 bytes, a handler that does nothing"
        )
    }

    fn ours_is(&self) -> String {
        format!(
            "MemoryBackend and Pool with their defaults, {PARTITIONS} partitions, all published and committed"
        )
    }

    fn baseline_is(&self) -> String {
        crate::pool::QUEUES.to_owned()
    }

    async fn ours(&mut self) -> Result<f64> {
        end_to_end(MESSAGES, PoolConfig::new(Group::new("bench")?)).await
    }

    async fn baseline(&mut self) -> Result<f64> {
        crate::pool::baseline(MESSAGES).await
    }
}

/// A backend with a topic.
async fn backend(topic: &Topic) -> Result<MemoryBackend> {
    let backend = MemoryBackend::new(MemoryConfig::default())?;
    backend.create_topic(&TopicSpec::new(topic.clone(), PARTITIONS)).await?;
    Ok(backend)
}

/// Publishes `n` messages.
pub(crate) async fn publish(n: usize) -> Result<()> {
    let topic = Topic::new("bench")?;
    publish_to(&backend(&topic).await?, topic, n).await
}

async fn publish_to(backend: &MemoryBackend, topic: Topic, n: usize) -> Result<()> {
    let messages = messages();
    let mut producer = backend.producer();
    for i in 0..n {
        poll_fn(|cx| producer.poll_ready(cx)).await?;
        // The receipt is not asked for; memory stores at the call.
        drop(producer.call(Publish::new(topic.clone(), messages[i % messages.len()].clone())));
    }
    Ok(())
}

/// Has `n` messages published, handled and committed; messages per second.
pub(crate) async fn end_to_end(n: usize, config: PoolConfig) -> Result<f64> {
    let topic = Topic::new("bench")?;
    let backend = backend(&topic).await?;
    let group = Group::new("bench")?;
    let countdown = Arc::new(Countdown::new(n));
    let seen = countdown.clone();
    let handler = tower::service_fn(move |_| {
        seen.one();
        std::future::ready(Ok::<_, Infallible>(Outcome::Ack))
    });
    let source = backend.source(SourceOptions::new(group, vec![topic.clone()])).await?;
    let pool = Pool::start_with(source, config, Handlers::new().on(topic.clone(), handler))?;
    let begun = Instant::now();
    let publisher = backend.clone();
    let publishing = tokio::spawn(async move { publish_to(&publisher, topic, n).await });
    countdown.done().await;
    let rate = n as f64 / begun.elapsed().as_secs_f64();
    publishing.await??;
    let report = pool.drain(Duration::from_secs(10)).await;
    report.committed?;
    let handled = report.counters.handled;
    ensure!(handled == n as u64, "{handled} messages were handled, not {n}");
    backend.close(Duration::from_secs(1)).await?;
    Ok(rate)
}
