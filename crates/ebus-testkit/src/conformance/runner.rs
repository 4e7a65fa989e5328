//! Runs the cases: names, time limits, the oracle after each, and what is shown of one that failed.

use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use parking_lot::Mutex;

use super::cases::{Case, Needs, all};
use super::ctx::Ctx;
use super::failure::{Checked, Failure};
use super::harness::{Harness, Setup};
use super::panics::Panics;
use crate::history::Event;
use crate::oracle::{Verdict, judge};

/// Cases at once: they wait more than they work.
const AT_ONCE: usize = 4;

/// What a case may need beyond its limit, to close and to be judged.
const AFTERMATH: Duration = Duration::from_secs(45);

/// How many events of the end of a history are shown.
const TAIL: usize = 60;

/// Runs the suite as the main function of a test binary, and exits.
///
/// See the [module](self::super) for how a backend is wired, and for the command line.
pub fn run(setup: impl FnOnce() -> Setup) -> ! {
    run_all("", |_| true, setup)
}

/// Runs those cases whose name `only` wants, once more with another setting of the backend: `variant` is added to their names
/// (`d01_joins_under_load@consumer`). Otherwise as [`run`].
pub fn run_only(variant: &str, only: impl Fn(&str) -> bool, setup: impl FnOnce() -> Setup) -> ! {
    run_all(&format!("@{variant}"), only, setup)
}

fn run_all(suffix: &str, only: impl Fn(&str) -> bool, setup: impl FnOnce() -> Setup) -> ! {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(AT_ONCE));
    let setup = Arc::new(setup());
    let panics = Panics::watch();
    let trials = all()
        .into_iter()
        .filter(|case| only(case.name))
        .map(|case| {
            let (setup, panics) = (setup.clone(), panics.clone());
            Trial::ignorable_test(format!("{}{suffix}", case.name), move || match &*setup {
                Setup::Ready(harness) => run_case(harness.clone(), case, &panics),
                Setup::Missing { reason, required: true } => Err(Failed::from(reason.clone())),
                Setup::Missing { reason, required: false } => Ok(Completion::ignored_with(reason.clone())),
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit()
}

fn run_case(harness: Arc<dyn Harness>, case: Case, panics: &Panics) -> Result<Completion, Failed> {
    if let Some(reason) = harness.lacks(case.name) {
        return Ok(Completion::ignored_with(reason));
    }
    let seed = seed();
    let limit = harness.time_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(case.name)
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    let shared: Arc<Mutex<Option<Arc<Ctx>>>> = Arc::default();
    let (done, result) = channel();
    let (keep, name) = (shared.clone(), case.name);
    runtime.spawn(async move {
        let _ = done.send(in_runtime(harness, case, seed, limit, &keep).await);
    });
    let result = match result.recv_timeout(limit + AFTERMATH) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => {
            let dump = shared.lock().take().map(|ctx| tail(&ctx.history.events())).unwrap_or_default();
            Err(Failure::new(format!("the runtime hangs: a thread of it is blocked{dump}")))
        }
        Err(RecvTimeoutError::Disconnected) => Err(Failure::new("the case was dropped")),
    };
    shared.lock().take();
    runtime.shutdown_timeout(Duration::from_secs(5));
    let told = panics.of(name);
    let result = match result {
        Ok(_) if !told.other.is_empty() => Err(Failure::new(told.other.join("\n"))),
        Err(failure) => {
            let told = [told.own, told.other].concat().join("\n");
            Err(Failure::new(format!("{failure}\n{told}")))
        }
        result => result,
    };
    result.map_err(|failure| {
        Failed::from(format!("{failure}\n(again: EBUS_SEED={seed} and the filter {name})"))
    })
}

async fn in_runtime(
    harness: Arc<dyn Harness>,
    case: Case,
    seed: u64,
    limit: Duration,
    keep: &Mutex<Option<Arc<Ctx>>>,
) -> Checked<Completion> {
    let short = case.name.split('_').next().unwrap_or(case.name);
    let prefix = format!("{short}-{:x}-{:x}", nonce() & 0xffff_ffff, std::process::id());
    let (own_broker, harness) = match case.needs.nodes() {
        None => (None, harness),
        Some(nodes) => match harness.own_broker(nodes).await? {
            None => {
                return Ok(Completion::ignored_with(format!("no broker of {nodes} for a case alone here")));
            }
            Some(broker) => (Some(broker.clone()), broker.harness()),
        },
    };
    let connected = tokio::time::timeout(limit, Ctx::new(harness, own_broker, prefix, seed)).await;
    let ctx = Arc::new(connected.map_err(|_| Failure::new(format!("no connection within {limit:?}")))??);
    if let Some(reason) = lacks(&ctx, case.needs) {
        return Ok(Completion::ignored_with(format!("{} {reason}", ctx.capability().backend)));
    }
    *keep.lock() = Some(ctx.clone());
    let caught = AssertUnwindSafe((case.run)(ctx.clone())).catch_unwind();
    let result = match tokio::time::timeout(limit, caught).await {
        Err(_) => Err(Failure::new(format!("not done within {limit:?}"))),
        Ok(Err(panic)) => Err(Failure::new(panic_text(&*panic))),
        Ok(Ok(result)) => result,
    };
    // Before the members leave: how they are is what explains a failure.
    let states = if result.is_err() { states(&ctx).await } else { String::new() };
    let closed = tokio::time::timeout(AFTERMATH / 2, ctx.close()).await;
    let closed = closed.unwrap_or_else(|_| Err(Failure::new("the members and connections did not close")));
    let events = ctx.history.events();
    let verdict = judge(&events, &ctx.the_rules());
    let mut text = String::new();
    for (what, result) in [("", &result), ("while closing: ", &closed)] {
        if let Err(failure) = result {
            let _ = writeln!(text, "{what}{failure}");
        }
    }
    if result.is_ok() && closed.is_ok() && verdict.kept() {
        return Ok(Completion::Completed);
    }
    Err(Failure::new(format!("{text}{}{states}{}", told(&verdict), tail(&events))))
}

fn lacks(ctx: &Ctx, needs: Needs) -> Option<&'static str> {
    let one_member = (!ctx.several()).then_some("has one member in a group");
    match needs {
        Needs::Anywhere | Needs::OwnBroker | Needs::OwnCluster => None,
        Needs::Links | Needs::SeveralLinks | Needs::LongLinks if !ctx.harness.has_links() => {
            Some("has no network here that a case can break")
        }
        Needs::LongLinks if std::env::var_os("EBUS_LONG").is_none() => {
            Some("has better things to do for minutes; EBUS_LONG=1 runs it")
        }
        Needs::Parking if !ctx.capability().parks_keys => Some("has no place for parked keys"),
        Needs::Parking => None,
        Needs::SeveralLinks => one_member,
        Needs::Links | Needs::LongLinks => None,
        Needs::Several => one_member,
        Needs::Faults if ctx.harness.faults().is_none() => Some("makes no faults of ownership on request"),
        Needs::Faults => one_member,
        Needs::LogFaults if ctx.harness.log_faults().is_none() => {
            Some("makes no faults of what is stored on request")
        }
        Needs::LogFaults => None,
    }
}

fn told(verdict: &Verdict) -> String {
    format!("the oracle says:\n{verdict}\n")
}

async fn states(ctx: &Ctx) -> String {
    let mut text = String::new();
    let lives: Vec<_> = ctx.lives.lock().clone();
    for life in lives {
        let Some(pool) = life.pool() else { continue };
        let state = tokio::time::timeout(Duration::from_secs(3), pool.state()).await;
        let _ = match state {
            Ok(state) => writeln!(text, "{}: {state:#?}", life.name),
            Err(_) => writeln!(text, "{}: its pool does not answer", life.name),
        };
    }
    text
}

fn tail(events: &[Event]) -> String {
    let mut text = format!("the last {TAIL} of {} events:", events.len());
    for event in &events[events.len().saturating_sub(TAIL)..] {
        let _ = write!(text, "\n    {}", serde_json::to_string(event).unwrap_or_default());
    }
    text
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("the case panicked").to_owned()
}

fn seed() -> u64 {
    std::env::var("EBUS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(nonce)
}

/// Differs from run to run and from case to case.
fn nonce() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    time.wrapping_add(NEXT.fetch_add(0x1_0000_0001, std::sync::atomic::Ordering::Relaxed))
}
