//! What no pool can be faster than, beside the same baselines as the pool.
//!
//! - [`Floor`]: its source with nothing behind it but a second task that drops. No routing, no lanes, no handler, no bounds: what it
//!   costs to make messages, to have another core look at them, and to settle them.
//! - [`Timers`]: as many tasks as runs, which sleep as the handler does. No messages at all: what tokio's timers, which end in whole
//!   milliseconds, leave of the time.

use std::time::Instant;

use anyhow::{Result, ensure};
use async_trait::async_trait;
use ebus_core::{Inbound, Settlement, Source, SourceEvent, Token};
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::JoinSet;

use crate::pool::{MESSAGES, QUEUES, Waiting, baseline, source};
use crate::runner::Benchmark;

/// Messages of one read, and of one list between the two tasks: as in the pool.
const READ: usize = 2_048;
const LIST: usize = 256;
/// Lists on their way to the second task before the first waits for some to come back: what a pool may hold.
const MOST_LISTS: usize = 65_536 / LIST;

/// The source, and a task that drops.
pub(crate) struct Floor;

/// As many tasks as runs of `pool-1024`, which sleep.
pub(crate) struct Timers;

/// Tasks, and how often each of them sleeps: as many sleeps together as [`Waiting`] has messages.
const TASKS: usize = 1_024;
const SLEEPS: usize = 1_000;

#[async_trait]
impl Benchmark for Timers {
    fn name(&self) -> &'static str {
        "pool-1024-floor"
    }

    fn messages(&self) -> usize {
        TASKS * SLEEPS
    }

    fn work(&self) -> String {
        format!("{} sleeps of {:?}", self.messages(), Waiting::WAIT)
    }

    fn ours_is(&self) -> String {
        format!("no pool, no messages: {TASKS} tasks, each sleeps {SLEEPS} times")
    }

    fn baseline_is(&self) -> String {
        Waiting::pool_1024().baseline_is()
    }

    async fn ours(&mut self) -> Result<f64> {
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..TASKS {
            tasks.spawn(async {
                for _ in 0..SLEEPS {
                    tokio::time::sleep(Waiting::WAIT).await;
                }
            });
        }
        tasks.join_all().await;
        Ok(self.messages() as f64 / begun.elapsed().as_secs_f64())
    }

    async fn baseline(&mut self) -> Result<f64> {
        Waiting::pool_1024().baseline().await
    }
}

#[async_trait]
impl Benchmark for Floor {
    fn name(&self) -> &'static str {
        "pool-floor"
    }

    fn messages(&self) -> usize {
        MESSAGES
    }

    fn work(&self) -> String {
        format!("{MESSAGES} messages made beforehand, 10,000 keys, no handler")
    }

    fn ours_is(&self) -> String {
        format!(
            "no pool: one task reads {READ} at a time and settles, another one drops them, {LIST} at a time; a ledger for each partition"
        )
    }

    fn baseline_is(&self) -> String {
        QUEUES.to_owned()
    }

    async fn ours(&mut self) -> Result<f64> {
        floor(MESSAGES).await
    }

    async fn baseline(&mut self) -> Result<f64> {
        baseline(MESSAGES).await
    }
}

async fn floor(n: usize) -> Result<f64> {
    let begun = Instant::now();
    let settled = tokio::spawn(read_and_settle(n)).await??;
    ensure!(settled == n, "{settled} messages were settled, not {n}");
    Ok(n as f64 / begun.elapsed().as_secs_f64())
}

async fn read_and_settle(n: usize) -> Result<usize> {
    let (mut source, _read, _done) = source(n);
    let (to_dropper, mut from_reader) = unbounded_channel::<Vec<Inbound>>();
    let (to_reader, mut from_dropper) = unbounded_channel::<(Vec<(Token, Settlement)>, Vec<Inbound>)>();
    tokio::spawn(async move {
        while let Some(mut list) = from_reader.recv().await {
            let tokens = list.drain(..).map(|Inbound { token, message }| {
                std::hint::black_box(&message);
                (token, Settlement::Finished)
            });
            let tokens = tokens.collect();
            if to_reader.send((tokens, list)).is_err() {
                return;
            }
        }
    });
    let (mut events, mut spares) = (Vec::new(), Vec::new());
    let (mut read, mut settled, mut out) = (0, 0, 0);
    while settled < n {
        while let Ok((mut tokens, emptied)) = from_dropper.try_recv() {
            settled += tokens.len();
            out -= 1;
            source.settle(&mut tokens);
            spares.push(emptied);
        }
        if read < n && out < MOST_LISTS {
            source.recv(READ, &mut events).await?;
            let mut messages = events.drain(..).filter_map(|event| match event {
                SourceEvent::Message(inbound) => Some(inbound),
                _ => None,
            });
            loop {
                let mut list = spares.pop().unwrap_or_else(|| Vec::with_capacity(LIST));
                list.extend(messages.by_ref().take(LIST));
                if list.is_empty() {
                    break;
                }
                read += list.len();
                out += 1;
                to_dropper.send(list)?;
            }
            // As the pool does between two reads: others of this thread have a turn.
            tokio::task::yield_now().await;
        } else if settled < n {
            let Some((mut tokens, emptied)) = from_dropper.recv().await else { break };
            settled += tokens.len();
            out -= 1;
            source.settle(&mut tokens);
            spares.push(emptied);
        }
    }
    Ok(settled)
}
