//! Runs both sides of a benchmark in turn and keeps the medians.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use clap::ValueEnum;
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::latency::{Latency, Percentiles};

/// One side of one round that takes longer has lost messages or hangs.
const LONGEST: Duration = Duration::from_secs(180);

/// The same work by ebus and without it.
///
/// Each side gives messages per second, and fails when a message was lost, or what should be committed was not.
#[async_trait]
pub(crate) trait Benchmark: Send {
    fn name(&self) -> &'static str;

    /// Messages of one round.
    fn messages(&self) -> usize;

    /// What both sides do.
    fn work(&self) -> String;

    /// The settings of our side.
    fn ours_is(&self) -> String;

    /// The settings of the other side.
    fn baseline_is(&self) -> String;

    /// What is done once, before the first round.
    async fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    async fn ours(&mut self) -> Result<f64>;

    async fn baseline(&mut self) -> Result<f64>;

    /// What is done once, after the last round, also when one has failed.
    async fn clean_up(&mut self) -> Result<()> {
        Ok(())
    }
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    ours_per_s: f64,
    baseline_per_s: f64,
    ratio: f64,
    /// CPU time of this process per message in microseconds, where the system tells: what a busy machine changes least.
    ours_cpu_us: Option<f64>,
    baseline_cpu_us: Option<f64>,
    /// Messages per second of each round: ours, baseline.
    rounds: Vec<(f64, f64)>,
    work: String,
    ours: String,
    baseline: String,
}

/// One line of the table of latencies: the medians of the rounds.
#[derive(Debug, Serialize)]
struct LatencyFigure {
    name: &'static str,
    ours_us: Percentiles,
    baseline_us: Percentiles,
    /// That of each round: ours, baseline.
    p99_rounds_us: Vec<(f64, f64)>,
    work: String,
    ours: String,
    baseline: String,
}

/// What is measured, of either kind.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum AnyFigure<'a> {
    Rate(&'a Figure),
    Latency(&'a LatencyFigure),
}

/// One of the two that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Side {
    /// Ebus
    Ours,
    /// The same work without it
    Baseline,
}

/// Runs benchmarks.
pub(crate) struct Runner {
    rounds: u16,
    runtime: Runtime,
    figures: Vec<Figure>,
    latencies: Vec<LatencyFigure>,
}

impl Runner {
    pub(crate) fn new(rounds: u16) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Self { rounds, runtime, figures: Vec::new(), latencies: Vec::new() })
    }

    /// Runs one, and says what it does before it does it.
    pub(crate) fn run(&mut self, benchmark: &mut dyn Benchmark) -> Result<()> {
        let name = benchmark.name();
        let (work, ours, baseline) = (benchmark.work(), benchmark.ours_is(), benchmark.baseline_is());
        eprintln!("{name}: {work}\n  ours: {ours}\n  baseline: {baseline}");
        let rounds = self.runtime.block_on(async {
            let rounds = rounds(benchmark, self.rounds).await;
            let cleaned = benchmark.clean_up().await.context("could not clean up");
            rounds.and_then(|rounds| cleaned.map(|()| rounds))
        });
        let rounds = rounds.with_context(|| format!("benchmark {name}"))?;
        let ours_per_s = median(rounds.iter().map(|(ours, _)| ours.per_s).collect());
        let baseline_per_s = median(rounds.iter().map(|(_, baseline)| baseline.per_s).collect());
        let cpu = |side: fn(&(Ran, Ran)) -> Ran| -> Option<Vec<f64>> {
            rounds.iter().map(|round| side(round).cpu_us).collect()
        };
        self.figures.push(Figure {
            name,
            ours_per_s,
            baseline_per_s,
            ratio: ours_per_s / baseline_per_s,
            ours_cpu_us: cpu(|round| round.0).map(median),
            baseline_cpu_us: cpu(|round| round.1).map(median),
            rounds: rounds.iter().map(|(ours, baseline)| (ours.per_s, baseline.per_s)).collect(),
            work,
            ours,
            baseline,
        });
        Ok(())
    }

    /// Runs one side only and prints each round: for who profiles.
    pub(crate) fn alone(&mut self, benchmark: &mut dyn Benchmark, side: Side) -> Result<()> {
        println!("{} alone: {side:?}", benchmark.name());
        self.runtime.block_on(async {
            let rounds = alone(benchmark, side, self.rounds).await;
            benchmark.clean_up().await.context("could not clean up").and(rounds)
        })
    }

    /// Measures latency, and says under which load before it does.
    pub(crate) fn time(&mut self, latency: &mut dyn Latency) -> Result<()> {
        let name = latency.name();
        let (work, ours, baseline) = (latency.work(), latency.ours_is(), latency.baseline_is());
        eprintln!("{name}: {work}\n  ours: {ours}\n  baseline: {baseline}");
        let rounds = self.runtime.block_on(async {
            let rounds = timed_rounds(latency, self.rounds).await;
            let cleaned = latency.clean_up().await.context("could not clean up");
            rounds.and_then(|rounds| cleaned.map(|()| rounds))
        });
        let rounds = rounds.with_context(|| format!("benchmark {name}"))?;
        let medians = |side: fn(&(Percentiles, Percentiles)) -> Percentiles| {
            let of =
                |part: fn(Percentiles) -> f64| median(rounds.iter().map(|round| part(side(round))).collect());
            Percentiles { p50: of(|p| p.p50), p99: of(|p| p.p99), p99_9: of(|p| p.p99_9) }
        };
        self.latencies.push(LatencyFigure {
            name,
            ours_us: medians(|round| round.0),
            baseline_us: medians(|round| round.1),
            p99_rounds_us: rounds.iter().map(|(ours, baseline)| (ours.p99, baseline.p99)).collect(),
            work,
            ours,
            baseline,
        });
        Ok(())
    }

    pub(crate) fn print(&self) {
        if !self.figures.is_empty() {
            self.print_rates();
        }
        if !self.latencies.is_empty() {
            self.print_latencies();
        }
    }

    fn print_latencies(&self) {
        println!("{:<20} {:>17} {:>17} {:>17}   ratio of p99", "us: ours, baseline", "p50", "p99", "p99.9");
        for LatencyFigure { name, ours_us: ours, baseline_us: baseline, .. } in &self.latencies {
            let pair = |part: fn(&Percentiles) -> f64| format!("{:.0} {:.0}", part(ours), part(baseline));
            let (p50, p99, p99_9) = (pair(|p| p.p50), pair(|p| p.p99), pair(|p| p.p99_9));
            println!("{name:<20} {p50:>17} {p99:>17} {p99_9:>17}   {:.2}", ours.p99 / baseline.p99);
        }
    }

    fn print_rates(&self) {
        println!(
            "{:<20} {:>12} {:>12} {:>6}   {:<16} CPU us a message: ours, baseline",
            "messages/s", "ours", "baseline", "ratio", "of the rounds"
        );
        for figure in &self.figures {
            let Figure { name, ours_per_s, baseline_per_s, ratio, rounds, .. } = figure;
            let mut ratios: Vec<_> = rounds.iter().map(|(ours, baseline)| ours / baseline).collect();
            ratios.sort_by(f64::total_cmp);
            let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
            let cpu = figure.ours_cpu_us.zip(figure.baseline_cpu_us);
            let cpu =
                cpu.map_or_else(|| "unknown".to_owned(), |(ours, other)| format!("{ours:.2} {other:.2}"));
            println!(
                "{name:<20} {ours_per_s:>12.0} {baseline_per_s:>12.0} {ratio:>6.2}   {:<16} {cpu}",
                format!("{least:.2} to {most:.2}")
            );
        }
    }

    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        let rates = self.figures.iter().map(AnyFigure::Rate);
        let all: Vec<_> = rates.chain(self.latencies.iter().map(AnyFigure::Latency)).collect();
        let text = serde_json::to_string_pretty(&all)? + "\n";
        std::fs::write(path, text).with_context(|| format!("could not write {}", path.display()))
    }
}

/// One round that does not count, then those that do. The sides take turns in going first.
async fn rounds(benchmark: &mut dyn Benchmark, rounds: u16) -> Result<Vec<(Ran, Ran)>> {
    let n = benchmark.messages();
    let begun = Instant::now();
    benchmark.prepare().await.context("could not prepare")?;
    let mut all = Vec::new();
    for round in 0..=rounds {
        let (ours, baseline) = if round % 2 == 1 {
            let ours = within(benchmark.ours(), n, "ours").await?;
            (ours, within(benchmark.baseline(), n, "baseline").await?)
        } else {
            let baseline = within(benchmark.baseline(), n, "baseline").await?;
            (within(benchmark.ours(), n, "ours").await?, baseline)
        };
        let which = if round == 0 { "warm-up".to_owned() } else { format!("round {round}") };
        let ratio = ours.per_s / baseline.per_s;
        eprintln!("  {which}: ours {:>10.0}/s, baseline {:>10.0}/s, {ratio:.2}", ours.per_s, baseline.per_s);
        if round > 0 {
            all.push((ours, baseline));
        }
    }
    eprintln!("  took {:.0} s", begun.elapsed().as_secs_f64());
    Ok(all)
}

async fn alone(benchmark: &mut dyn Benchmark, side: Side, rounds: u16) -> Result<()> {
    let n = benchmark.messages();
    benchmark.prepare().await.context("could not prepare")?;
    println!("prepared");
    for round in 1..=rounds {
        let Ran { per_s, cpu_us } = match side {
            Side::Ours => within(benchmark.ours(), n, "ours").await?,
            Side::Baseline => within(benchmark.baseline(), n, "baseline").await?,
        };
        let cpu = cpu_us.map_or_else(|| "unknown".to_owned(), |cpu| format!("{cpu:.2}"));
        println!("round {round}: {per_s:.0}/s, CPU us a message: {cpu}");
    }
    Ok(())
}

/// As [`rounds`].
async fn timed_rounds(latency: &mut dyn Latency, rounds: u16) -> Result<Vec<(Percentiles, Percentiles)>> {
    latency.prepare().await.context("could not prepare")?;
    let mut all = Vec::new();
    for round in 0..=rounds {
        let (ours, baseline) = if round % 2 == 1 {
            let ours = in_time(latency.ours(), "ours").await?;
            (ours, in_time(latency.baseline(), "baseline").await?)
        } else {
            let baseline = in_time(latency.baseline(), "baseline").await?;
            (in_time(latency.ours(), "ours").await?, baseline)
        };
        let which = if round == 0 { "warm-up".to_owned() } else { format!("round {round}") };
        eprintln!("  {which}: p99 ours {:.0} us, baseline {:.0} us", ours.p99, baseline.p99);
        if round > 0 {
            all.push((ours, baseline));
        }
    }
    Ok(all)
}

async fn in_time<T>(side: impl Future<Output = Result<T>>, name: &str) -> Result<T> {
    let Ok(ran) = tokio::time::timeout(LONGEST, side).await else {
        bail!("{name}: not done within {LONGEST:?}");
    };
    ran.with_context(|| name.to_owned())
}

/// What one side of one round came to.
#[derive(Debug, Clone, Copy)]
struct Ran {
    per_s: f64,
    cpu_us: Option<f64>,
}

async fn within(side: impl Future<Output = Result<f64>>, n: usize, name: &str) -> Result<Ran> {
    let before = cpu_time();
    let per_s = in_time(side, name).await?;
    let took = before.zip(cpu_time()).map(|(before, after)| after.saturating_sub(before));
    Ok(Ran { per_s, cpu_us: took.map(|took| took.as_secs_f64() * 1e6 / n as f64) })
}

/// What this process has used of all CPUs so far; `None` where there is no `/proc`.
fn cpu_time() -> Option<Duration> {
    /// `USER_HZ`, the same on every Linux that Rust runs on.
    const TICKS_PER_S: u64 = 100;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name of the program, which may have spaces: field 3. Fields 14 and 15 are user and system time.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1_000 / TICKS_PER_S))
}

/// The mean of the middle two when there is no middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle_one_or_between_the_middle_two() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
