//! `cargo xtask bench`: ebus beside the same work done without it, on servers that are started and stopped here.

use std::{
    env,
    path::{Path, PathBuf, absolute},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use ebus_testkit::brokers::{Home, Need};

use crate::{servers::Servers, workspace::Workspace};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these, by name or by what stands before the first dash (pool, memory, kafka, nats), comma-separated
    #[arg(long, value_name = "NAMES")]
    only: Option<String>,
    /// How often each side runs; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Where to write the results as a JSON array
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    let program = build(workspace)?;
    let only = args.only.iter().flat_map(|names| ["--only", names]);
    let Some(names) = names(&program, only.clone())? else { return Ok(false) };

    let servers = start(&workspace.brokers(), &names)?;
    let mut bench = Command::new(&program);
    bench.args(only).args(["--rounds", &args.rounds.to_string()]);
    if let Some(file) = &args.json {
        bench.arg("--json").arg(absolute(file)?);
    }
    servers.export(&mut bench);
    let status = bench.status().with_context(|| format!("could not run {}", program.display()))?;
    drop(servers);
    Ok(status.success())
}

/// Builds the benchmarks before any server starts.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = workspace.cargo(["build", "--release", "--package", "ebus-bench"]);
    if !cargo.status().context("could not run cargo")?.success() {
        bail!("the benchmarks do not build; see above");
    }
    Ok(workspace.target().join("release").join(format!("ebus-bench{}", env::consts::EXE_SUFFIX)))
}

/// What would run; `None` when the benchmarks refuse that and have said why.
fn names<'a>(program: &Path, only: impl Iterator<Item = &'a str>) -> Result<Option<Vec<String>>> {
    let mut list = Command::new(program);
    let output = list.args(only).arg("--list").stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("could not run {}", program.display()))?;
    if !output.status.success() {
        return Ok(None);
    }
    Ok(Some(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect()))
}

/// A server for each broker that a benchmark names, unless the user has one.
fn start(home: &Home, names: &[String]) -> Result<Servers> {
    let mut needs = Vec::new();
    for need in Need::ALL {
        if !names.iter().any(|name| name.split('-').next() == Some(need.name())) {
            continue;
        }
        match env::var(need.url_variable()) {
            Ok(url) if !url.is_empty() => {
                println!("{:<6} {url} ({} is set)", need.name(), need.url_variable())
            }
            _ => needs.push(need),
        }
    }
    let servers = Servers::start(home, &needs)?;
    if let Some((need, missing)) = servers.missing().first() {
        bail!("{} is not available: {missing}; or leave it out with --only", need.name());
    }
    Ok(servers)
}
