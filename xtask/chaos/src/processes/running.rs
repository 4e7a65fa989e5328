//! One process, its network, and what is being done to it.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use ebus_testkit::history::Kind;
use ebus_testkit::proxy::Line;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Reach;
use crate::world::{Files, Marks};

/// How a process ends that was asked to.
pub(super) const CLEAN: &str = "exit status: 0";

/// The network between one process and the broker.
pub(super) type Network = Line;

/// A process that ends with this one, however this one ends.
#[derive(Debug)]
pub(super) struct Running {
    name: String,
    child: Child,
    network: Network,
    stopped: bool,
    cut: bool,
}

impl Running {
    /// To be called on the main thread: the process is killed with the thread that started it.
    pub(super) fn start(
        program: &Path,
        command: &str,
        name: &str,
        (network, url): Reach,
        files: &Files,
        more: Vec<String>,
    ) -> Result<Self> {
        let log = File::create(files.log(name)).with_context(|| format!("no log for {name}"))?;
        let child = Command::new(program)
            .args([command, "--name", name, "--url", &url, "--history"])
            .arg(files.history(name))
            .args(["--driver", &std::process::id().to_string()])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("could not start {name}"))?;
        Ok(Self { name: name.to_owned(), child, network, stopped: false, cut: false })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("could not send {signal} to {}", self.name))
    }

    /// How it ended, if it has.
    pub(super) fn end(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(status.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// SIGKILL; it is dead when this returns.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("could not kill {}", self.name))?;
        self.child.wait().with_context(|| format!("could not wait for {}", self.name))?;
        Ok(())
    }

    pub(super) fn stop(&mut self, marks: &Marks) -> Result<()> {
        marks.mark(Kind::Stopped, &self.name);
        self.stopped = true;
        self.signal(Signal::SIGSTOP)
    }

    pub(super) fn go_on(&mut self, marks: &Marks) -> Result<()> {
        if std::mem::take(&mut self.stopped) {
            self.signal(Signal::SIGCONT)?;
            marks.mark(Kind::Continued, &self.name);
        }
        Ok(())
    }

    pub(super) fn cut(&mut self, marks: &Marks) {
        self.trouble(marks, Network::cut);
    }

    pub(super) fn stall(&mut self, marks: &Marks) {
        self.trouble(marks, Network::stall);
    }

    fn trouble(&mut self, marks: &Marks, how: fn(&Network)) {
        if !std::mem::replace(&mut self.cut, true) {
            marks.mark(Kind::Cut, &self.name);
        }
        how(&self.network);
    }

    pub(super) fn heal(&mut self, marks: &Marks) {
        if std::mem::take(&mut self.cut) {
            self.network.heal();
            marks.mark(Kind::Healed, &self.name);
        }
    }
}

impl Drop for Running {
    /// Nothing is left behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
