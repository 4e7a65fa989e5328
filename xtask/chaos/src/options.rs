//! What `run` is asked for.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// What to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Backend {
    Memory,
    Kafka,
    Nats,
}

impl Backend {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Kafka => "kafka",
            Self::Nats => "nats",
        }
    }
}

/// The broker, and how its groups are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args, Serialize, Deserialize)]
pub(crate) struct Ground {
    /// The backend
    #[arg(long, value_enum)]
    pub(crate) backend: Backend,
    /// Nodes of the broker: with 3, nodes are lost in turn
    #[arg(long, default_value_t = 1)]
    pub(crate) nodes: usize,
    /// Kafka: members join by the consumer protocol (KIP-848), not the classic one
    #[arg(long)]
    #[serde(default)]
    pub(crate) consumer_protocol: bool,
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} node(s)", self.backend.name(), self.nodes)?;
        if self.consumer_protocol { f.write_str(", consumer protocol") } else { Ok(()) }
    }
}

/// How members handle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Mode {
    /// Members handle in batches
    #[arg(long)]
    pub(crate) batches: bool,
    /// Members park the keys of dead letters, which the driver has redriven
    #[arg(long)]
    pub(crate) parks: bool,
    /// Members handle at most once: what is under way when one is killed does not run again
    #[arg(long, conflicts_with_all = ["batches", "parks"])]
    pub(crate) at_most_once: bool,
}

impl Mode {
    /// As options of a member.
    pub(crate) fn args(self) -> Vec<String> {
        let all =
            [(self.batches, "--batches"), (self.parks, "--parks"), (self.at_most_once, "--at-most-once")];
        all.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_owned()).collect()
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) ground: Ground,
    /// How long publishers publish and things fail; then everything is healed and finished. A fraction is fine
    #[arg(long, default_value_t = 2.0)]
    pub(crate) minutes: f64,
    /// In place of the schedule of the seed: one key is blocked for so many seconds, and then its owner is killed, the next owner
    /// within a second, and the next one leaves
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["minutes", "members", "plan"], value_parser = clap::value_parser!(u64).range(5..=120))]
    pub(crate) blocked: Option<u64>,
    /// Members of the group, more or less
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=32))]
    pub(crate) members: u32,
    /// The same seed gives the same schedule; drawn and printed when it is left out
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Events that all publishers publish together
    #[arg(long, default_value_t = 1_000, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub(crate) events_per_second: u32,
    #[command(flatten)]
    pub(crate) mode: Mode,
    /// Where to write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Where histories and logs are written; removed at the end when every promise was kept
    #[arg(long, value_name = "DIR", default_value = "target/chaos")]
    pub(crate) dir: PathBuf,
    /// Prints the schedule of the seed, and does nothing
    #[arg(long)]
    pub(crate) plan: bool,
    /// Keeps histories and logs also when every promise was kept
    #[arg(long)]
    pub(crate) keep: bool,
}

impl Options {
    /// How long things happen.
    pub(crate) fn time(&self) -> Result<Duration> {
        if !(0.25..=24.0 * 60.0).contains(&self.minutes) {
            bail!("--minutes is {}; give 0.25 to 1440", self.minutes);
        }
        if self.blocked.is_some() && self.mode != Mode::default() {
            bail!(
                "--blocked asks what runs again of single messages; leave --batches, --parks and --at-most-once out"
            );
        }
        let minutes = Duration::from_secs_f64(self.minutes * 60.0);
        if self.ground.consumer_protocol && self.ground.backend != Backend::Kafka {
            bail!("--consumer-protocol is one of Kafka's; leave it out, or give --backend kafka");
        }
        match (self.ground.backend, self.ground.nodes) {
            (Backend::Memory, 1) | (_, 1 | 3) => Ok(self.blocked.map_or(minutes, Duration::from_secs)),
            (Backend::Memory, _) => {
                bail!("--nodes is for brokers that have some; the one in memory has none")
            }
            (_, nodes) => {
                bail!("--nodes is {nodes}; give 1, or 3 for a cluster that survives the loss of one")
            }
        }
    }
}
