//! The verdict as a person reads it, and as a program does.

use std::fmt::{self, Display, Write};

use serde::Serialize;

use super::latency::Latency;
use super::plan::Plan;
use super::run::Course;
use super::verdict::Verdict;

/// The object that `--json` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) backend: &'static str,
    pub(crate) published: u64,
    pub(crate) handled: u64,
    pub(crate) retries: u64,
    pub(crate) dead_letters: u64,
    pub(crate) lost: u64,
    pub(crate) reordered: u64,
    pub(crate) overlapping: u64,
    pub(crate) duplicates: u64,
    pub(crate) publish_per_s: f64,
    pub(crate) handle_per_s: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    pub(crate) quick_keys_p99_ms: f64,
    /// Every promise held, nothing ran twice, and all that was planned was done.
    pub(crate) kept: bool,
    pub(crate) seed: u64,
    pub(crate) members: u32,
    pub(crate) topic: String,
    /// What broke, in words.
    pub(crate) broken: Vec<String>,
}

/// What is beside the verdict.
#[derive(Debug)]
pub(crate) struct About<'a> {
    pub(crate) backend: &'static str,
    pub(crate) durable: bool,
    pub(crate) members: u32,
    pub(crate) churn: bool,
    pub(crate) topic: &'a str,
    pub(crate) plan: &'a Plan,
}

impl Report {
    pub(crate) fn new(verdict: &Verdict, latency: &Latency, course: &Course, about: &About<'_>) -> Self {
        let per_s = |count: u64, time: std::time::Duration| match time.as_secs_f64() {
            seconds if seconds > 0.0 => (count as f64 / seconds).round(),
            _ => 0.0,
        };
        let oracle = &verdict.oracle;
        Self {
            backend: about.backend,
            published: verdict.published,
            handled: oracle.handled,
            retries: oracle.retries,
            dead_letters: verdict.dead_letters,
            lost: verdict.lost,
            reordered: verdict.reordered,
            overlapping: oracle.overlapping,
            duplicates: verdict.duplicates,
            publish_per_s: per_s(verdict.published, latency.publishing),
            handle_per_s: per_s(oracle.handled, latency.handling),
            p50_ms: latency.all.p50_ms,
            p99_ms: latency.all.p99_ms,
            max_ms: latency.all.max_ms,
            quick_keys_p99_ms: latency.quick.p99_ms,
            kept: verdict.kept() && course.trouble.is_empty(),
            seed: about.plan.seed,
            members: about.members,
            topic: about.topic.to_owned(),
            broken: broken(verdict, course),
        }
    }
}

/// One line for each promise that was broken, and for what else went wrong.
fn broken(verdict: &Verdict, course: &Course) -> Vec<String> {
    let mut lines: Vec<String> = rows(verdict).filter(|row| row.count > 0).map(|row| row.summary()).collect();
    lines.extend(course.trouble.iter().cloned());
    lines
}

struct Row {
    promise: &'static str,
    count: u64,
    what: &'static str,
}

impl Row {
    fn summary(&self) -> String {
        format!("{}: {} {}", self.promise, number(self.count), self.what)
    }
}

fn rows(verdict: &Verdict) -> impl Iterator<Item = Row> {
    let oracle = &verdict.oracle;
    [
        ("G1 no loss", verdict.lost, "lost"),
        ("G2, G7 order per key", verdict.reordered, "reordered"),
        ("G3 no overlap", oracle.overlapping, "overlapping"),
        ("G5 bounded", oracle.unbounded, "runs above the limit"),
        ("G6 no duplicates", verdict.duplicates + oracle.replayed, "handled, stored or buried twice"),
        ("committed to the end", verdict.uncommitted, "partitions are not"),
        ("read back", verdict.unexpected, "that should not be there"),
        ("complete", verdict.unpublished, "events were not acknowledged"),
        ("history", oracle.malformed + oracle.delayed, "events that cannot be true"),
    ]
    .into_iter()
    .map(|(promise, count, what)| Row { promise, count, what })
}

/// The report for people.
pub(crate) fn text(
    report: &Report,
    verdict: &Verdict,
    latency: &Latency,
    course: &Course,
    about: &About<'_>,
) -> Result<String, fmt::Error> {
    let plan = about.plan;
    let mut out = String::new();
    let churn = if about.churn { ", one leaves and one joins" } else { "" };
    writeln!(
        out,
        "{} events of {} aggregates ({} slow) on {}, {} member{}{churn}, seed {}\n",
        number(plan.events()),
        number(u64::from(plan.aggregates())),
        plan.slow,
        about.backend,
        about.members,
        if about.members == 1 { "" } else { "s" },
        plan.seed
    )?;
    let mut line =
        |name: &str, value: &dyn Display, more: String| writeln!(out, "  {name:<22}{value:>12}  {more}");
    line("published", &number(report.published), format!("{}/s", number(report.publish_per_s as u64)))?;
    line("handled", &number(report.handled), format!("{}/s", number(report.handle_per_s as u64)))?;
    line("retries", &number(report.retries), "failed or panicked, then handled".into())?;
    line("dead letters", &number(report.dead_letters), "rejected for good, each read back".into())?;
    let ms = |of: f64| format!("{of:.1} ms");
    let all = &latency.all;
    line(
        "publish to handled",
        &ms(all.p50_ms),
        format!("p50, p99 {}, max {}", ms(all.p99_ms), ms(all.max_ms)),
    )?;
    if plan.slow > 0 {
        let more =
            format!("p99 of the {} keys that are not slow", number(u64::from(plan.aggregates() - plan.slow)));
        line("", &ms(report.quick_keys_p99_ms), more)?;
    }
    writeln!(out)?;
    for row in rows(verdict) {
        let held = if row.count == 0 { "held" } else { "BROKEN" };
        writeln!(out, "  {:<22}{:>12}  {}: {held}", row.promise, number(row.count), row.what)?;
    }
    if verdict.trimmed > 0 {
        let trimmed = number(verdict.trimmed);
        writeln!(
            out,
            "\n  {trimmed} events were given up by the topic's retention and could not be read back."
        )?;
    }
    for trouble in &course.trouble {
        writeln!(out, "\n  {trouble}")?;
    }
    if !verdict.oracle.kept() {
        writeln!(out)?;
        for finding in &verdict.oracle.findings {
            writeln!(out, "  {finding}")?;
        }
    }
    for finding in &verdict.findings {
        writeln!(out, "  {finding}")?;
    }
    if about.durable {
        writeln!(out, "\n  The topics {0} and {0}.dlq stay on the broker.", about.topic)?;
    }
    writeln!(out)?;
    if report.kept {
        writeln!(out, "kept: every promise held")?;
    } else {
        writeln!(out, "broken: {}", report.broken.join("; "))?;
    }
    Ok(out)
}

/// With a comma after every third digit.
fn number(of: u64) -> String {
    let digits = of.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (of, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(number(of), text);
        }
    }
}
