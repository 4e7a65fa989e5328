//! What all processes of a run are told, and what a new one does first.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use ebus::{Backend, Error, ErrorKind};
use ebus_testkit::history::History;
use ebus_testkit::record::Recorded;
use nix::sys::signal::Signal;

/// The names of a run.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) topic: String,
    pub(crate) dead_letters: String,
    pub(crate) group: String,
}

impl Default for Names {
    fn default() -> Self {
        Self { topic: "events".into(), dead_letters: "events.dlq".into(), group: "handlers".into() }
    }
}

/// Partitions of the topic.
pub(crate) const PARTITIONS: u32 = 12;

/// What a process is told on its command line.
#[derive(Debug, Clone, Args)]
pub(crate) struct Process {
    /// Its name in the history; no other process has it
    #[arg(long)]
    pub(crate) name: String,
    /// The broker
    #[arg(long)]
    pub(crate) url: String,
    /// Where its history goes
    #[arg(long)]
    pub(crate) history: PathBuf,
    /// The process that started it, and without which it ends
    #[arg(long)]
    pub(crate) driver: i32,
}

impl Process {
    /// Binds this process to its driver and opens its history.
    pub(crate) fn begin(&self) -> Result<History> {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("could not bind to the driver")?;
        // It may have died before.
        if nix::unistd::getppid().as_raw() != self.driver {
            bail!("the driver is gone");
        }
        History::durable(&self.history)
            .with_context(|| format!("could not create the history {}", self.history.display()))
    }

    /// Connects, and goes on trying while the broker is away.
    ///
    /// # Errors
    /// What will not pass by itself.
    pub(crate) async fn connect(&self, history: &History) -> Result<Arc<dyn Backend>, Error> {
        loop {
            match ebus::connect(&self.url).await {
                Ok(backend) => return Ok(Arc::new(Recorded::new(backend, history.clone(), &self.name))),
                Err(error) if passes(&error) => {
                    eprintln!("{}: not connected yet: {}", self.name, error.chain());
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// How long after a failure something is tried again.
pub(crate) const AGAIN: Duration = Duration::from_millis(250);

/// Whether a failure may be over soon.
pub(crate) fn passes(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Overloaded)
}
