//! `cargo xtask mutants`: what could be broken in the code that keeps a promise, and no test would notice.
//!
//! Each survivor is a test that is missing, code that is not needed, or one for the list in `.cargo/mutants.toml`, with the reason.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::workspace::Workspace;

/// What keeps a promise, and whose tests decide. The core's own unit tests do: they are quick, and a rule that only a large test knows
/// is known too late. What the pool promises shows when driver and shards play together, as they do in its `tests`.
const KEEPERS: [(&str, &[&str], &[&str]); 2] = [
    (
        "ebus-core",
        &["batch", "inherited", "key", "lease", "ledger", "offsets", "ownership", "position", "token"],
        &["--lib"],
    ),
    (
        "ebus-pool",
        &[
            "driver/ending",
            "driver/finish",
            "endings",
            "lane",
            "parked/set",
            "retry",
            "route",
            "share",
            "shard/ahead",
            "shard/outcome",
            "shard/tenure",
            "shared",
            "slots",
        ],
        &["--lib", "--tests"],
    ),
];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these files, without their ending: `ledger ownership`
    files: Vec<String>,
    /// More of the tests than a crate's own, and more files: handed on to cargo-mutants
    #[arg(last = true)]
    more: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    let mut version = Command::new("cargo-mutants");
    version.args(["mutants", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    if !version.status().is_ok_and(|status| status.success()) {
        eprintln!("cargo-mutants is not installed: cargo install --locked cargo-mutants");
        return Ok(false);
    }
    let mut none = true;
    let mut known = false;
    for (package, keepers, tests) in KEEPERS {
        let chosen = keepers
            .iter()
            .filter(|keeper| args.files.is_empty() || args.files.iter().any(|file| file == *keeper));
        let files: Vec<String> = chosen.map(|keeper| format!("crates/{package}/src/{keeper}.rs")).collect();
        if files.is_empty() {
            continue;
        }
        known = true;
        let output = workspace.target().join("mutants").join(package);
        std::fs::create_dir_all(&output).with_context(|| format!("could not make {}", output.display()))?;
        let mut mutants = Command::new("cargo-mutants");
        mutants.current_dir(workspace.root()).args(["mutants", "--package", package, "--no-shuffle"]);
        mutants.arg("--output").arg(output);
        for file in &files {
            mutants.args(["--file", file]);
        }
        mutants.args(&args.more).arg("--").args(tests);
        none &= mutants.status().context("could not run cargo-mutants")?.success();
    }
    if !known {
        eprintln!("none of these keeps a promise by itself; known are {KEEPERS:?}");
    }
    Ok(none && known)
}
