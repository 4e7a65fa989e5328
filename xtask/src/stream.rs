//! Runs a command, shows its output as it comes and reads along.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// Runs `command` with both of its outputs in one stream, in the order of writing, and gives each line to `line`.
pub(crate) fn run(command: &mut Command, line: impl FnMut(&str)) -> Result<ExitStatus> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("could not run {command:?}"))?;
    // The command holds our end of the pipe; without this it would never end for us.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    read_lines(reader, line)?;
    Ok(child.wait()?)
}

/// Like [`run`], but kills the command and all that it started when it takes too long; `None` then.
pub(crate) fn run_within(
    command: &mut Command,
    within: Duration,
    line: impl FnMut(&str),
) -> Result<Option<ExitStatus>> {
    let (reader, writer) = io::pipe()?;
    command.process_group(0).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("could not run {command:?}"))?;
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let (ended, end) = mpsc::channel::<()>();
    let late = Arc::new(AtomicBool::new(false));
    let watch = {
        let late = Arc::clone(&late);
        thread::spawn(move || {
            if end.recv_timeout(within) == Err(RecvTimeoutError::Timeout) {
                late.store(true, Ordering::Release);
                // That it has just ended by itself is as good.
                let _ = killpg(group, Signal::SIGKILL);
            }
        })
    };
    let read = read_lines(reader, line);
    drop(ended);
    // A thread that only waits and signals has nothing to panic with.
    let _ = watch.join();
    let status = child.wait()?;
    read?;
    Ok((!late.load(Ordering::Acquire)).then_some(status))
}

fn read_lines(reader: io::PipeReader, mut line: impl FnMut(&str)) -> Result<()> {
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes)? > 0 {
        line(String::from_utf8_lossy(&bytes).trim_end_matches('\n'));
        bytes.clear();
    }
    Ok(())
}

/// Prints a line; a reader that went away does not stop the tests.
pub(crate) fn show(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}
