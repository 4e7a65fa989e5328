//! A thousand random schedules: members that join, leave, crash, freeze and lose partitions, publishers in trouble, handlers
//! that fail, panic and dawdle. Each is judged by the oracle (G1 to G7) and by reading its topics back.
//!
//! Time is paused, so that seconds cost nothing. Half of the seeds are the same in every run, the other half are new.
//! `EBUS_SEED=n` runs that one alone and tells what it did; `EBUS_SCHEDULES=n` runs so many. A seed brings back what is done
//! and when; which branch a `select!` looks at first is drawn by the runtime, and brought back too when all is built with
//! `RUSTFLAGS="--cfg tokio_unstable"`.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use libtest_mimic::{Arguments, Failed, Trial};

mod handle;
mod member;
mod plan;
mod world;

use plan::Plan;
use world::Told;

/// How many in one run.
const SCHEDULES: u64 = 1_000;

/// What the runs of handlers that panic on purpose say.
const ON_PURPOSE: &str = "panics on purpose";

fn main() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload_as_str() != Some(ON_PURPOSE) {
            print(info);
        }
    }));
    let trials = vec![Trial::test("p1_to_p7_a_thousand_random_schedules", thousand)];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

fn thousand() -> Result<(), Failed> {
    if let Some(seed) = number("EBUS_SEED") {
        let told = run(seed)?;
        println!("{told}");
        return Ok(());
    }
    let count = number("EBUS_SCHEDULES").unwrap_or(SCHEDULES);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed_of = |index: u64| if index % 2 == 0 { index / 2 } else { since * 1_000_000 + index };
    let (next, began) = (AtomicU64::new(0), Instant::now());
    let (tally, failed) = (Mutex::new(BTreeMap::new()), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count || failed.lock().expect("not poisoned").is_some() {
                        return;
                    }
                    match run(seed_of(index)) {
                        Ok(told) => add(&mut tally.lock().expect("not poisoned"), told),
                        Err(why) => *failed.lock().expect("not poisoned") = Some(why),
                    }
                }
            });
        }
    });
    if let Some(why) = failed.into_inner().expect("not poisoned") {
        return Err(why.into());
    }
    let tally = tally.into_inner().expect("not poisoned");
    let lines: Vec<_> = tally.iter().map(|(what, count)| format!("{what} {count}")).collect();
    println!("{count} schedules in {:.1?}: {}", began.elapsed(), lines.join(", "));
    let rare: Vec<_> =
        world::KINDS.iter().filter(|kind| tally.get(**kind).is_none_or(|n| *n < count / 20)).collect();
    if count >= SCHEDULES && !rare.is_empty() {
        return Err(format!("these hardly ever happened: {rare:?}").into());
    }
    Ok(())
}

fn add(tally: &mut BTreeMap<&'static str, u64>, told: Told) {
    for (what, count) in told.tally {
        *tally.entry(what).or_default() += count;
    }
}

/// Runs the schedule of a seed; why it failed, and how to run it again.
#[allow(unexpected_cfgs)] // `tokio_unstable` is the runtime's.
fn run(seed: u64) -> Result<Told, String> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    let runtime = builder.enable_time().start_paused(true).build().map_err(|error| error.to_string())?;
    let plan = Plan::draw(seed);
    let again = format!("again: EBUS_SEED={seed}");
    match catch_unwind(AssertUnwindSafe(|| runtime.block_on(world::run(plan)))) {
        Ok(Ok(told)) => Ok(told),
        Ok(Err(why)) => Err(format!("{why}\n({again})")),
        Err(_) => Err(format!("it panicked ({again})")),
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
