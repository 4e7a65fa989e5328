//! What no pool can be faster than: the source of the pool's benchmarks with nothing behind it but a second task that drops.
//!
//! No routing, no lanes, no handler, no bounds: what it costs to make messages, to have another core look at them, and to
//! settle them. Its ratio is the highest that [`PoolAlone`](crate::pool::PoolAlone) can reach beside the same baseline.

use std::time::Instant;

use anyhow::{Result, ensure};
use async_trait::async_trait;
use ebus_core::{Inbound, Settlement, Source, SourceEvent, Token};
use tokio::sync::mpsc::unbounded_channel;

use crate::pool::{MESSAGES, QUEUES, baseline, source};
use crate::runner::Benchmark;

/// Messages of one read, and of one list between the two tasks: as in the pool.
const READ: usize = 2_048;
const LIST: usize = 256;
/// Lists on their way to the second task before the first waits for some to come back: what a pool may hold.
const MOST_LISTS: usize = 65_536 / LIST;

/// The source, and a task that drops.
pub(crate) struct Floor;

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
