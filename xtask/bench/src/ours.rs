//! Our side, the same for every broker: publishing with every receipt awaited; a source, a pool, a handler that does
//! nothing, committed positions.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ebus_core::{
    Backend, Delivery, Error, Group, Message, Outcome, Publish, PublishService, SourceOptions, Topic,
};
use ebus_pool::{Handlers, Pool, PoolConfig};

use crate::latency::Percentiles;
use crate::stopwatch::Stopwatch;
use crate::work::Countdown;

/// Publishes `n` messages and waits for their receipts, with up to `window` of them on their way: the bound of the
/// connection. Messages per second.
pub(crate) async fn publish<S>(
    mut producer: S,
    topic: Topic,
    messages: &'static [Message],
    n: usize,
    window: usize,
) -> Result<f64>
where
    S: PublishService<Error = Error>,
{
    // On a worker of the runtime, not on the thread that waits for all.
    let publishing = tokio::spawn(async move {
        let begun = Instant::now();
        let mut receipts = VecDeque::with_capacity(window);
        for i in 0..n {
            if receipts.len() == window
                && let Some(receipt) = receipts.pop_front()
            {
                receipt.await?;
            }
            poll_fn(|cx| producer.poll_ready(cx)).await?;
            receipts
                .push_back(producer.call(Publish::new(topic.clone(), messages[i % messages.len()].clone())));
        }
        for receipt in receipts {
            receipt.await?;
        }
        Ok(n as f64 / begun.elapsed().as_secs_f64())
    });
    publishing.await?
}

/// What [`consume`] does with which settings.
pub(crate) const SETTINGS: &str = "Backend::source and Pool with their defaults: positions committed every 200 ms, budget 65,536 messages and 64 MiB";

/// Reads a topic of `n` messages in a new group, and sees that each was handled once and all positions were committed.
/// Messages per second, from the first to the last.
pub(crate) async fn consume(backend: &dyn Backend, topic: &Topic, group: &str, n: usize) -> Result<f64> {
    let group = Group::new(group)?;
    let seen = Arc::new((OnceLock::new(), Countdown::new(n)));
    let (first, countdown) = &*seen;
    let noted = seen.clone();
    let handler = tower::service_fn(move |_| {
        noted.0.get_or_init(Instant::now);
        noted.1.one();
        std::future::ready(Ok::<_, Infallible>(Outcome::Ack))
    });
    let source = backend.source(SourceOptions::new(group.clone(), vec![topic.clone()])).await?;
    let handlers = Handlers::new().on(topic.clone(), handler);
    let pool = Pool::start_with(source, PoolConfig::new(group.clone()), handlers)?;
    let report = tokio::select! {
        () = countdown.done() => None,
        report = pool.ended() => Some(report),
    };
    if let Some(report) = report {
        report.committed?;
        bail!("the pool ended before all was handled");
    }
    let rate = n as f64 / first.get().context("nothing was handled")?.elapsed().as_secs_f64();
    let report = pool.drain(Duration::from_secs(30)).await;
    report.committed?;
    let handled = report.counters.handled;
    ensure!(handled == n as u64, "{handled} messages were handled, not {n}");
    let ends = backend.describe_topic(topic).await?.partitions;
    for committed in backend.committed(&group, topic).await? {
        let partition = committed.partition;
        let end = ends[partition as usize].end;
        let position = committed.position.map(|position| position.watermark);
        ensure!(position == Some(end), "partition {partition}: {position:?} is committed, not {end:?}");
    }
    Ok(rate)
}

/// Publishes to an empty topic at the pace that is measured, reads it in a new group, and tells what the messages took from the one to
/// the other.
pub(crate) async fn latency<S>(
    backend: &dyn Backend,
    mut producer: S,
    topic: &Topic,
    group: &str,
) -> Result<Percentiles>
where
    S: PublishService<Error = Error>,
{
    let group = Group::new(group)?;
    let stopwatch = Stopwatch::new();
    let seen = stopwatch.clone();
    let handler = tower::service_fn(move |delivery: Delivery| {
        seen.handled(delivery.payload());
        std::future::ready(Ok::<_, Infallible>(Outcome::Ack))
    });
    let source = backend.source(SourceOptions::new(group.clone(), vec![topic.clone()])).await?;
    let pool = Pool::start_with(source, PoolConfig::new(group), Handlers::new().on(topic.clone(), handler))?;
    let (to, mut paced) = (topic.clone(), stopwatch.paced());
    let publishing = tokio::spawn(async move {
        let mut receipts = Vec::new();
        while let Some(message) = paced.next().await {
            poll_fn(|cx| producer.poll_ready(cx)).await?;
            receipts.push(producer.call(Publish::new(to.clone(), message)));
        }
        for receipt in receipts {
            receipt.await?;
        }
        anyhow::Ok(())
    });
    publishing.await??;
    stopwatch.done().await;
    pool.drain(Duration::from_secs(30)).await.committed?;
    stopwatch.percentiles()
}
