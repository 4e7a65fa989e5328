//! Benchmarks of ebus, each beside a baseline in the same process: interleaved, several rounds, medians and ratios.

use clap::Parser;
use serde::Serialize;

mod pool;

/// Compares ebus with the same work done without it.
#[derive(Debug, Parser)]
struct Args {
    /// Only these, by name or by the part before the first dash, comma-separated.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How often each side runs; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Where to write the results as a JSON array.
    #[arg(long)]
    json: Option<std::path::PathBuf>,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    ours_per_s: f64,
    baseline_per_s: f64,
    ratio: f64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut ours = Vec::new();
    let mut baseline = Vec::new();
    for _ in 0..args.rounds {
        ours.push(runtime.block_on(pool::ours(4_000_000)));
        baseline.push(runtime.block_on(pool::baseline(4_000_000)));
    }
    let (ours, baseline) = (median(ours), median(baseline));
    let figures = [Figure { name: "pool", ours_per_s: ours, baseline_per_s: baseline, ratio: ours / baseline }];
    println!("{}", serde_json::to_string_pretty(&figures)?);
    Ok(())
}
