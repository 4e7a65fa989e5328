//! `ebus demo`: events of many aggregates go from publishers to handlers, through failures, and a verdict says what held.
//!
//! `plan.rs` decides what happens, `run.rs` lets it happen, recorded by the testkit's wrappers; `read_back.rs` asks the broker
//! what it has, `verdict.rs` judges history and broker, `report.rs` says it.

mod broker;
mod done;
mod event;
mod handle;
mod latency;
mod options;
mod plan;
mod progress;
mod publish;
mod read_back;
mod report;
mod run;
mod verdict;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use ebus::{Error, ErrorKind};
use ebus_testkit::history;

use latency::Latency;
pub(crate) use options::Options;
use plan::Plan;
use progress::Progress;
use read_back::ReadBack;
use report::{About, Report};
use run::{MAX_IN_FLIGHT, Run};
use verdict::{Case, judge};

/// Runs the demo and prints its verdict; whether every promise held.
pub(crate) async fn run(options: Options) -> Result<bool, Error> {
    options.check()?;
    let file = options.history.as_deref().map(|path| create(path).map(|file| (path, file))).transpose()?;
    let plan = Plan::new(&options);
    let run = Run::prepare(&options, plan).await?;
    let progress = Progress::new(run.plan.events());
    let course = run.go(&progress).await?;
    progress.say("judging");
    let events = run.history.events();
    if let Some((path, file)) = file {
        history::write(BufWriter::new(file), &events).map_err(|error| not_written(path, error))?;
    }
    let back = ReadBack::of(&run).await?;
    let case = Case {
        plan: &run.plan,
        topic: run.topic.as_str(),
        group: run.group.as_str(),
        max_in_flight: MAX_IN_FLIGHT,
    };
    let verdict = judge(&events, &back, &case);
    let latency = Latency::of(&events, run.topic.as_str(), &run.plan);
    let about = About {
        backend: run.backend.backend,
        durable: run.backend.durable,
        members: run.members,
        churn: options.churn,
        topic: run.topic.as_str(),
        plan: &run.plan,
    };
    let report = Report::new(&verdict, &latency, &course, &about);
    progress.end();
    let text = if options.json {
        serde_json::to_string(&report).map(|json| json + "\n").map_err(|error| failed("write JSON", error))?
    } else {
        report::text(&report, &verdict, &latency, &course, &about).map_err(|error| failed("write", error))?
    };
    // A reader that is gone, such as `head`, does not change the verdict.
    let _ = std::io::stdout().write_all(text.as_bytes());
    run.reader.close(Duration::from_secs(10)).await?;
    Ok(report.kept)
}

/// Before the run: a path that cannot be written to should not cost one.
fn create(path: &Path) -> Result<File, Error> {
    File::create(path).map_err(|error| not_written(path, error))
}

fn not_written(path: &Path, error: std::io::Error) -> Error {
    Error::new(
        ErrorKind::ConfigInvalid,
        format!("the history cannot be written: {error}; give another --history"),
    )
    .with_operation("demo")
    .with_context("file", path.display())
    .with_source(error)
}

fn failed(operation: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Unexpected, error.to_string()).with_operation(operation).with_source(error)
}
