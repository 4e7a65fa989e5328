//! What installing a broker has in common: run a tool, build aside, rename into place.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use super::{BrokerError, Home, Missing};

/// Makes `target` with `build`, once, also when several processes ask at the same time.
///
/// `build` fills a directory beside it, which is renamed when it is complete: what exists under the final name can be used.
pub(crate) fn install(
    home: &Home,
    target: &Path,
    build: impl FnOnce(&Path) -> Result<(), BrokerError>,
) -> Result<(), BrokerError> {
    if target.is_dir() {
        return Ok(());
    }
    let _lock = home.lock("install.lock")?;
    if target.is_dir() {
        return Ok(());
    }
    // Under the lock nobody else builds: what is here was left by a process that was killed.
    let aside = target.with_extension("part");
    remove(&aside)?;
    fs::create_dir_all(&aside).map_err(BrokerError::io("create", &aside))?;
    build(&aside)?;
    fs::rename(&aside, target).map_err(BrokerError::io("move into place", target))
}

/// Removes a directory; that it is not there is fine.
pub(crate) fn remove(dir: &Path) -> Result<(), BrokerError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(BrokerError::io("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// Runs a tool to its end and gives what it wrote. A tool that is not installed is `missing`.
pub(crate) fn run(command: &mut Command, missing: impl FnOnce() -> Missing) -> Result<String, BrokerError> {
    let what = format!("run {}", describe(command));
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(missing().into()),
        Err(error) => return Err(BrokerError::failed(what, error)),
    };
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        Ok(text)
    } else {
        Err(BrokerError::failed(what, format_args!("{}\n{}", output.status, last_lines(&text, 20))))
    }
}

fn describe(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The end of a text: where tools and servers say why they failed.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Writes a file and names it when that fails.
pub(crate) fn write(path: PathBuf, text: &str) -> Result<PathBuf, BrokerError> {
    fs::write(&path, text).map_err(BrokerError::io("write", &path))?;
    Ok(path)
}
