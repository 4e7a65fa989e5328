//! `cargo xtask test`: everything, on real servers, and what came of it.

use std::{collections::HashMap, io::BufReader, process::Stdio, time::Instant};

use anyhow::{Context, Result, bail};
use cargo_metadata::Message;
use ebus_testkit::brokers::Need;

use crate::{
    servers::Servers,
    stream::{self, show},
    summary::Summary,
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// More for `cargo test`: `-p ebus-kafka --test conformance -- d13`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    let began = Instant::now();
    let chosen = chosen(&args.args);
    let features = workspace.all_features(&chosen);
    let mut all = vec!["test", "--no-fail-fast", "--features", &features];
    if chosen.is_empty() {
        all.push("--workspace");
    }
    all.extend(args.args.iter().map(String::as_str));
    let names = build(workspace, &all)?;

    let servers = Servers::start(&workspace.brokers(), &Need::ALL)?;
    let mut summary = Summary::new(names);
    let mut cargo = workspace.cargo(all);
    servers.export(&mut cargo);
    let status = stream::run(&mut cargo, |line| {
        show(line);
        summary.line(line);
    })?;
    let missing = servers.missing().to_vec();
    drop(servers);

    println!("\n{summary}");
    for (need, missing) in &missing {
        println!("{} was not available: {missing}", need.name());
    }
    let required: Vec<_> = missing.iter().filter(|(need, _)| need.is_required()).collect();
    let kept = status.success() && required.is_empty();
    let verdict = if kept { "all that ran passed" } else { "not everything passed" };
    println!("{verdict}, {:.0} s", began.elapsed().as_secs_f64());
    Ok(kept)
}

/// The crates that `-p` names.
fn chosen(args: &[String]) -> Vec<String> {
    let mut chosen = Vec::new();
    let mut args = args.iter().take_while(|arg| *arg != "--");
    while let Some(arg) = args.next() {
        if arg == "-p" || arg == "--package" {
            chosen.extend(args.next().cloned());
        } else if let Some(name) = arg.strip_prefix("--package=").or_else(|| arg.strip_prefix("-p")) {
            chosen.push(name.to_owned());
        }
    }
    chosen
}

/// Builds everything before any server starts, and learns which executable comes from which crate: `cargo test` itself
/// shows only the file, and every backend has a `conformance`.
fn build(workspace: &Workspace, args: &[&str]) -> Result<HashMap<String, String>> {
    let build = args.iter().copied().take_while(|arg| *arg != "--");
    let mut cargo = workspace.cargo(build);
    cargo.args(["--no-run", "--message-format=json-render-diagnostics"]).stdout(Stdio::piped());
    let mut child = cargo.spawn().context("could not run cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut names = HashMap::new();
    for message in Message::parse_stream(BufReader::new(output)) {
        let Message::CompilerArtifact(artifact) = message? else { continue };
        let Some(file) = artifact.executable.as_ref().and_then(|path| path.file_name()) else { continue };
        let package = workspace.packages().into_iter().find(|package| package.id == artifact.package_id);
        let package = package.map_or("", |package| package.name.as_str());
        let target = &artifact.target;
        let what = if target.is_test() { target.name.as_str() } else { "unit" };
        let what = if target.is_bin() { "unit (bin)" } else { what };
        names.insert(file.to_owned(), format!("{package}: {what}"));
    }
    if !child.wait()?.success() {
        bail!("the tests do not build; see above");
    }
    Ok(names)
}
