//! Benchmarks of ebus, each beside a baseline in the same process: interleaved, several rounds, medians and ratios.
//!
//! Run by `cargo xtask bench`.

use std::future::Future;
use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;
use tokio::runtime::Runtime;

mod memory;
mod pool;
mod work;

/// Compares ebus with the same work done without it.
#[derive(Debug, Parser)]
struct Args {
    /// Only these, by name or by what stands before the first dash, comma-separated.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How often each side runs; the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Where to write the results as a JSON array.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    ours_per_s: f64,
    baseline_per_s: f64,
    ratio: f64,
}

/// Runs both sides in turn and keeps the medians.
struct Bench {
    args: Args,
    runtime: Runtime,
    figures: Vec<Figure>,
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        let part = name.split('-').next().unwrap_or(name);
        self.args.only.is_empty() || self.args.only.iter().any(|only| only == name || only == part)
    }

    fn run<O, B>(
        &mut self,
        name: &'static str,
        what: &str,
        mut ours: impl FnMut() -> O,
        mut baseline: impl FnMut() -> B,
    ) -> Result<()>
    where
        O: Future<Output = Result<f64>>,
        B: Future<Output = Result<f64>>,
    {
        if !self.wants(name) {
            return Ok(());
        }
        eprintln!("{name}: {what}");
        let (mut of_ours, mut of_baseline) = (Vec::new(), Vec::new());
        for round in 1..=self.args.rounds {
            of_ours.push(self.runtime.block_on(ours())?);
            of_baseline.push(self.runtime.block_on(baseline())?);
            eprintln!(
                "  round {round}: ours {:>12.0}/s, baseline {:>12.0}/s",
                of_ours[of_ours.len() - 1],
                of_baseline[of_baseline.len() - 1]
            );
        }
        let (ours_per_s, baseline_per_s) = (median(of_ours), median(of_baseline));
        self.figures.push(Figure { name, ours_per_s, baseline_per_s, ratio: ours_per_s / baseline_per_s });
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut bench = Bench { args, runtime, figures: Vec::new() };
    bench.run(
        "pool",
        "4,000,000 messages, 10,000 keys, no-op handler; baseline: bounded queue of 1,024 per worker, 2 workers",
        || pool::ours(4_000_000),
        || pool::baseline(4_000_000),
    )?;
    bench.run(
        "memory",
        "2,000,000 messages end to end, 8 partitions, 10,000 keys, no-op handler; baseline: as above, nothing kept",
        || memory::ours(2_000_000),
        || memory::baseline(2_000_000),
    )?;
    println!("{:<16} {:>14} {:>14} {:>7}", "name", "ours/s", "baseline/s", "ratio");
    for figure in &bench.figures {
        let Figure { name, ours_per_s, baseline_per_s, ratio } = figure;
        println!("{name:<16} {ours_per_s:>14.0} {baseline_per_s:>14.0} {ratio:>7.2}");
    }
    if let Some(path) = &bench.args.json {
        std::fs::write(path, serde_json::to_string_pretty(&bench.figures)? + "\n")?;
    }
    Ok(())
}
