//! One server process that cannot outlive its owner.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{self, Signal},
    unistd::Pid,
};

use super::BrokerError;

/// How often a condition is looked at. There is nothing to wait on: the other side is a process that we only know by its
/// socket and its process id.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// How long a stop may take to reach all threads of a server.
const FREEZES_WITHIN: Duration = Duration::from_secs(2);

const SUPERVISOR: &str = include_str!("supervise.sh");

/// A running server and the shell that watches over it.
#[derive(Debug)]
pub(crate) struct Process {
    supervisor: Child,
    server: Pid,
}

impl Process {
    /// Starts `command` with its output appended to `log`. If this process dies, it is killed and `node` is removed.
    pub(crate) fn spawn(
        command: &[OsString],
        node: &Path,
        run: &Path,
        log: &Path,
    ) -> Result<Self, BrokerError> {
        let mut shell = Command::new("sh");
        shell.args(["-c", SUPERVISOR, "supervise.sh"]).arg(node).arg(run).arg(log).args(command);
        // A process group of its own: an interrupt from the terminal reaches the tests, not the servers under them.
        shell.process_group(0).current_dir(node);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let failed = |why: &dyn std::fmt::Display| BrokerError::failed(format!("start {command:?}"), why);
        let mut supervisor = shell.spawn().map_err(|error| failed(&error))?;
        let mut line = String::new();
        if let Some(stdout) = supervisor.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(|error| failed(&error))?;
        }
        let server = line.trim().parse().map_err(|_| failed(&"the shell did not say its process id"))?;
        Ok(Self { supervisor, server: Pid::from_raw(server) })
    }

    /// Whether the server has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        // The shell ends when the server has. Not to know is to be gone: a shell that cannot be waited for is not ours.
        !matches!(self.supervisor.try_wait(), Ok(None))
    }

    /// Sends a signal to the server; one that has ended does not mind.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<(), BrokerError> {
        if self.has_ended() {
            return Ok(());
        }
        match signal::kill(self.server, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => {
                Err(BrokerError::failed(format!("send {signal} to process {}", self.server), errno))
            }
        }
    }

    /// Stops the server (SIGSTOP). The signal is on its way when it was sent: this waits until no thread runs any more, where
    /// the system tells.
    pub(crate) fn freeze(&mut self) -> Result<(), BrokerError> {
        self.signal(Signal::SIGSTOP)?;
        let tasks = format!("/proc/{}/task", self.server);
        wait_until(FREEZES_WITHIN, || all_stopped(&tasks));
        Ok(())
    }

    /// Waits for the end of the server; false when it did not come in time.
    pub(crate) fn wait_end(&mut self, within: Duration) -> bool {
        wait_until(within, || self.has_ended())
    }
}

/// Whether every thread is stopped; true where the system does not tell.
fn all_stopped(tasks: &str) -> bool {
    let Ok(tasks) = std::fs::read_dir(tasks) else { return true };
    tasks.flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // Behind the name of the program, which may have spaces.
        stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with(['T', 't']))
    })
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors have nobody to go to here, and the shell kills the server when its input ends, below.
        let _ = self.signal(Signal::SIGKILL);
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }
}

/// Looks at a condition until it holds; false when it did not in time.
pub(crate) fn wait_until(within: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + within;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(POLL);
    }
}
