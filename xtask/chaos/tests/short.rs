//! A short run of chaos on each backend, with fixed seeds: every kind of fault once, and all promises kept.

use std::path::PathBuf;
use std::process::Command;

use ebus_testkit::brokers::{Home, Need, private_trial};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let args = Arguments::from_args();
    let mut trials = vec![Trial::test("chaos_on_memory", || chaos("memory", 11, None))];
    for (need, seed) in [(Need::Kafka, 11), (Need::Nats, 11)] {
        let name = format!("chaos_on_{}", need.name());
        trials.push(private_trial(name, need, move |home| chaos(need.name(), seed, Some(&home))));
    }
    libtest_mimic::run(&args, trials).exit();
}

/// Keeps the histories when a promise was broken, and says where.
fn chaos(backend: &str, seed: u64, home: Option<&Home>) -> Result<(), Failed> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("chaos");
    let mut run = Command::new(env!("CARGO_BIN_EXE_ebus-chaos"));
    run.args(["run", "--backend", backend, "--minutes", "0.75", "--members", "3"]);
    // Few events: the build is not optimised, and other tests want the machine too.
    run.args(["--seed", &seed.to_string(), "--events-per-second", "300", "--dir"]).arg(dir);
    if let Some(home) = home {
        run.env(Home::VARIABLE, home.path());
    }
    let output = run.output()?;
    if output.status.success() {
        return Ok(());
    }
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(format!("{}\n{said}\n{failed}", output.status).into())
}
