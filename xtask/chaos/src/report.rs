//! What is said at the end: for people, and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use ebus_testkit::oracle;
use serde::{Deserialize, Serialize};

use crate::blocked::Figures;
use crate::options::{Ground, Mode};
use crate::times::{Spread, Times};
use crate::verdict::Back;

/// One thing that was done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) at_ns: u64,
    /// `None` when it only ended something.
    pub(crate) kind: Option<String>,
    pub(crate) member: Option<String>,
    pub(crate) text: String,
}

/// What a run was, kept beside its histories so that it can be judged again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunFile {
    #[serde(flatten)]
    pub(crate) ground: Ground,
    pub(crate) members: u32,
    pub(crate) minutes: f64,
    /// One key was blocked, and its owners were ended.
    #[serde(default)]
    pub(crate) blocked: bool,
    #[serde(default)]
    pub(crate) mode: Mode,
    pub(crate) events_per_second: u32,
    pub(crate) seed: u64,
    /// Histories, and whether their process was killed; relative to this file.
    pub(crate) parts: Vec<(String, bool)>,
    pub(crate) done: Vec<Done>,
    /// What went wrong beside the promises.
    pub(crate) trouble: Vec<String>,
    /// `None` when the broker could not be read back.
    pub(crate) back: Option<Back>,
}

impl RunFile {
    pub(crate) const NAME: &str = "run.json";

    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(Self::NAME);
        std::fs::write(&path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("could not write {}", path.display()))
    }

    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(Self::NAME);
        let bytes = std::fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("{} is no run", path.display()))
    }

    /// How often each kind of fault was.
    fn faults(&self) -> BTreeMap<String, u64> {
        let mut faults = BTreeMap::new();
        for kind in self.done.iter().filter_map(|done| done.kind.clone()) {
            *faults.entry(kind).or_default() += 1;
        }
        faults
    }
}

/// Everything that is said.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    kept: bool,
    #[serde(flatten)]
    ground: Ground,
    members: u32,
    minutes: f64,
    mode: Mode,
    events_per_second: u32,
    seed: u64,
    faults: BTreeMap<String, u64>,
    published: u64,
    acknowledged: u64,
    handled: u64,
    dead_letters: u64,
    redriven: u64,
    runs: u64,
    retries: u64,
    replayed: u64,
    oldest_replayed_ms: f64,
    held_up: u64,
    oldest_held_up_ms: f64,
    excused_overlaps: u64,
    cut_short: u64,
    unstarted_at_crashes: u64,
    unstarted: u64,
    lost: u64,
    reordered: u64,
    overlapping: u64,
    duplicates: u64,
    misplaced: u64,
    unbounded: u64,
    malformed: u64,
    torn_lines: usize,
    back: Option<Back>,
    trouble: Vec<String>,
    lease_ms: u128,
    times: Times,
    blocked: Option<Figures>,
    judging_ms: u128,
    findings: Vec<String>,
}

/// What judging took and met.
#[derive(Debug)]
pub(crate) struct Judging {
    /// Of a run with a blocked key.
    pub(crate) blocked: Option<Figures>,
    pub(crate) torn: usize,
    pub(crate) took: std::time::Duration,
    pub(crate) lease: std::time::Duration,
}

impl Report {
    pub(crate) fn new(run: &RunFile, verdict: &oracle::Verdict, times: Times, judging: Judging) -> Self {
        let back_broken = run.back.as_ref().is_none_or(|back| back.broken() > 0);
        // The dead-letter topic has publishes too: those of the publishers are what is asked for.
        Self {
            kept: verdict.kept()
                && !back_broken
                && run.trouble.is_empty()
                && judging.blocked.as_ref().is_none_or(Figures::kept),
            ground: run.ground,
            members: run.members,
            minutes: run.minutes,
            mode: run.mode,
            events_per_second: run.events_per_second,
            seed: run.seed,
            faults: run.faults(),
            published: verdict.published,
            acknowledged: verdict.stored,
            handled: verdict.handled,
            dead_letters: verdict.dead_letters,
            redriven: verdict.redriven,
            runs: verdict.runs,
            retries: verdict.retries,
            replayed: verdict.replayed,
            oldest_replayed_ms: verdict.oldest_replayed.as_secs_f64() * 1e3,
            held_up: verdict.held_up,
            oldest_held_up_ms: verdict.oldest_held_up.as_secs_f64() * 1e3,
            excused_overlaps: verdict.excused_overlaps,
            cut_short: verdict.cut_short,
            unstarted_at_crashes: verdict.unstarted_at_crashes,
            unstarted: verdict.unstarted,
            lost: verdict.lost,
            reordered: verdict.reordered,
            overlapping: verdict.overlapping,
            duplicates: verdict.duplicates,
            misplaced: verdict.misplaced,
            unbounded: verdict.unbounded,
            malformed: verdict.malformed,
            torn_lines: judging.torn,
            back: run.back.clone(),
            trouble: run.trouble.clone(),
            lease_ms: judging.lease.as_millis(),
            times,
            blocked: judging.blocked,
            judging_ms: judging.took.as_millis(),
            findings: verdict.findings.iter().map(ToString::to_string).collect(),
        }
    }

    pub(crate) fn kept(&self) -> bool {
        self.kept
    }

    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        std::fs::write(file, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("could not write {}", file.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        if let Some(back) = &self.back {
            back.findings.iter().try_for_each(|finding| writeln!(f, "read back: {finding}"))?;
        }
        self.trouble.iter().try_for_each(|trouble| writeln!(f, "trouble: {trouble}"))?;
        let Self { ground, members, minutes, events_per_second, seed, .. } = self;
        writeln!(
            f,
            "\n{ground}, {members} members, {minutes:.2} min, {events_per_second} events/s, seed {seed}{}",
            self.mode.args().iter().map(|arg| format!(" {arg}")).collect::<String>()
        )?;
        let faults: Vec<_> = self.faults.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        writeln!(f, "faults            {}", faults.join(", "))?;
        writeln!(
            f,
            "events            {} published, {} acknowledged, {} handled, {} dead letters ({} redriven); {} runs, {} retries",
            self.published,
            self.acknowledged,
            self.handled,
            self.dead_letters,
            self.redriven,
            self.runs,
            self.retries
        )?;
        writeln!(
            f,
            "replayed          {}, the oldest finished {:.0} ms before the crash, but for {} whose commits other faults held up \
             ({:.0} ms); {} excused overlaps, {} torn lines",
            self.replayed,
            self.oldest_replayed_ms,
            self.held_up,
            self.oldest_held_up_ms,
            self.excused_overlaps,
            self.torn_lines
        )?;
        if self.mode.at_most_once {
            writeln!(
                f,
                "at most once      {} cut short, {} committed and not started at crashes, {} given up",
                self.cut_short, self.unstarted_at_crashes, self.unstarted
            )?;
        }
        match &self.back {
            Some(back) => writeln!(
                f,
                "read back         {} stored, {} of them uncertain, {} dead letters ({} repeated); {} lost, {} reordered, \
                 {} duplicates, {} unexpected, {} uncommitted",
                back.stored,
                back.uncertain,
                back.dead_letters,
                back.repeated_letters,
                back.lost,
                back.reordered,
                back.duplicates,
                back.unexpected,
                back.uncommitted
            )?,
            None => writeln!(f, "read back         not possible")?,
        }
        let shown = |spread: &Spread| match spread.count {
            0 => "none".to_owned(),
            count => format!("{count}, p50 {:.0} ms, max {:.0} ms", spread.p50_ms, spread.max_ms),
        };
        for (kind, take_over) in &self.times.take_overs {
            writeln!(
                f,
                "{:<17} {} (all: {}); lease {} ms",
                format!("after {kind}"),
                shown(&take_over.alone),
                shown(&take_over.all),
                self.lease_ms
            )?;
        }
        self.blocked.iter().try_for_each(|figures| write!(f, "{figures}"))?;
        writeln!(f, "staying           longest gap in a hand-over: {}", shown(&self.times.staying))?;
        let stall = &self.times.stall;
        writeln!(
            f,
            "longest stall     {:.0} ms, partition {} at {:.1} s: {}",
            stall.ms,
            stall.partition,
            stall.at_s,
            stall.beside.join(", ")
        )?;
        writeln!(
            f,
            "verdict           {} lost, {} reordered, {} overlapping, {} duplicates, {} misplaced, {} unbounded, {} malformed \
             (judged in {:.1} s)",
            self.lost,
            self.reordered,
            self.overlapping,
            self.duplicates,
            self.misplaced,
            self.unbounded,
            self.malformed,
            self.judging_ms as f64 / 1e3
        )?;
        write!(f, "{}", if self.kept { "kept" } else { "NOT KEPT" })
    }
}
