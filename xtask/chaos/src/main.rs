//! Chaos: members join, leave, are killed, stopped and cut off, brokers restart and die, and an oracle judges what was recorded.
//!
//! `run` is the driver: it launches a private broker and starts this same program again as members and publishers, follows the
//! schedule that the seed gives, waits until all is handled, reads the topics back, and judges the merged histories of all
//! processes. `member` and `publisher` are those processes. On memory there are no processes: members are tasks.
//!
//! | What | Where |
//! |---|---|
//! | what happens when, from the seed | `plan/` |
//! | what a message asks of its handler | `work.rs` |
//! | one member, one publisher | `member.rs`, `publisher.rs` |
//! | what the schedule acts on | `world.rs`: `processes/` (Kafka, NATS), `memory.rs` |
//! | from the first member to the verdict | `driver.rs` |
//! | parked keys, redriven again and again | `redrive.rs` |
//! | what the broker has at the end, and the verdict | `read_back.rs`, `verdict.rs` |
//! | how long take-overs took | `times/` |
//! | a run with one blocked key | `blocked/` |

mod blocked;
mod driver;
mod judge;
mod member;
mod memory;
mod options;
mod plan;
mod processes;
mod publisher;
mod read_back;
mod redrive;
mod report;
mod setting;
mod times;
mod verdict;
mod work;
mod world;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

/// Whether ebus keeps its promises while everything fails around it.
#[derive(Debug, Parser)]
#[command(name = "ebus-chaos")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Launches everything, follows the seed, and judges
    Run(options::Options),
    /// Judges the histories of an earlier run once more
    Judge(judge::Args),
    /// A member of the group, for `run`
    #[command(hide = true)]
    Member(member::Args),
    /// A publisher, for `run`
    #[command(hide = true)]
    Publisher(publisher::Args),
}

/// A promise was broken.
const BROKEN: u8 = 1;
/// The command could not be carried out.
const FAILED: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    log();
    let kept = match Cli::parse().command {
        Command::Run(options) => driver::run(options).await,
        Command::Judge(args) => judge::run(&args),
        Command::Member(args) => member::main(args).await.map(|()| true),
        Command::Publisher(args) => publisher::main(args).await.map(|()| true),
    };
    match kept {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => BROKEN.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            FAILED.into()
        }
    }
}

/// The log goes to stderr; `RUST_LOG` says what of it.
fn log() {
    let wanted = std::env::var("RUST_LOG").ok().and_then(|wanted| wanted.parse::<Targets>().ok());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(lines)
        .with(wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::ERROR)))
        .init();
}
