//! `cargo xtask costs`: instructions, allocations and bytes per message of the paths without a broker, beside those that are
//! stored, so that a change that makes them dearer goes red on any machine, however busy.
//!
//! Counted by valgrind, of two runs: what the larger one costs more, divided by the messages that it has more. Each is run
//! several times, and the cheapest counts: a busy machine interrupts a run more often and adds to its work, and never takes
//! from it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::{env, fs, thread};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::workspace::Workspace;

const STORED: &str = "xtask/bench/costs.json";
const PATHS: [&str; 6] = ["pool", "pool-batch", "pool-waits", "pool-held", "publish", "memory"];
/// Where messages are held.
const HELD: [&str; 2] = ["pool-held", "publish"];
/// Beyond the first handling of each key, when every buffer has found its size.
const FEW: u64 = 100_000;
const MANY: u64 = 300_000;
/// How often each run is counted.
const TIMES: usize = 2;
/// Of what is stored. Two counts of the same program differ by less than 1 %.
const TOLERANCE: f64 = 0.03;
/// The same for instructions of a program that another compiler made: what a release of the compiler or of the C library has
/// been seen to change, and more.
const OTHER_COMPILER: f64 = 0.15;
/// The same for instructions of what is held: how far a shard has got with its lists when all is read is up to time.
const OF_HELD: f64 = 0.25;
/// What two runs of the same program may differ by where the figure is about nothing: in allocations and in bytes. How many lists are on
/// their way at a time is up to time, also when a machine is busy: 0.017 allocations more than stored were seen. What is to be found
/// here is one for each message, or for each run.
const NOISE: [f64; 3] = [1.0, 0.05, 4.0];
const UNITS: [&str; 3] = ["instructions", "allocations", "bytes held"];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Stores what is counted now
    #[arg(long)]
    store: bool,
}

/// What a message costs.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Cost {
    instructions: f64,
    allocations: f64,
    /// At the peak of memory, where messages are held: what one takes beside its payload.
    bytes_held: Option<f64>,
}

/// The figures, and the compiler that they hold for.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    compiler: String,
    paths: BTreeMap<String, Cost>,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return missing();
    }
    let program = build(workspace)?;
    let counted = Stored { compiler: compiler()?, paths: count_all(&program)? };
    let file = workspace.root().join(STORED);
    let stored: Option<Stored> = match fs::read(&file) {
        Ok(text) => Some(serde_json::from_slice(&text).with_context(|| format!("{STORED} cannot be read"))?),
        Err(_) if args.store => None,
        Err(error) => return Err(error).context(format!("{STORED}; `cargo xtask costs --store` makes it")),
    };
    if args.store {
        fs::write(&file, serde_json::to_string_pretty(&counted)? + "\n")?;
    }
    Ok(report(&counted, stored.as_ref()) || args.store)
}

/// Prints all, and gives whether nothing is dearer than what is stored.
fn report(counted: &Stored, stored: Option<&Stored>) -> bool {
    let mut tolerances = [TOLERANCE; 3];
    if let Some(stored) = stored.filter(|stored| stored.compiler != counted.compiler) {
        tolerances[0] = OTHER_COMPILER;
        println!(
            "the stored figures are of {}, these of {}: {:.0} % more instructions are tolerated, not {:.0} %; allocations and bytes \
             are compared as ever",
            stored.compiler,
            counted.compiler,
            OTHER_COMPILER * 100.0,
            TOLERANCE * 100.0
        );
    }
    println!("{:<11} {:>14} {:>14} {:>14}   per message", "", UNITS[0], UNITS[1], UNITS[2]);
    let mut kept = true;
    for (path, cost) in &counted.paths {
        let held = cost.bytes_held.map_or("-".to_owned(), |bytes| format!("{bytes:.1}"));
        println!("{path:<11} {:>14.1} {:>14.3} {held:>14}", cost.instructions, cost.allocations);
        let Some(stored) = stored else { continue };
        let Some(stored) = stored.paths.get(path) else {
            kept = false;
            println!("{path}: FAILED: nothing is stored; store it with --store");
            continue;
        };
        for ((((now, before), noise), unit), tolerance) in
            cost.figures().into_iter().zip(stored.figures()).zip(NOISE).zip(UNITS).zip(tolerances)
        {
            let tolerance = if path == "pool-held" && unit == UNITS[0] { OF_HELD } else { tolerance };
            let tolerated = (before * tolerance).max(noise);
            if now > before + tolerated {
                kept = false;
                println!("{path}: FAILED: {now:.2} {unit} per message; stored are {before:.2}");
            } else if now < before - tolerated {
                println!(
                    "{path}: {now:.2} {unit} per message, stored are {before:.2}: store it with --store"
                );
            }
        }
    }
    kept
}

impl Cost {
    fn figures(&self) -> [f64; 3] {
        [self.instructions, self.allocations, self.bytes_held.unwrap_or_default()]
    }
}

/// Without it nothing is counted; a failure when `EBUS_REQUIRE` names it.
fn missing() -> Result<bool> {
    let required = env::var("EBUS_REQUIRE").unwrap_or_default();
    let required = required.split(',').any(|name| name.trim() == "valgrind");
    println!("costs not counted: there is no valgrind; install it by your system's package manager");
    Ok(!required)
}

fn build(workspace: &Workspace) -> Result<PathBuf> {
    let build = ["build", "--release", "--package", "ebus-bench", "--no-default-features"];
    ensure!(
        workspace.cargo(build).status().context("could not run cargo")?.success(),
        "the benchmarks do not build; see above"
    );
    Ok(workspace.target().join("release").join(format!("ebus-bench{}", env::consts::EXE_SUFFIX)))
}

fn compiler() -> Result<String> {
    let output = Command::new("rustc").arg("--version").output().context("could not run rustc")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned() + " " + env::consts::ARCH)
}

/// As many at a time as there are processors.
fn count_all(program: &Path) -> Result<BTreeMap<String, Cost>> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(String, Cost)>> {
        let mut done = Vec::new();
        while let Some(path) = PATHS.get(next.fetch_add(1, Relaxed)) {
            done.push(((*path).to_owned(), count(program, path)?));
        }
        Ok(done)
    };
    let mut paths = BTreeMap::new();
    thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            paths.extend(worker.join().expect("counting does not panic")?);
        }
        Ok(paths)
    })
}

fn count(program: &Path, path: &str) -> Result<Cost> {
    let (few, many) = (least(program, path, FEW)?, least(program, path, MANY)?);
    let per = |which: usize| (many[which] as f64 - few[which] as f64) / (MANY - FEW) as f64;
    Ok(Cost { instructions: per(0), allocations: per(1), bytes_held: HELD.contains(&path).then(|| per(2)) })
}

/// Instructions, allocations, and bytes at the peak: of several runs the least of each.
fn least(program: &Path, path: &str, messages: u64) -> Result<[u64; 3]> {
    let mut least = [u64::MAX; 3];
    for _ in 0..TIMES {
        let instructions = valgrind("callgrind", program, path, messages)?;
        let memory = valgrind("dhat", program, path, messages)?;
        let counted = [
            figure(&instructions, "Collected", ":")?,
            figure(&memory, "Total:", " bytes in ")?,
            figure(&memory, "At t-gmax:", "At t-gmax:")?,
        ];
        for (least, now) in least.iter_mut().zip(counted) {
            *least = now.min(*least);
        }
    }
    Ok(least)
}

fn valgrind(tool: &str, program: &Path, path: &str, messages: u64) -> Result<String> {
    let output = Command::new("valgrind")
        .arg(format!("--tool={tool}"))
        .arg(format!("--{tool}-out-file=/dev/null"))
        .arg(program)
        .args(["--cost", path, "--messages", &messages.to_string()])
        .output()
        .context("could not run valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!("{path} under {tool}: {}\n{said}", output.status);
    }
    Ok(said)
}

/// The number that follows `after` in the line with `line`: valgrind writes thousands with commas.
fn figure(said: &str, line: &str, after: &str) -> Result<u64> {
    let found = said.lines().find_map(|text| text.find(line).map(|at| &text[at..]));
    let text = found.and_then(|text| text.split_once(after)).map(|(_, text)| text.trim_start());
    let digits: Option<String> = text.map(|text| {
        text.chars().take_while(|c| c.is_ascii_digit() || *c == ',').filter(char::is_ascii_digit).collect()
    });
    let number = digits.and_then(|digits| digits.parse().ok());
    number.with_context(|| format!("valgrind does not say {line:?}:\n{said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_what_valgrind_says() {
        let said = "==1== Collected : 292695888\n==2== Total:     28,130,241 bytes in 26,308 blocks\n\
                    ==2== At t-gmax: 13,759,377 bytes in 20,175 blocks\n";
        assert_eq!(figure(said, "Collected", ":").expect("said"), 292_695_888);
        assert_eq!(figure(said, "Total:", " bytes in ").expect("said"), 26_308);
        assert_eq!(figure(said, "At t-gmax:", "At t-gmax:").expect("said"), 13_759_377);
        assert!(figure("==1== nothing", "Collected", ":").is_err());
    }

    fn one(instructions: f64, allocations: f64, bytes_held: f64) -> Stored {
        let cost = Cost { instructions, allocations, bytes_held: Some(bytes_held) };
        Stored { compiler: "rustc".into(), paths: BTreeMap::from([("pool".to_owned(), cost)]) }
    }

    #[test]
    fn what_is_dearer_by_more_than_three_per_cent_fails() {
        let stored = one(1_000.0, 0.0, 200.0);
        assert!(report(&one(1_029.0, 0.049, 203.0), Some(&stored)));
        assert!(report(&one(500.0, 0.0, 100.0), Some(&stored)), "cheaper");
        for dearer in [one(1_031.0, 0.0, 200.0), one(1_000.0, 0.06, 200.0), one(1_000.0, 0.0, 207.0)] {
            assert!(!report(&dearer, Some(&stored)), "{dearer:?}");
        }
    }

    #[test]
    fn another_compiler_may_make_more_instructions_and_not_more_allocations() {
        let stored = Stored { compiler: "another".into(), ..one(1_000.0, 0.0, 200.0) };
        assert!(report(&one(1_149.0, 0.0, 200.0), Some(&stored)));
        for dearer in [one(1_151.0, 0.0, 200.0), one(1_000.0, 0.06, 200.0), one(1_000.0, 0.0, 207.0)] {
            assert!(!report(&dearer, Some(&stored)), "{dearer:?}");
        }
    }

    #[test]
    fn a_path_that_is_not_stored_fails() {
        let stored = Stored { compiler: "rustc".into(), paths: BTreeMap::new() };
        assert!(!report(&one(1.0, 0.0, 0.0), Some(&stored)));
    }
}
