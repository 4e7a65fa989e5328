//! One member of the group: as a process of its own, or as a task on memory.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ebus::{Backend, Batch, Bus, Consumer, Error, Group, RetryPolicy, raw};
use ebus_testkit::history::History;
use ebus_testkit::record::RecordedHandler;
use tokio::signal::unix::{SignalKind, signal};

use crate::options::Mode;
use crate::setting::{AGAIN, Names, Process, passes};
use crate::work::{handle, handle_at_most_once, handle_batch};

/// What a member is told beside.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) process: Process,
    #[command(flatten)]
    pub(crate) mode: Mode,
}

/// Messages of a batch, if members handle in batches.
pub(crate) const BATCH: usize = 20;
/// How old the first message of a batch becomes.
const BATCH_AGE: Duration = Duration::from_millis(20);
/// Keys that are parked in a partition: more than are at a time, so that nothing waits for a place.
const MOST_PARKED: usize = 300;

/// How long a hand-over waits for runs: below the session time-out, and above most of what handlers take.
const REVOKE_WITHIN: Duration = Duration::from_secs(4);
/// How long a member that leaves lets its runs end.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// How long it may take to disconnect.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Member {
    bus: Bus,
    consumer: Consumer,
}

impl Member {
    /// Joins the group on `backend`, which is recorded already. Tries again while the broker is away.
    ///
    /// # Errors
    /// What will not pass by itself.
    pub(crate) async fn join(
        backend: Arc<dyn Backend>,
        history: &History,
        name: &str,
        mode: Mode,
    ) -> Result<Self, Error> {
        let (bus, names) = (Bus::new(backend), Names::default());
        let group = Group::new(&names.group)?;
        loop {
            let (builder, topic) = (bus.consumer(&names.group), names.topic.as_str());
            let builder = if mode.batches {
                let handler = raw(handle_batch).with(history.clone());
                let handler = RecordedHandler::new(handler, history.clone(), &group, name);
                builder.batch(topic, Batch::of(BATCH).max_age(BATCH_AGE), handler)
            } else if mode.at_most_once {
                let handler = raw(handle_at_most_once).with(history.clone());
                builder.on(topic, RecordedHandler::new(handler, history.clone(), &group, name))
            } else {
                let handler = raw(handle).with(history.clone());
                builder.on(topic, RecordedHandler::new(handler, history.clone(), &group, name))
            };
            let builder = if mode.parks { builder.park_keys(MOST_PARKED) } else { builder };
            let builder = if mode.at_most_once {
                builder.at_most_once()
            } else {
                let retry = RetryPolicy::exponential().first(Duration::from_millis(20));
                builder.retry(retry).dead_letter(names.dead_letters.as_str())
            };
            match builder.revoke_within(REVOKE_WITHIN).start().await {
                Ok(consumer) => return Ok(Self { bus, consumer }),
                Err(error) if passes(&error) => {
                    eprintln!("{name}: not joined yet: {}", error.chain());
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until the consumer ends by itself, which it never should; says why it did.
    pub(crate) async fn ended(&self) -> String {
        let report = self.consumer.ended().await;
        report.committed.err().map_or_else(|| "without an error".to_owned(), |error| error.chain())
    }

    /// Leaves cleanly. That the last commit was refused is in the history, and no failure of the member.
    pub(crate) async fn leave(self) {
        let report = self.consumer.drain(DRAIN_WITHIN).await;
        if let Err(error) = report.committed {
            eprintln!("the last commit: {}", error.chain());
        }
        if let Err(error) = self.bus.close(CLOSE_WITHIN).await {
            eprintln!("close: {}", error.chain());
        }
    }
}

/// A member as a process: it leaves cleanly on SIGTERM.
pub(crate) async fn main(Args { process, mode }: Args) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let history = process.begin()?;
    let joined = async {
        let backend = process.connect(&history).await?;
        Member::join(backend, &history, &process.name, mode).await
    };
    let member = tokio::select! {
        joined = joined => joined.map_err(|error| anyhow::anyhow!("could not join: {}", error.chain()))?,
        _ = terminate.recv() => return Ok(()),
    };
    tokio::select! {
        _ = terminate.recv() => member.leave().await,
        why = member.ended() => bail!("the consumer ended by itself: {why}"),
    }
    history.flush().context("the history is not whole")
}
