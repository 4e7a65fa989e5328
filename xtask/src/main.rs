//! Developer commands: `cargo xtask --help` lists them.

mod arrows;
mod bench;
mod broken;
mod brokers;
mod chaos;
mod ci;
mod costs;
mod mutants;
mod patch;
mod servers;
mod stream;
mod summary;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Developer commands of ebus")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// All tests of all crates with all features, on servers that are installed, started and stopped here
    Test(test::Args),
    /// ebus beside the same work done without it, on servers that are started and stopped here
    Bench(bench::Args),
    /// Instructions, allocations and bytes per message, beside those that are stored
    Costs(costs::Args),
    /// Members come, go and are killed while brokers and networks fail: whether ebus keeps its promises
    Chaos(chaos::Args),
    /// A developer's long-running servers
    Brokers(brokers::Args),
    /// What is checked without running tests: format, lints, docs, arrows, each crate alone
    Ci(ci::Args),
    /// Which crate may depend on which
    Arrows,
    /// Whether deliberately broken code goes red
    Broken(broken::Args),
    /// What could be broken in the code that keeps a promise, and no test would notice
    Mutants(mutants::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Gives whether all went well; what did not has been printed.
fn run(command: Command) -> Result<bool> {
    let workspace = Workspace::load()?;
    match command {
        Command::Test(args) => test::run(&workspace, &args),
        Command::Bench(args) => bench::run(&workspace, &args),
        Command::Costs(args) => costs::run(&workspace, &args),
        Command::Chaos(args) => chaos::run(&workspace, &args),
        Command::Brokers(args) => brokers::run(&workspace, &args),
        Command::Ci(args) => ci::run(&workspace, &args),
        Command::Arrows => Ok(arrows::run(&workspace)),
        Command::Broken(args) => broken::run(&workspace, &args),
        Command::Mutants(args) => mutants::run(&workspace, &args),
    }
}
