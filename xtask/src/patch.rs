//! What a file in `xtask/broken` says.
//!
//! ```text
//! # what: commit past an unfinished message
//! # run: cargo test -p ebus-memory --test conformance d13
//! # expect: d13
//! # needs: kafka
//! --- a/crates/ebus-core/src/ledger.rs
//! +++ b/crates/ebus-core/src/ledger.rs
//! ...
//! ```
//! - `what`: which promise is broken, and how.
//! - `run`: the cargo command that must go red.
//! - `expect`: a part of the name of the test that must fail; may stand more than once, then each must.
//! - `needs`: servers to start, separated by commas; may be left out.
//! - `within`: seconds that the command may take, 600 if left out.
//!
//! The rest is a patch as `git diff` writes it.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use ebus_testkit::brokers::Need;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    pub(crate) name: String,
    pub(crate) what: String,
    pub(crate) run: Vec<String>,
    pub(crate) expect: Vec<String>,
    pub(crate) needs: Vec<Need>,
    pub(crate) within: Duration,
}

/// Reads all patches of a directory, by name.
pub(crate) fn read_all(dir: &Path) -> Result<Vec<Patch>> {
    let entries = fs::read_dir(dir).with_context(|| format!("could not read {}", dir.display()))?;
    let mut patches = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "patch") {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        patches.push(parse(&name, &text).with_context(|| format!("in {}", path.display()))?);
    }
    patches.sort_by(|a: &Patch, b| a.name.cmp(&b.name));
    Ok(patches)
}

fn parse(name: &str, text: &str) -> Result<Patch> {
    let (mut what, mut run, mut within) = (String::new(), Vec::new(), Duration::from_secs(600));
    let (mut expect, mut needs) = (Vec::new(), Vec::new());
    for line in text.lines().map_while(|line| line.strip_prefix('#')) {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match key.trim() {
            "what" => what = value.to_owned(),
            "run" => run = value.split_whitespace().map(str::to_owned).collect(),
            "expect" => expect.push(value.to_owned()),
            "within" => within = Duration::from_secs(value.parse().context("`within` is in seconds")?),
            "needs" => needs = value.split(',').map(|name| need(name.trim())).collect::<Result<_>>()?,
            other => bail!("unknown header `{other}`; there are what, run, expect, needs and within"),
        }
    }
    if what.is_empty() || run.first().is_none_or(|program| program != "cargo") || expect.is_empty() {
        bail!("the headers `what`, `run` (a cargo command) and `expect` are needed");
    }
    Ok(Patch { name: name.to_owned(), what, run, expect, needs, within })
}

fn need(name: &str) -> Result<Need> {
    Need::ALL.into_iter().find(|need| need.name() == name).with_context(|| format!("unknown server `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_up_to_the_patch() {
        let text = "# what: no fence\n# run: cargo test -p x d13\n# expect: d13\n# needs: nats\n--- a/x\n# run: no\n";
        let patch = parse("p", text).unwrap();
        assert_eq!(patch.run, ["cargo", "test", "-p", "x", "d13"]);
        assert_eq!(
            (patch.expect.as_slice(), patch.needs.as_slice()),
            (&["d13".to_owned()][..], &[Need::Nats][..])
        );
    }

    #[test]
    fn a_patch_without_an_expectation_or_with_a_typo_is_refused() {
        assert!(parse("p", "# what: x\n# run: cargo test\n").is_err());
        assert!(parse("p", "# what: x\n# run: cargo test\n# expects: d13\n").is_err());
    }
}
