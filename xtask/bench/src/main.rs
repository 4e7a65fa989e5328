//! Benchmarks of ebus, each beside a baseline in the same process: interleaved, several rounds, medians and ratios.
//!
//! Run by `cargo xtask bench`, which starts the servers that are needed; by itself it finds them by `EBUS_KAFKA_URL` and
//! `EBUS_NATS_URL`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;

mod cost;
mod floor;
mod hot;
#[cfg(feature = "kafka")]
mod kafka;
mod latency;
mod memory;
#[cfg(feature = "nats")]
mod nats;
#[cfg(any(feature = "kafka", feature = "nats"))]
mod ours;
mod pool;
mod runner;
mod source;
#[cfg(any(feature = "kafka", feature = "nats"))]
mod stopwatch;
mod work;

use crate::latency::Latency;
use crate::runner::{Benchmark, Runner};

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
    /// Only print the names of what would run.
    #[arg(long)]
    list: bool,
    /// Only this side, each round printed when it ends, nothing compared: for who profiles.
    #[arg(long, value_enum, requires = "only", conflicts_with_all = ["list", "json"])]
    side: Option<runner::Side>,
    /// Instead of benchmarks, one run of this path with `--messages`: for who counts instructions and allocations.
    #[arg(long, value_enum, requires = "messages", conflicts_with_all = ["only", "list", "json"])]
    cost: Option<cost::Cost>,
    #[arg(long, value_name = "N", requires = "cost", hide = true)]
    messages: Option<usize>,
}

/// What is measured.
enum Measured {
    Rate(Box<dyn Benchmark>),
    Latency(Box<dyn Latency>),
}

impl Measured {
    fn rate(benchmark: impl Benchmark + 'static) -> Self {
        Self::Rate(Box::new(benchmark))
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Rate(benchmark) => benchmark.name(),
            Self::Latency(latency) => latency.name(),
        }
    }
}

/// All that this build has.
fn all() -> Vec<Measured> {
    vec![
        Measured::rate(pool::PoolAlone),
        Measured::rate(floor::Floor),
        Measured::rate(pool::Batched),
        Measured::rate(pool::Waiting::all_keys()),
        Measured::rate(pool::Waiting::pool_256()),
        Measured::rate(pool::Waiting::pool_1024()),
        Measured::rate(floor::Timers),
        Measured::Latency(Box::new(hot::HotKey)),
        Measured::rate(memory::EndToEnd),
        #[cfg(feature = "kafka")]
        Measured::rate(kafka::Publish::default()),
        #[cfg(feature = "kafka")]
        Measured::rate(kafka::Consume::default()),
        #[cfg(feature = "kafka")]
        Measured::Latency(Box::new(kafka::EndToEnd::default())),
        #[cfg(feature = "nats")]
        Measured::rate(nats::Publish::beside(nats::Ids::None)),
        #[cfg(feature = "nats")]
        Measured::rate(nats::Publish::beside(nats::Ids::Each)),
        #[cfg(feature = "nats")]
        Measured::rate(nats::Consume::beside(nats::Acks::Each)),
        #[cfg(feature = "nats")]
        Measured::rate(nats::Consume::beside(nats::Acks::Floor)),
        #[cfg(feature = "nats")]
        Measured::rate(nats::Consume::beside(nats::Acks::None)),
        #[cfg(feature = "nats")]
        Measured::Latency(Box::new(nats::EndToEnd::default())),
    ]
}

/// What `only` names; all when it names none.
fn chosen(only: &[String]) -> Result<Vec<Measured>> {
    fn group(name: &str) -> &str {
        name.split('-').next().unwrap_or(name)
    }
    let mut all = all();
    let named = |name: &str, only: &String| *only == name || *only == group(name);
    let unknown: Vec<_> =
        only.iter().filter(|only| !all.iter().any(|one| named(one.name(), only))).cloned().collect();
    if !unknown.is_empty() {
        let known: Vec<_> = all.iter().map(|one| one.name()).collect();
        bail!("no benchmark is called {}; this build has {}", unknown.join(", "), known.join(", "));
    }
    all.retain(|one| only.is_empty() || only.iter().any(|only| named(one.name(), only)));
    Ok(all)
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if let (Some(cost), Some(messages)) = (args.cost, args.messages) {
        return cost.run(messages);
    }
    let chosen = chosen(&args.only)?;
    if args.list {
        chosen.iter().for_each(|one| println!("{}", one.name()));
        return Ok(());
    }
    let mut runner = Runner::new(args.rounds)?;
    for one in chosen {
        match (one, args.side) {
            (Measured::Rate(mut benchmark), None) => runner.run(benchmark.as_mut())?,
            (Measured::Rate(mut benchmark), Some(side)) => runner.alone(benchmark.as_mut(), side)?,
            (Measured::Latency(mut latency), None) => runner.time(latency.as_mut())?,
            (Measured::Latency(latency), Some(_)) => bail!("{} has no side by itself", latency.name()),
        }
    }
    runner.print();
    if let Some(path) = &args.json {
        runner.write_json(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::chosen;

    fn names(only: &[&str]) -> Vec<&'static str> {
        let only: Vec<_> = only.iter().map(|only| (*only).to_owned()).collect();
        chosen(&only).expect("known").iter().map(|one| one.name()).collect()
    }

    #[test]
    fn all_run_when_none_is_named() {
        assert!(names(&[]).starts_with(&[
            "pool",
            "pool-floor",
            "pool-batch",
            "pool-1ms",
            "pool-256",
            "pool-1024",
            "pool-1024-floor",
            "pool-hot",
            "memory"
        ]));
    }

    #[test]
    fn a_name_chooses_one_and_what_stands_before_its_dash_chooses_all_of_a_broker() {
        assert_eq!(names(&["memory"]), ["memory"]);
        #[cfg(feature = "kafka")]
        assert_eq!(names(&["kafka"]), ["kafka-publish", "kafka-consume", "kafka-latency"]);
        #[cfg(feature = "nats")]
        assert_eq!(names(&["nats-publish", "memory"]), ["memory", "nats-publish"]);
    }

    #[test]
    fn an_unknown_name_is_refused_and_the_known_ones_are_named() {
        let Err(error) = chosen(&["memory".into(), "kafk".into()]) else { panic!("taken") };
        let text = error.to_string();
        assert!(text.contains("called kafk;") && text.contains("pool-hot, memory"), "{text}");
    }
}
