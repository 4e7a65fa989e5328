//! `cargo xtask chaos`: members come, go and are killed while brokers and networks fail, and an oracle judges.

use std::{env, ffi::OsString, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use ebus_testkit::brokers::{Home, Need};

use crate::{servers::provision, workspace::Workspace};

#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Builds without optimisation
    #[arg(long)]
    dev: bool,
    /// For the program itself: `--backend memory|kafka|nats --minutes M --members N --seed S [--events-per-second R]
    /// [--nodes 1|3] [--batches] [--parks] [--at-most-once] [--json FILE]`, or `--backend B --blocked SECONDS`, or
    /// `judge DIR [--show N]`, or `--help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    let program = build(workspace, args.dev)?;
    let home = workspace.brokers();
    let mut chaos = Command::new(&program);
    let names = |word: &str| args.args.iter().any(|arg| arg.to_string_lossy().contains(word));
    for need in Need::ALL {
        if names(need.name()) {
            provision(&home, need)?;
        }
    }
    if args.args.first().is_none_or(|first| first != "judge") {
        chaos.arg("run");
        if !names("--dir") {
            chaos.arg("--dir").arg(workspace.target().join("chaos"));
        }
    }
    chaos.args(&args.args).env(Home::VARIABLE, home.path());
    let status = chaos.status().with_context(|| format!("could not run {}", program.display()))?;
    Ok(status.success())
}

fn build(workspace: &Workspace, dev: bool) -> Result<PathBuf> {
    let mut cargo = workspace.cargo(["build", "--package", "ebus-chaos"]);
    if !dev {
        cargo.arg("--release");
    }
    if !cargo.status().context("could not run cargo")?.success() {
        bail!("the chaos program does not build; see above");
    }
    let profile = if dev { "debug" } else { "release" };
    Ok(workspace.target().join(profile).join(format!("ebus-chaos{}", env::consts::EXE_SUFFIX)))
}
