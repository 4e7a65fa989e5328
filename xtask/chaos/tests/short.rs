//! A short run of chaos on each backend, with fixed seeds: the main faults, and all promises kept.

use std::path::PathBuf;
use std::process::Command;

use ebus_testkit::brokers::{Home, Need, private_trial};
use libtest_mimic::{Arguments, Failed, Trial};

/// What must have been done, as the report names it.
const MEMORY: &[&str] =
    &["join", "leave", "kill", "revoke", "lose", "crash", "commits fail", "publishes fail"];
const BROKER: &[&str] = &["join", "leave", "kill", "stop", "cut member", "broker kill"];

/// Their schedules have all of these.
const MEMORY_SEED: u64 = 2;
const BROKER_SEED: u64 = 3;

fn main() {
    let args = Arguments::from_args();
    let mut trials = vec![Trial::test("chaos_on_memory", || chaos("memory", MEMORY_SEED, MEMORY, None))];
    for need in Need::ALL {
        let name = format!("chaos_on_{}", need.name());
        trials.push(private_trial(name, need, move |home| {
            chaos(need.name(), BROKER_SEED, BROKER, Some(&home))
        }));
    }
    libtest_mimic::run(&args, trials).exit();
}

/// Keeps the histories when a promise was broken, and says where.
fn chaos(backend: &str, seed: u64, faults: &[&str], home: Option<&Home>) -> Result<(), Failed> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("chaos");
    let mut run = Command::new(env!("CARGO_BIN_EXE_ebus-chaos"));
    run.args(["run", "--backend", backend, "--minutes", "0.75", "--members", "3"]);
    // Few events: the build is not optimised, and other tests want the machine too.
    run.args(["--seed", &seed.to_string(), "--events-per-second", "300", "--dir"]).arg(dir);
    if let Some(home) = home {
        run.env(Home::VARIABLE, home.path());
    }
    let output = run.output()?;
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(format!("{}\n{said}\n{failed}", output.status).into());
    }
    let done = said.lines().find(|line| line.starts_with("faults")).unwrap_or_default();
    match faults.iter().find(|fault| !done.contains(*fault)) {
        None => Ok(()),
        Some(missing) => {
            Err(format!("the schedule of seed {seed} has no {missing:?}; take another seed: {done}").into())
        }
    }
}
