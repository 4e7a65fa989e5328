//! One publisher: owns its keys, publishes their versions in order at an even rate, and goes on after every failure.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use ebus::{Backend, Bus, Message, Publish, Topic};
use ebus_testkit::history::History;
use ebus_testkit::record::VERSION_HEADER;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::setting::{Names, Process};
use crate::work::Work;

/// Keys of each publisher.
const KEYS: u32 = 150;
/// How often it looks at what is due.
const TICK: Duration = Duration::from_millis(10);
/// What was missed for longer than this, while the broker did not take anything, is not made up for.
const MOST_BEHIND: Duration = Duration::from_secs(1);
/// How long after the last call the last answer may take: more than any time-out of a publish.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// What a publisher is told beside.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) process: Process,
    #[command(flatten)]
    pub(crate) load: Load,
}

/// What one publisher publishes.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Load {
    /// Which publisher it is, from 1
    #[arg(long)]
    pub(crate) number: u32,
    /// Decides keys and work
    #[arg(long)]
    pub(crate) seed: u64,
    /// Events a second
    #[arg(long)]
    pub(crate) rate: u32,
    /// How long a key is blocked that is, in milliseconds
    #[arg(long)]
    pub(crate) block_ms: u64,
}

/// Publishes until `stop` says so; returns when everything has its answer.
///
/// # Errors
/// When answers are missing at the end.
pub(crate) async fn publish(
    backend: Arc<dyn Backend>,
    clock: &History,
    load: Load,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let topic = Topic::new(&Names::default().topic)?;
    let bus = Bus::new(backend);
    let mut publisher = bus.publisher();
    let mut random = fastrand::Rng::with_seed(load.seed ^ (u64::from(load.number) << 32));
    let mut versions = vec![0_u64; KEYS as usize];
    let mut answers = JoinSet::new();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut since, mut published) = (Instant::now(), 0.0);
    'publishing: loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
        let due = since.elapsed().as_secs_f64() * f64::from(load.rate);
        if due - published > MOST_BEHIND.as_secs_f64() * f64::from(load.rate) {
            (since, published) = (Instant::now(), 0.0);
            continue;
        }
        while published < due {
            published += 1.0;
            let key = random.u32(..KEYS);
            versions[key as usize] += 1;
            let work = Work::draw(&mut random, Duration::from_millis(load.block_ms));
            let message = Message::new(work.payload(clock.now_ns()))
                .with_key(format!("p{}-{key}", load.number))
                .with_header(VERSION_HEADER, versions[key as usize].to_string());
            let enqueued = tokio::select! {
                enqueued = publisher.enqueue(Publish::new(topic.clone(), message)) => enqueued,
                _ = stop.wait_for(|stop| *stop) => break 'publishing,
            };
            match enqueued {
                // Its answer is recorded; a failure is no reason to stop.
                Ok(answer) => drop(answers.spawn(async move { drop(answer.await) })),
                Err(error) => eprintln!("publisher-{}: {}", load.number, error.chain()),
            }
        }
        while answers.try_join_next().is_some() {}
    }
    let all = async { while answers.join_next().await.is_some() {} };
    let answered = tokio::time::timeout(ANSWERS_WITHIN, all).await;
    bus.close(ANSWERS_WITHIN).await.map_err(|error| anyhow::anyhow!("close: {}", error.chain()))?;
    answered.with_context(|| format!("publishes had no answer within {ANSWERS_WITHIN:?}"))
}

/// A publisher as a process: it stops on SIGTERM.
pub(crate) async fn main(args: Args) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let history = args.process.begin()?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        terminate.recv().await;
        stop.send_replace(true);
    });
    let backend = args.process.connect(&history).await;
    let backend = backend.map_err(|error| anyhow::anyhow!("could not connect: {}", error.chain()))?;
    publish(backend, &history, args.load, stopped).await?;
    history.flush().context("the history is not whole")
}
