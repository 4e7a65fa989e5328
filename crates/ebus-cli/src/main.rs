//! The program `ebus`.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

mod demo;

/// An event bus that does not lose, reorder or repeat: Kafka, NATS JetStream and in-process.
#[derive(Debug, Parser)]
#[command(name = "ebus", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Options),
}

/// Everything held.
const KEPT: u8 = 0;
/// A promise was broken.
const BROKEN: u8 = 1;
/// The command could not be carried out; 2 is what clap gives for bad arguments too.
const FAILED: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    log();
    let Command::Demo(options) = Cli::parse().command;
    match demo::run(options).await {
        Ok(true) => KEPT.into(),
        Ok(false) => BROKEN.into(),
        Err(error) => {
            eprintln!("error: {}", error.chain());
            FAILED.into()
        }
    }
}

/// The log goes to stderr; `RUST_LOG` says what of it, such as `info` or `warn,ebus_kafka=debug`.
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
