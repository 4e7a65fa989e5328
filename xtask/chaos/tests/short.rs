//! A short run of chaos on each backend, with fixed seeds: the main faults, and all promises kept; one with a blocked key; and one
//! whose members handle at most once.

use std::path::PathBuf;
use std::process::Command;

use ebus_testkit::brokers::{Home, Need, private_trial};
use libtest_mimic::{Arguments, Failed, Trial};

/// What must have been done, as the report names it.
const MEMORY: &[&str] =
    &["join", "leave", "kill", "kill publisher", "revoke", "lose", "crash", "commits fail", "publishes fail"];
const BROKER: &[&str] = &["join", "leave", "kill", "kill publisher", "stop", "cut member", "broker kill"];

/// Their schedules have all of these.
const MEMORY_SEED: u64 = 2;
const BROKER_SEED: u64 = 3;

/// Of this one, two members are killed some seconds after everything else, with runs under way.
const AT_MOST_ONCE_SEED: u64 = 285;

/// Three owners of a blocked key end, and it says what ran again.
const BLOCKED: &[&str] = &["2 kill", "1 leave"];

fn main() {
    let args = Arguments::from_args();
    let mut trials = Vec::new();
    trials.push(Trial::test("chaos_on_memory", || {
        chaos("memory", &schedule(MEMORY_SEED), MEMORY, None).map(|_| ())
    }));
    trials.push(Trial::test("blocked_on_memory", || chaos("memory", &blocked(), BLOCKED, None).map(|_| ())));
    trials.push(Trial::test("parked_in_batches_on_memory", || {
        chaos("memory", &[parked(), schedule(MEMORY_SEED)].concat(), MEMORY, None).map(|_| ())
    }));
    trials.push(Trial::test("at_most_once_on_memory", || {
        chaos("memory", &at_most_once(MEMORY_SEED), MEMORY, None).map(|_| ())
    }));
    for need in Need::ALL {
        trials.push(private_trial(format!("chaos_on_{}", need.name()), need, move |home| {
            chaos(need.name(), &schedule(BROKER_SEED), BROKER, Some(&home)).map(|_| ())
        }));
        trials.push(private_trial(format!("blocked_on_{}", need.name()), need, move |home| {
            in_time(|| chaos(need.name(), &blocked(), BLOCKED, Some(&home)).map(|_| ()))
        }));
        trials.push(private_trial(format!("at_most_once_on_{}", need.name()), need, move |home| {
            cut_short(&chaos(need.name(), &at_most_once(AT_MOST_ONCE_SEED), BROKER, Some(&home))?)
        }));
    }
    libtest_mimic::run(&args, trials).exit();
}

fn schedule(seed: u64) -> Vec<String> {
    // Few events: the build is not optimised, and other tests want the machine too.
    ["--minutes", "0.75", "--members", "3", "--events-per-second", "300", "--seed", &seed.to_string()]
        .map(str::to_owned)
        .to_vec()
}

/// Members handle in batches and park keys, which are redriven meanwhile.
fn parked() -> Vec<String> {
    ["--parks", "--batches"].map(str::to_owned).to_vec()
}

/// Members handle at most once.
fn at_most_once(seed: u64) -> Vec<String> {
    [vec!["--at-most-once".to_owned()], schedule(seed)].concat()
}

/// Processes were killed in the middle of handlers: what was under way there was not run again, or the verdict would say so.
fn cut_short(said: &str) -> Result<(), Failed> {
    let line = said.lines().find_map(|line| line.strip_prefix("at most once")).unwrap_or_default();
    match line.split_whitespace().next().map(str::parse::<u64>) {
        Some(Ok(1..)) => Ok(()),
        _ => Err(format!("no run was open when a process was killed; take another seed: {line:?}").into()),
    }
}

/// Enough to see by hundreds what would run again if nothing above the watermark were known.
fn blocked() -> Vec<String> {
    ["--blocked", "6", "--events-per-second", "600", "--seed", "1"].map(str::to_owned).to_vec()
}

/// How long a take-over may last holds for a program that is optimised, on a machine that has time for it: of three runs, one keeps it.
/// Whatever else is not kept fails at once.
fn in_time(run: impl Fn() -> Result<(), Failed>) -> Result<(), Failed> {
    for _ in 0..2 {
        match run() {
            Err(failed) if failed.message().is_some_and(is_only_late) => {}
            ended => return ended,
        }
    }
    run()
}

fn is_only_late(said: &str) -> bool {
    let mut broken = said.lines().filter(|line| line.contains("NOT KEPT: ")).peekable();
    let zeros = |text: Option<&str>| text.is_some_and(|text| !text.contains(|c| matches!(c, '1'..='9')));
    let mut verdict = said.lines().filter(|line| line.starts_with("verdict"));
    let mut back = said.lines().filter(|line| line.starts_with("read back"));
    broken.peek().is_some()
        && broken.all(|line| line.contains("ms after a leave, "))
        && verdict.next().is_some_and(|line| zeros(line.split(" (").next()))
        && back.next().is_some_and(|line| zeros(line.rsplit(';').next()))
        && !said.contains("trouble: ")
}

/// What it said. Keeps the histories when a promise was broken, and says where.
fn chaos(backend: &str, asked: &[String], faults: &[&str], home: Option<&Home>) -> Result<String, Failed> {
    // Runs go beside each other, some with equal seeds.
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("chaos").join(asked[0].trim_start_matches('-'));
    let mut run = Command::new(env!("CARGO_BIN_EXE_ebus-chaos"));
    run.args(["run", "--backend", backend, "--dir"]).arg(dir).args(asked);
    if let Some(home) = home {
        run.env(Home::VARIABLE, home.path());
    }
    let output = run.output()?;
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(format!("{}\n{said}\n{failed}", output.status).into());
    }
    let done = said.lines().find_map(|line| line.strip_prefix("faults")).unwrap_or_default();
    let done: Vec<&str> = done.split(',').map(str::trim).collect();
    let is_done = |fault: &str| {
        done.iter().any(|done| done.split_once(' ').is_some_and(|(_, kind)| kind == fault) || *done == fault)
    };
    match faults.iter().find(|fault| !is_done(fault)) {
        None => Ok(said.into_owned()),
        Some(missing) => Err(format!("{asked:?} has no {missing:?}; take another seed: {done:?}").into()),
    }
}
