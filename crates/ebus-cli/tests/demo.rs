//! The program as people and scripts run it.

use std::collections::HashMap;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

fn ebus(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ebus"));
    command.args(arguments).env_remove("RUST_LOG").output().expect("the program starts")
}

fn text(of: &[u8]) -> String {
    String::from_utf8(of.to_vec()).expect("is text")
}

const SMALL: [&str; 7] = ["demo", "--events", "2000", "--aggregates", "50", "--slow-ms", "5"];

#[test]
fn a_small_run_keeps_every_promise_and_says_so() {
    let arguments =
        ["--churn", "--fail-rate", "0.05", "--reject-rate", "0.02", "--panic-rate", "0.02", "--seed", "11"];
    let output = ebus(&[&SMALL[..], &arguments].concat());
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert_eq!(out.lines().last(), Some("kept: every promise held"));
    assert!(out.contains("seed 11"), "{out}");
    assert_eq!(err, "", "deliberate panics print nothing");
}

#[test]
fn json_is_one_object_with_every_figure() {
    let arguments =
        ["--json", "--reject-rate", "0.02", "--fail-rate", "0.05", "--slow-keys", "3", "--seed", "12"];
    let output = ebus(&[&SMALL[..], &arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().count(), 1);
    let report: Value = serde_json::from_slice(&output.stdout).expect("is JSON");
    assert_eq!(report["backend"], "memory");
    assert_eq!(report["kept"], true);
    assert_eq!(report["seed"], 12);
    let count = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report}"));
    assert_eq!(count("published"), 2_000);
    assert_eq!(count("handled") + count("dead_letters"), 2_000);
    assert!(count("dead_letters") > 0 && count("retries") > 0, "{report}");
    for name in ["lost", "reordered", "overlapping", "duplicates"] {
        assert_eq!(count(name), 0, "{name}");
    }
    let figure = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name} in {report}"));
    for name in ["publish_per_s", "handle_per_s", "p50_ms", "p99_ms", "max_ms", "quick_keys_p99_ms"] {
        assert!(figure(name) > 0.0, "{name} in {report}");
    }
    assert!(figure("p50_ms") <= figure("p99_ms") && figure("p99_ms") <= figure("max_ms"), "{report}");
}

#[test]
fn the_same_seed_gives_the_same_fates() {
    let run = || {
        let arguments =
            ["--json", "--reject-rate", "0.05", "--seed", "13", "--members", "1", "--slow-keys", "0"];
        let report: Value =
            serde_json::from_slice(&ebus(&[&SMALL[..], &arguments].concat()).stdout).expect("is JSON");
        (report["dead_letters"].clone(), report["retries"].clone())
    };
    assert_eq!(run(), run());
}

#[test]
fn the_history_can_be_judged_by_somebody_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("history.jsonl");
    let path = file.to_str().expect("is text");
    let arguments = ["--history", path, "--reject-rate", "0.02", "--panic-rate", "0.02", "--churn", "--json"];
    let output = ebus(&[&SMALL[..], &arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("is JSON");

    let lines = std::fs::read_to_string(&file).expect("was written");
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let known = [
        "call",
        "stored",
        "failed",
        "start",
        "end",
        "settle",
        "dead_letter",
        "assigned",
        "revoking",
        "released",
        "lost",
    ];
    let mut kinds: HashMap<&str, u64> = HashMap::new();
    let mut last = 0;
    for event in &events {
        let kind = event["kind"].as_str().expect("has a kind");
        assert!(known.contains(&kind), "{event}");
        *kinds.entry(kind).or_default() += 1;
        let at = event["at_ns"].as_u64().expect("has a time");
        assert!(at >= last, "time goes back at {event}");
        last = at;
    }
    let topic = report["topic"].as_str().expect("named");
    let of = |kind: &str| {
        events.iter().filter(|event| event["kind"] == kind && event["topic"] == topic).count() as u64
    };
    assert_eq!((of("call"), of("stored")), (2_000, 2_000));
    assert_eq!(of("start"), of("end"));
    assert_eq!(kinds["dead_letter"], report["dead_letters"].as_u64().expect("a count"));
    assert!(kinds["revoking"] > 0 && kinds["released"] > 0, "{kinds:?}");
    let end = events.iter().find(|event| event["kind"] == "end").expect("there are runs");
    for field in
        ["group", "topic", "partition", "offset", "key", "version", "attempt", "member", "epoch", "outcome"]
    {
        assert!(!end[field].is_null(), "{field} in {end}");
    }
    // Order per key, looked at without the oracle.
    let mut versions: HashMap<&str, u64> = HashMap::new();
    for end in events.iter().filter(|event| event["kind"] == "end") {
        if end["outcome"] == "ack" || end["outcome"] == "reject" {
            let key = end["key"].as_str().expect("has a key");
            let version = end["version"].as_u64().expect("has a version");
            let before = versions.insert(key, version).unwrap_or(0);
            assert_eq!(version, before + 1, "{key}");
        }
    }
}

#[test]
fn a_run_that_could_not_publish_everything_is_not_kept() {
    let arguments = ["--url", "memory://?max_message_bytes=100", "--json"];
    let output = ebus(&[&SMALL[..], &arguments].concat());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("is JSON");
    assert_eq!((&report["kept"], &report["published"]), (&Value::Bool(false), &Value::from(0)));
    assert!(report["broken"].to_string().contains("at most 100"), "{report}");
    assert_eq!(report["broken"].as_array().map(Vec::len), Some(2), "each said once: {report}");

    let output = ebus(&[&SMALL[..], &arguments[..2]].concat());
    assert_eq!(output.status.code(), Some(1));
    let out = text(&output.stdout);
    assert!(out.lines().last().is_some_and(|line| line.starts_with("broken: complete: 2,000")), "{out}");
}

#[test]
fn a_log_that_is_full_slows_the_run_and_breaks_nothing() {
    let output =
        ebus(&[&SMALL[..], &["--url", "memory://?retain_messages=150", "--slow-keys", "0"]].concat());
    let out = text(&output.stdout);
    assert!(output.status.success(), "{out}{}", text(&output.stderr));
    assert!(out.contains("given up by the topic's retention"), "{out}");
}

#[test]
fn bad_arguments_are_named_and_nothing_runs() {
    for (arguments, says) in [
        (&["demo", "--events", "0"][..], "--events"),
        (&["demo", "--fail-rate", "2"], "share from 0 to 1"),
        (&["demo", "--events", "10", "--aggregates", "20"], "--aggregates"),
        (&["demo", "--aggregates", "5"], "--slow-keys"),
        (&["demo", "--colour", "red"], "--colour"),
        (&["demo", "--members", "0"], "--members"),
        (&["demo", "--url", "amqp://localhost"], "kafka://"),
        (&["demo", "--url", "memory://?colour=red"], "colour"),
        (&["demo", "--url", "localhost:9092"], "memory://"),
        (&["demo", "--history", "/no/such/folder/history.jsonl"], "--history"),
        (&["demi"], "demi"),
    ] {
        let output = ebus(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(says), "{arguments:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
    }
}

#[test]
fn i06_a_backend_that_the_build_lacks_names_its_feature() {
    let all = [("kafka", cfg!(feature = "kafka")), ("nats", cfg!(feature = "nats"))];
    for (backend, _) in all.into_iter().filter(|(_, built)| !built) {
        let output = ebus(&["demo", "--url", &format!("{backend}://localhost:1")]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(&format!("--features {backend}")), "{}", text(&output.stderr));
    }
}

#[test]
fn i05_a_broker_that_does_not_answer_is_an_error_in_bounded_time() {
    let all = [("kafka", cfg!(feature = "kafka")), ("nats", cfg!(feature = "nats"))];
    for (backend, _) in all.into_iter().filter(|(_, built)| *built) {
        let begun = Instant::now();
        // Port 1 on this machine: nobody listens.
        let output = ebus(&["demo", "--url", &format!("{backend}://127.0.0.1:1")]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("no broker answers"), "{}", text(&output.stderr));
        assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    }
}
