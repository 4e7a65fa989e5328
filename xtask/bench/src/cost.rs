//! One run of a path without a broker, on one thread, for who counts its instructions and allocations from outside.
//!
//! `cargo xtask costs` runs each of them with two numbers of messages under valgrind: what the larger one costs more, divided
//! by what it has more, is the cost of a message without what starting costs.

use std::convert::Infallible;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use ebus_core::{Group, Outcome, Topic};
use ebus_pool::{Handlers, Pool, PoolConfig};
use tower::service_fn;

use crate::{memory, pool};

/// What can be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cost {
    /// Source to settle, with a handler that does nothing
    Pool,
    /// The same in batches
    PoolBatch,
    /// The same, each by itself, with a handler that gives way once, as one that waits does
    PoolWaits,
    /// Messages that are read and wait in their lanes, behind one run that does not end
    PoolHeld,
    /// Published to memory
    Publish,
    /// Published to memory, read, handled and committed
    Memory,
}

impl Cost {
    /// Does the work once.
    ///
    /// # Errors
    /// When a message was lost on the way.
    pub(crate) fn run(self, messages: usize) -> Result<()> {
        // One thread and one shard: which of several does what would differ from run to run.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            match self {
                Self::Pool => {
                    let handler = service_fn(|_| std::future::ready(Ok::<_, Infallible>(Outcome::Ack)));
                    pool::handle(messages, config()?, pool::each(handler)?).await?;
                }
                Self::PoolBatch => {
                    pool::handle(messages, config()?, pool::batched()?).await?;
                }
                Self::PoolWaits => {
                    let handler = service_fn(|_| async {
                        tokio::task::yield_now().await;
                        Ok::<_, Infallible>(Outcome::Ack)
                    });
                    pool::handle(messages, config()?, pool::each(handler)?).await?;
                }
                Self::PoolHeld => held(messages).await?,
                Self::Publish => memory::publish(messages).await?,
                Self::Memory => {
                    memory::end_to_end(messages, config()?).await?;
                }
            }
            Ok(())
        })
    }
}

fn config() -> Result<PoolConfig> {
    Ok(PoolConfig::new(Group::new("bench")?).with_shards(1))
}

/// Fills a pool, and sees that it holds them all.
async fn held(messages: usize) -> Result<()> {
    let topic = Topic::new("bench")?;
    let handler = service_fn(|_| std::future::pending::<Result<Outcome, Infallible>>());
    let config =
        config()?.with_max_in_flight(1).with_budget_messages(2 * messages).with_budget_bytes(usize::MAX);
    let (source, all_out, _done) = pool::source(messages);
    let pool = Pool::start_with(Box::new(source), config, Handlers::new().on(topic, handler))?;
    all_out.await?;
    // Asked once: it looks at every lane.
    let held = pool.state().await.held_messages;
    ensure!(held == messages, "{held} messages are held, not {messages}");
    // Neither drained nor cancelled: how much of that is done before the end differs from run to run.
    std::mem::forget(pool);
    Ok(())
}
