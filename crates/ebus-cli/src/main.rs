//! The program `ebus`.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "error".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
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
