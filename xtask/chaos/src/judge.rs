//! Judges histories: those of the run that has just ended, or of an earlier one.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use ebus_testkit::history::{Event, Kind, Part, merge};
use ebus_testkit::oracle;

use crate::blocked::Figures;
use crate::report::{Judging, Report, RunFile};
use crate::setting::Names;
use crate::times::Times;
use crate::world::Nature;

/// How much before and after a finding is shown.
const AROUND_NS: u64 = 2_000_000_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the run left its histories
    dir: PathBuf,
    /// Shows what happened around this finding, counted from 1: its key, its partition's owners, and all faults
    #[arg(long, value_name = "N")]
    show: Option<usize>,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let run = RunFile::read(&args.dir)?;
    let (events, torn) = events(&args.dir, &run)?;
    let (report, verdict) = judge(&run, &events, torn);
    match args.show {
        None => println!("{report}"),
        Some(number) => {
            let finding = number.checked_sub(1).and_then(|index| verdict.findings.get(index));
            let finding =
                finding.with_context(|| format!("there are {} findings", verdict.findings.len()))?;
            println!("{finding}\n");
            show(finding, &events);
        }
    }
    Ok(report.kept())
}

/// The events of all processes.
pub(crate) fn events(dir: &Path, run: &RunFile) -> Result<(Vec<Event>, usize)> {
    let parts = run.parts.iter().map(|(name, killed)| Part::new(dir.join(name), *killed));
    // A process that was killed before it could create its history has none.
    let parts = parts.filter(|part| part.path.exists() || !part.killed);
    let merged = merge(parts).context("could not read the histories")?;
    Ok((merged.events, merged.torn))
}

pub(crate) fn judge(run: &RunFile, events: &[Event], torn: usize) -> (Report, oracle::Verdict) {
    let began = Instant::now();
    let nature = Nature::of(run.ground);
    let verdict = oracle::judge(events, &nature.rules(run.mode));
    let times = Times::of(events, &run.done, &Names::default().topic);
    let blocked = run.blocked.then(|| Figures::of(events, run, &nature, &times));
    let judging = Judging { torn, took: began.elapsed(), lease: nature.lease, blocked };
    (Report::new(run, &verdict, times, judging), verdict)
}

fn show(finding: &oracle::Finding, events: &[Event]) {
    let times = || finding.events.iter().map(|event| event.at_ns);
    let (from, to) = (times().min().unwrap_or(0), times().max().unwrap_or(u64::MAX));
    let (from, to) = (from.saturating_sub(AROUND_NS), to.saturating_add(AROUND_NS));
    let partition = finding.events.iter().find_map(|event| event.partition);
    let key = finding.events.iter().find_map(|event| event.key.as_ref());
    for event in events.iter().filter(|event| (from..=to).contains(&event.at_ns)) {
        let ours = match event.kind {
            Kind::Assigned | Kind::Revoking | Kind::Released | Kind::Lost | Kind::Committed | Kind::Kept => {
                event.partition == partition
            }
            Kind::Settle => {
                finding.events.iter().any(|of| of.offset == event.offset) && event.partition == partition
            }
            Kind::Call | Kind::Stored | Kind::Failed | Kind::Start | Kind::End | Kind::DeadLetter => {
                key.is_some() && event.key.as_ref() == key
            }
            _ => true,
        };
        if ours {
            let line = serde_json::to_string(event).unwrap_or_default();
            println!("{:>12.6} {line}", event.at_ns.saturating_sub(from) as f64 / 1e9);
        }
    }
}
