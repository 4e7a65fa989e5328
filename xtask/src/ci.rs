//! `cargo xtask ci`: what can be said about the code without running its tests, and the models of its hand-offs.

use std::{process::Command, time::Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::{
    arrows,
    stream::{self, show},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these, in this order; all when none is named
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Formatting
    Fmt,
    /// Crate arrows
    Arrows,
    /// Lints without features and with all, warnings denied
    Clippy,
    /// Documentation, warnings denied
    Docs,
    /// Each crate by itself: without features, and with each one
    Alone,
    /// Hand-offs between threads, in every interleaving
    Loom,
}

/// Runs all steps also after one has failed: one run shows everything.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    let steps = if args.steps.is_empty() { Step::value_variants() } else { &args.steps };
    let mut report = Vec::new();
    for step in steps {
        let name = format!("{step:?}").to_lowercase();
        println!("==> {name}");
        let began = Instant::now();
        report.push((name, step.run(workspace)?, began.elapsed()));
    }
    println!();
    for (name, kept, took) in &report {
        let verdict = if *kept { "ok" } else { "FAILED" };
        println!("{name:<8} {verdict:<6} {:>6.1} s", took.as_secs_f64());
    }
    Ok(report.iter().all(|(_, kept, _)| *kept))
}

impl Step {
    fn run(self, workspace: &Workspace) -> Result<bool> {
        let cargo = |line: &str| command(workspace, line);
        match self {
            Self::Fmt => passes(&mut cargo("fmt --all --check")),
            Self::Arrows => Ok(arrows::run(workspace)),
            Self::Clippy => {
                let none = passes(&mut cargo(
                    "clippy --workspace --all-targets --no-default-features -- -D warnings",
                ))?;
                let features = workspace.all_features(&[]);
                let all = passes(&mut cargo(&format!(
                    "clippy --workspace --all-targets --features {features} -- -D warnings"
                )))?;
                Ok(none && all)
            }
            Self::Docs => {
                let mut doc =
                    cargo(&format!("doc --workspace --features {} --no-deps", workspace.all_features(&[])));
                passes(doc.env("RUSTDOCFLAGS", "-D warnings"))
            }
            Self::Alone => alone(workspace),
            Self::Loom => loom(workspace),
        }
    }
}

/// What a user builds who names one crate and one feature: nothing that another crate of the workspace switches on.
fn alone(workspace: &Workspace) -> Result<bool> {
    let mut kept = true;
    for package in workspace.packages() {
        let name = &package.name;
        kept &= passes(&mut command(workspace, &format!("check --quiet -p {name} --no-default-features")))?;
        for feature in Workspace::features(package) {
            let line = format!("check --quiet -p {name} --no-default-features --features {feature}");
            kept &= passes(&mut command(workspace, &line))?;
        }
    }
    Ok(kept)
}

/// Who has a module named `model`. So has `ebus-kafka`; it is left out because librdkafka would be built once more for it.
const MODELED: [&str; 3] = ["ebus-core", "ebus-pool", "ebus-memory"];

/// The modules named `model`, built for the model checker, in a directory of their own: nothing that others build is built anew.
fn loom(workspace: &Workspace) -> Result<bool> {
    let packages = MODELED.map(|name| format!("--package {name}")).join(" ");
    let mut tests = command(workspace, &format!("test {packages} --lib -- model::p"));
    tests.env("RUSTFLAGS", "--cfg ebus_loom").env("CARGO_TARGET_DIR", workspace.target().join("loom"));
    // Most of the time is that of the models.
    tests.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    let mut crates = 0;
    let status = stream::run(&mut tests, |line| {
        show(line);
        crates += usize::from(line.starts_with("running ") && line != "running 0 tests");
    })?;
    if status.success() && crates < MODELED.len() {
        println!("only {crates} of {} crates have models; have they been renamed?", MODELED.len());
    }
    Ok(status.success() && crates == MODELED.len())
}

fn command(workspace: &Workspace, line: &str) -> Command {
    println!("    cargo {line}");
    workspace.cargo(line.split(' '))
}

fn passes(command: &mut Command) -> Result<bool> {
    Ok(command.status().with_context(|| format!("could not run {command:?}"))?.success())
}
