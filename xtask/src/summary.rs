//! Reads what test binaries print, as `cargo test` shows it, and sums it up.

use std::{collections::HashMap, fmt};

/// What one test binary, or the doc tests of one crate, did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Binary {
    pub(crate) name: String,
    pub(crate) passed: Vec<String>,
    pub(crate) failed: Vec<String>,
    /// Name and reason.
    pub(crate) ignored: Vec<(String, String)>,
    /// The counts of its last line: passed, failed, ignored. None when it did not come to its end.
    pub(crate) counts: Option<[usize; 3]>,
}

/// All binaries of a run, in their order.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    /// File name of an executable to the crate and target it was built from.
    names: HashMap<String, String>,
    pub(crate) binaries: Vec<Binary>,
}

impl Summary {
    /// Knows the executables by these names.
    pub(crate) fn new(names: HashMap<String, String>) -> Self {
        Self { names, binaries: Vec::new() }
    }

    /// Reads one line of output.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(name) = self.begins(line) {
            self.binaries.push(Binary { name, ..Binary::default() });
            return;
        }
        let Some(binary) = self.binaries.last_mut() else { return };
        if let Some(result) = line.strip_prefix("test result: ") {
            binary.counts = counts(result);
        } else if let Some((name, outcome)) =
            line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
        {
            binary.outcome(name.trim_end(), outcome);
        }
    }

    /// `Running tests/x.rs (target/debug/deps/x-0123456789abcdef)` or `Doc-tests x`.
    fn begins(&self, line: &str) -> Option<String> {
        let line = line.trim_start();
        if let Some(name) = line.strip_prefix("Doc-tests ") {
            return Some(format!("{} (doc)", name.replace('_', "-")));
        }
        let (source, path) = line.strip_prefix("Running ")?.strip_suffix(')')?.rsplit_once(" (")?;
        let file = path.rsplit(['/', '\\']).next()?;
        Some(self.names.get(file).cloned().unwrap_or_else(|| format!("{source} ({file})")))
    }

    /// Tests that failed, as `binary: test`; a binary that did not come to its end is one of them.
    pub(crate) fn failed(&self) -> Vec<String> {
        let mut failed = Vec::new();
        for binary in &self.binaries {
            let name = &binary.name;
            failed.extend(binary.failed.iter().map(|test| format!("{name}: {test}")));
            match binary.counts {
                None => failed.push(format!("{name}: did not come to its end")),
                // Output of the tests can hide a line of the harness; its counts cannot be hidden.
                Some([_, count, _]) if count > binary.failed.len() => {
                    failed.push(format!("{name}: {} more, see above", count - binary.failed.len()));
                }
                Some(_) => {}
            }
        }
        failed
    }
}

impl Binary {
    fn outcome(&mut self, name: &str, outcome: &str) {
        let ignored = outcome.strip_prefix("ignored");
        match (outcome, ignored) {
            ("ok", _) => self.passed.push(name.to_owned()),
            ("FAILED", _) => self.failed.push(name.to_owned()),
            // The built-in harness writes `ignored, reason`, libtest-mimic `ignored (reason)`.
            (_, Some(reason)) => {
                let bare = reason.strip_prefix(", ").or_else(|| reason.strip_prefix(" (")?.strip_suffix(')'));
                self.ignored.push((name.to_owned(), bare.unwrap_or("no reason given").to_owned()));
            }
            _ => {}
        }
    }
}

/// Reads `ok. 3 passed; 0 failed; 1 ignored; ...`.
fn counts(result: &str) -> Option<[usize; 3]> {
    let count = |what: &str| {
        let before = result.split(what).next()?.trim_end();
        before.rsplit(' ').next()?.parse().ok()
    };
    Some([count("passed")?, count("failed")?, count("ignored")?])
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.binaries.iter().map(|binary| binary.name.len()).max().unwrap_or(0);
        writeln!(f, "{:<width$}  passed  failed  ignored", "")?;
        let mut total = [0; 3];
        for binary in &self.binaries {
            let Some(counts) = binary.counts else {
                writeln!(f, "{:<width$}  did not come to its end", binary.name)?;
                continue;
            };
            if counts == [0; 3] {
                continue;
            }
            let [passed, failed, ignored] = counts;
            writeln!(f, "{:<width$}  {passed:>6}  {failed:>6}  {ignored:>7}", binary.name)?;
            total.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
        }
        let [passed, failed, ignored] = total;
        writeln!(f, "{:<width$}  {passed:>6}  {failed:>6}  {ignored:>7}", "all")?;
        self.ignored(f)?;
        let failed = self.failed();
        if !failed.is_empty() {
            writeln!(f, "\nfailed:")?;
        }
        failed.iter().try_for_each(|test| writeln!(f, "  {test}"))
    }
}

impl Summary {
    fn ignored(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
        for binary in &self.binaries {
            for (test, reason) in &binary.ignored {
                let test = format!("{}: {test}", binary.name);
                match reasons.iter_mut().find(|(known, _)| known == reason) {
                    Some((_, tests)) => tests.push(test),
                    None => reasons.push((reason, vec![test])),
                }
            }
        }
        for (reason, tests) in reasons {
            writeln!(f, "\nignored, {reason}:")?;
            tests.iter().try_for_each(|test| writeln!(f, "  {test}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "   Compiling x v0.1.0
     Running tests/conformance.rs (target/debug/deps/conformance-0123456789abcdef)

running 4 tests
test a::one   ... ok
test a::two ... FAILED
test three ... ignored, takes an hour
test four ... ignored (EBUS_KAFKA_URL is not set; run `cargo xtask test`)

test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s
   Doc-tests ebus_core
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
     Running unittests src/lib.rs (target/debug/deps/x-fedcba9876543210)
test five ... ok
error: test failed, to rerun pass `-p x --lib`
";

    fn summary() -> Summary {
        let names = [("conformance-0123456789abcdef".to_owned(), "x: conformance".to_owned())];
        let mut summary = Summary::new(names.into());
        OUTPUT.lines().for_each(|line| summary.line(line));
        summary
    }

    #[test]
    fn both_harnesses_are_read() {
        let summary = summary();
        let first = &summary.binaries[0];
        assert_eq!(first.name, "x: conformance");
        assert_eq!(
            (first.passed.as_slice(), first.failed.as_slice()),
            (&["a::one".to_owned()][..], &["a::two".to_owned()][..])
        );
        assert_eq!(first.ignored[0], ("three".to_owned(), "takes an hour".to_owned()));
        assert_eq!(first.ignored[1].1, "EBUS_KAFKA_URL is not set; run `cargo xtask test`");
        assert_eq!(first.counts, Some([1, 1, 2]));
        assert_eq!(summary.binaries[1].name, "ebus-core (doc)");
    }

    #[test]
    fn a_binary_that_died_is_a_failure() {
        let failed = summary().failed();
        assert_eq!(failed.len(), 2, "{failed:?}");
        assert!(failed[1].ends_with("did not come to its end"), "{failed:?}");
    }

    #[test]
    fn the_summary_says_why_tests_were_ignored() {
        let text = summary().to_string();
        assert!(text.contains("ignored, takes an hour:\n  x: conformance: three\n"), "{text}");
    }
}
