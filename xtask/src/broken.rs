//! `cargo xtask broken`: a test that cannot fail is a defect, so break the code and see it fail.
//!
//! Every patch of `xtask/broken` is applied to a copy of the tree under `target/broken`, with a target directory of its own,
//! and the command it names must go red in the case it names. The copy must be green before.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use ebus_testkit::brokers::Need;

use crate::{
    patch::{self, Patch},
    servers::Servers,
    stream,
    summary::Summary,
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only patches whose file name contains one of these
    names: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    let dir = workspace.root().join("xtask/broken");
    let mut patches = patch::read_all(&dir)?;
    patches.retain(|patch| args.names.is_empty() || args.names.iter().any(|name| patch.name.contains(name)));
    if patches.is_empty() {
        bail!("no patch to try in {}", dir.display());
    }
    let needs: HashSet<Need> = patches.iter().flat_map(|patch| patch.needs.iter().copied()).collect();
    let needs: Vec<Need> = needs.into_iter().collect();
    let servers = Servers::start(&workspace.brokers(), &needs)?;
    if let Some((need, missing)) = servers.missing().first() {
        bail!("a patch needs {}, but {missing}", need.name());
    }
    let copy = Copy { root: workspace.root(), dir: workspace.target().join("broken"), servers };

    let mut report = Vec::new();
    copy.sync()?;
    let mut green = HashMap::new();
    for patch in &patches {
        if !green.contains_key(&patch.run) {
            println!("unpatched: {}", patch.run.join(" "));
            green.insert(&patch.run, copy.test(patch)?);
        }
    }
    for patch in &patches {
        println!("{}: {}", patch.name, patch.what);
        let verdict = match green.get(&patch.run).map(|run| run.is_green(patch)) {
            Some(Err(why)) => Err(format!("without the patch: {why}")),
            _ => {
                copy.sync()?;
                copy.apply(&dir.join(format!("{}.patch", patch.name)))
                    .and_then(|()| copy.test(patch))
                    .map_or_else(|error| Err(format!("{error:#}")), |run| run.is_red(patch))
            }
        };
        println!("    {}", verdict.as_ref().unwrap_or_else(|why| why));
        report.push((patch, verdict));
    }
    copy.sync()?;
    println!();
    for (patch, verdict) in &report {
        let (word, text) = match verdict {
            Ok(cases) => ("red", cases),
            Err(why) => ("MISSED", why),
        };
        println!("{word:<6} {}: {text}", patch.name);
    }
    Ok(report.iter().all(|(_, verdict)| verdict.is_ok()))
}

/// A copy of the tree to break.
#[derive(Debug)]
struct Copy<'a> {
    root: &'a Path,
    dir: PathBuf,
    servers: Servers,
}

/// What became of one command.
#[derive(Debug)]
enum Run {
    Ended { success: bool, built: bool, summary: Summary, output: Vec<String> },
    TooLong,
}

impl Copy<'_> {
    fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    /// Makes the copy equal to the tree as it is in the working directory. What is equal is not written: cargo builds again
    /// what was.
    fn sync(&self) -> Result<()> {
        let tree = self.tree();
        let listed = git(self.root, &["ls-files", "-z", "--cached", "--others", "--exclude-standard"])?;
        let wanted: HashSet<PathBuf> =
            listed.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
        for path in files(&tree)? {
            let kept = path
                .strip_prefix(&tree)
                .is_ok_and(|path| wanted.contains(path) || path == Path::new("Cargo.lock"));
            if !kept {
                fs::remove_file(&path).with_context(|| format!("could not remove {}", path.display()))?;
            }
        }
        for path in wanted {
            let (from, to) = (self.root.join(&path), tree.join(&path));
            // A file that git knows and that is gone from the working directory is gone here too.
            let Ok(bytes) = fs::read(&from) else {
                let _ = fs::remove_file(&to);
                continue;
            };
            if fs::read(&to).ok().as_deref() != Some(&bytes) {
                fs::create_dir_all(to.parent().unwrap_or(&tree))?;
                fs::write(&to, bytes).with_context(|| format!("could not write {}", to.display()))?;
            }
        }
        Ok(())
    }

    fn apply(&self, patch: &Path) -> Result<()> {
        let path = patch.to_string_lossy();
        git(&self.tree(), &["apply", "--whitespace=nowarn", &path]).map(drop)
    }

    fn test(&self, patch: &Patch) -> Result<Run> {
        let mut command = Command::new("cargo");
        command
            .args(&patch.run[1..])
            .current_dir(self.tree())
            .env("CARGO_TARGET_DIR", self.dir.join("target"));
        self.servers.export(&mut command);
        let (mut summary, mut output) = (Summary::default(), Vec::new());
        let status = stream::run_within(&mut command, patch.within, |line| {
            summary.line(line);
            output.push(line.to_owned());
        })?;
        let built = !output.iter().any(|line| line.starts_with("error: could not compile"));
        let ended = |status: std::process::ExitStatus| Run::Ended {
            success: status.success(),
            built,
            summary,
            output,
        };
        Ok(status.map_or(Run::TooLong, ended))
    }
}

impl Run {
    /// Whether the named cases ran and passed, and nothing failed.
    fn is_green(&self, patch: &Patch) -> Result<(), String> {
        let Self::Ended { success, built, summary, .. } = self else {
            return Err("it takes too long".to_owned());
        };
        if !built || !success {
            return Err(self.why_red());
        }
        let passed: Vec<_> = summary.binaries.iter().flat_map(|binary| &binary.passed).collect();
        match patch.expect.iter().find(|case| !passed.iter().any(|name| name.contains(*case))) {
            Some(case) => Err(format!("no test passed whose name contains `{case}`")),
            None => Ok(()),
        }
    }

    /// The cases that went red, when each that was named did.
    fn is_red(&self, patch: &Patch) -> Result<String, String> {
        let Self::Ended { success, built, summary, .. } = self else {
            return Err("it hangs, and so names no case".to_owned());
        };
        if !built {
            return Err(self.why_red());
        }
        let failed: Vec<&str> =
            summary.binaries.iter().flat_map(|binary| &binary.failed).map(String::as_str).collect();
        match patch.expect.iter().find(|case| !failed.iter().any(|name| name.contains(*case))) {
            Some(_) if *success => Err("stays green".to_owned()),
            Some(case) => Err(format!("`{case}` did not fail, but: {}", self.why_red())),
            None => Ok(failed.join(", ")),
        }
    }

    fn why_red(&self) -> String {
        let Self::Ended { built, summary, output, .. } = self else { return "it takes too long".to_owned() };
        let failed = summary.failed();
        if *built && !failed.is_empty() {
            return failed.join(", ");
        }
        let errors: Vec<_> =
            output.iter().filter(|line| line.starts_with("error")).map(String::as_str).collect();
        errors.join("; ")
    }
}

/// Runs git, outside of the repository that the copy lies in: inside, `git apply` passes over files in ignored directories.
fn git(dir: &Path, args: &[&str]) -> Result<String> {
    let parent = dir.parent().unwrap_or(dir);
    let output =
        Command::new("git").args(args).current_dir(dir).env("GIT_CEILING_DIRECTORIES", parent).output();
    let output = output.context("could not run git")?;
    if !output.status.success() {
        bail!("git {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}
