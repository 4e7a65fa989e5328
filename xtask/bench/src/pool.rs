//! The pool alone: messages from memory, 10,000 keys, a handler that does nothing or one that waits.
//!
//! The baseline is what is usually written: a bounded queue per worker, a hash of the key to the worker, one send per message.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use ahash::RandomState;
use anyhow::{Result, ensure};
use async_trait::async_trait;
use ebus_core::{
    BatchOutcome, Delivery, Failures, Group, Handler, Key, LedgerLimits, Message, Outcome, Source,
    SourceEvent, Topic,
};
use ebus_pool::{Batch, Handlers, Pool, PoolConfig};
use tokio::sync::oneshot;

use crate::runner::Benchmark;
use crate::source::{HandsOut, Kept};
use crate::work::{KEYS, PARTITIONS, messages};

pub(crate) const MESSAGES: usize = 8_000_000;
const BATCH: usize = 256;

/// The baseline of what has no broker.
pub(crate) const QUEUES: &str =
    "a bounded queue of 1,024 per worker, 2 workers, one send per message; nothing is kept";

/// The pool without a broker, and a handler that does nothing.
pub(crate) struct PoolAlone;

/// The same with a handler that takes them in batches.
pub(crate) struct Batched;

/// The same with a handler that waits, as one that asks a database does.
pub(crate) struct Waiting {
    name: &'static str,
    messages: usize,
    wait: Duration,
    /// Runs in progress at most.
    in_flight: usize,
    /// Workers of the baseline, one message at a time each.
    workers: usize,
    baseline_messages: usize,
}

impl Waiting {
    /// Every key may run at once; the baseline has as many workers as people configure.
    pub(crate) fn all_keys() -> Self {
        Self {
            name: "pool-1ms",
            messages: 2_000_000,
            wait: Duration::from_millis(1),
            in_flight: KEYS,
            workers: 32,
            baseline_messages: 40_000,
        }
    }

    /// How long the handlers of [`bounded`](Self::bounded) wait.
    pub(crate) const WAIT: Duration = Duration::from_millis(2);

    pub(crate) fn pool_256() -> Self {
        Self::bounded("pool-256", 256, 200_000)
    }

    pub(crate) fn pool_1024() -> Self {
        Self::bounded("pool-1024", 1_024, 1_000_000)
    }

    /// As many workers as runs.
    fn bounded(name: &'static str, in_flight: usize, messages: usize) -> Self {
        Self { name, messages, wait: Self::WAIT, in_flight, workers: in_flight, baseline_messages: messages }
    }
}

#[async_trait]
impl Benchmark for Waiting {
    fn name(&self) -> &'static str {
        self.name
    }

    fn messages(&self) -> usize {
        self.messages
    }

    fn work(&self) -> String {
        format!("messages made beforehand, 10,000 keys, a handler that sleeps {:?}", self.wait)
    }

    fn ours_is(&self) -> String {
        format!(
            "Pool, {} messages, at most {} runs at once, {PARTITIONS} partitions",
            self.messages, self.in_flight
        )
    }

    fn baseline_is(&self) -> String {
        format!(
            "a bounded queue of 1,024 per worker, {} workers, {} messages; nothing is kept",
            self.workers, self.baseline_messages
        )
    }

    async fn ours(&mut self) -> Result<f64> {
        let wait = self.wait;
        let handler = tower::service_fn(move |_| async move {
            tokio::time::sleep(wait).await;
            Ok::<_, Infallible>(Outcome::Ack)
        });
        handle(self.messages, config()?.with_max_in_flight(self.in_flight), each(handler)?).await
    }

    async fn baseline(&mut self) -> Result<f64> {
        let wait = self.wait;
        queues(self.baseline_messages, self.workers, move || tokio::time::sleep(wait)).await
    }
}

#[async_trait]
impl Benchmark for PoolAlone {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn messages(&self) -> usize {
        MESSAGES
    }

    fn work(&self) -> String {
        format!("{MESSAGES} messages made beforehand, 10,000 keys, a handler that does nothing")
    }

    fn ours_is(&self) -> String {
        format!("Pool with its defaults, {PARTITIONS} partitions, a ledger for each")
    }

    fn baseline_is(&self) -> String {
        QUEUES.to_owned()
    }

    async fn ours(&mut self) -> Result<f64> {
        let handler = tower::service_fn(|_| std::future::ready(Ok::<_, Infallible>(Outcome::Ack)));
        handle(MESSAGES, config()?, each(handler)?).await
    }

    async fn baseline(&mut self) -> Result<f64> {
        baseline(MESSAGES).await
    }
}

#[async_trait]
impl Benchmark for Batched {
    fn name(&self) -> &'static str {
        "pool-batch"
    }

    fn messages(&self) -> usize {
        MESSAGES
    }

    fn work(&self) -> String {
        format!("{MESSAGES} messages made beforehand, 10,000 keys, a handler that does nothing with batches")
    }

    fn ours_is(&self) -> String {
        format!(
            "Pool with its defaults, batches of at most {BATCH}, {PARTITIONS} partitions, a ledger for each"
        )
    }

    fn baseline_is(&self) -> String {
        QUEUES.to_owned()
    }

    async fn ours(&mut self) -> Result<f64> {
        handle(MESSAGES, config()?, batched()?).await
    }

    async fn baseline(&mut self) -> Result<f64> {
        baseline(MESSAGES).await
    }
}

/// Hands out messages made beforehand, as fast as they are taken.
struct Ready {
    messages: &'static [Message],
    left: usize,
    out: Option<oneshot::Sender<()>>,
}

impl HandsOut for Ready {
    async fn hand_out(&mut self, room: usize, kept: &mut Kept, out: &mut Vec<SourceEvent>) -> usize {
        let n = room.min(self.left);
        if n == 0 {
            return std::future::pending().await;
        }
        for i in 0..n {
            let message = self.messages[(self.left - i) % KEYS].clone();
            kept.give((self.left - i) % PARTITIONS as usize, message, out);
        }
        self.left -= n;
        if self.left == 0 {
            self.out.take().map(|out| out.send(()));
        }
        n
    }
}

/// A source of `n` messages, and what is told when the last one is handed out, and when it is settled.
pub(crate) fn source(n: usize) -> (impl Source, oneshot::Receiver<()>, oneshot::Receiver<()>) {
    let (out, all_out) = oneshot::channel();
    let ready = Ready { messages: messages(), left: n, out: Some(out) };
    let (source, all_done) = crate::source::source(n, LedgerLimits::default().with_max_span(1 << 20), ready);
    (source, all_out, all_done)
}

fn config() -> Result<PoolConfig> {
    Ok(PoolConfig::new(Group::new("bench")?))
}

/// `handler`, for each message.
pub(crate) fn each(handler: impl Handler) -> Result<Handlers> {
    Ok(Handlers::new().on(Topic::new("bench")?, handler))
}

/// A handler that does nothing, with batches.
pub(crate) fn batched() -> Result<Handlers> {
    let handler = tower::service_fn(|batch: Vec<Delivery>| {
        std::hint::black_box(&batch);
        std::future::ready(Ok::<_, Infallible>(BatchOutcome::Each(Failures::new())))
    });
    Ok(Handlers::new().batch(Topic::new("bench")?, Batch::of(BATCH), handler))
}

/// Has `n` messages handled and settled; messages per second.
pub(crate) async fn handle(n: usize, config: PoolConfig, handlers: Handlers) -> Result<f64> {
    let (source, _, all_done) = source(n);
    let begun = Instant::now();
    let pool = Pool::start_with(Box::new(source), config, handlers)?;
    all_done.await?;
    let rate = n as f64 / begun.elapsed().as_secs_f64();
    let report = pool.drain(Duration::from_secs(1)).await;
    report.committed?;
    ensure!(
        report.counters.handled == n as u64,
        "{} messages were handled, not {n}",
        report.counters.handled
    );
    Ok(rate)
}

pub(crate) async fn baseline(n: usize) -> Result<f64> {
    queues(n, 2, || std::future::ready(())).await
}

/// A bounded queue per worker; each handles one message after the other.
async fn queues<F>(n: usize, workers: usize, handle: impl Fn() -> F + Clone + Send + 'static) -> Result<f64>
where
    F: Future<Output = ()> + Send,
{
    let messages = messages();
    let state = RandomState::with_seeds(1, 2, 3, 4);
    let mut senders = Vec::new();
    let mut tasks = Vec::new();
    for _ in 0..workers {
        let (tx, mut rx) = tokio::sync::mpsc::channel::<(u64, Message)>(1024);
        let handle = handle.clone();
        senders.push(tx);
        tasks.push(tokio::spawn(async move {
            let mut batch = Vec::with_capacity(256);
            let mut seen = 0u64;
            while rx.recv_many(&mut batch, 256).await > 0 {
                for (offset, message) in batch.drain(..) {
                    handle().await;
                    std::hint::black_box(&message);
                    seen = seen.wrapping_add(offset);
                }
            }
            seen
        }));
    }
    let begun = Instant::now();
    for i in 0..n {
        let message = messages[i % KEYS].clone();
        let hash = state.hash_one(message.key.as_ref().map(Key::as_bytes).unwrap_or_default());
        senders[hash as usize % workers].send((i as u64, message)).await?;
    }
    drop(senders);
    for task in tasks {
        std::hint::black_box(task.await?);
    }
    Ok(n as f64 / begun.elapsed().as_secs_f64())
}
