//! A server that outlives the command that started it: for a developer who runs tests and programs by hand.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{self, Signal},
    unistd::Pid,
};

use super::{
    BrokerError, Home, Link,
    install::{remove, write},
    process::wait_until,
    run_dir,
    server::{Plan, links, url},
};

const STATE_FILE: &str = "state";
/// The beginning of the line with the links in the state file.
const LINKS: &str = "links ";
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// A developer's long-running server, known by the file that it is written down in.
#[derive(Debug)]
pub struct Detached {
    dir: PathBuf,
    url: String,
    links: Vec<Link>,
    processes: Vec<i32>,
}

impl Detached {
    /// The one that runs as `broker` (`kafka` or `nats`); `None` when there is none or it has ended.
    pub fn find(home: &Home, broker: &str) -> Option<Self> {
        let dir = home.dev(broker);
        let text = fs::read_to_string(dir.join(STATE_FILE)).ok()?;
        let mut lines = text.lines();
        let url = lines.next()?.to_owned();
        // The line of links is no process.
        let links = text.lines().find_map(|line| line.strip_prefix(LINKS));
        let links = links.and_then(|links| Link::read_all(links).ok()).unwrap_or_default();
        let processes = lines.filter_map(|line| line.parse().ok()).collect();
        let server = Self { dir, url, links, processes };
        (!server.living().is_empty()).then_some(server)
    }

    /// What `Bus::connect` takes.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its links.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// Where its data and log are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Ends it gracefully, or by force when that takes too long, and removes its data.
    ///
    /// # Errors
    /// When it cannot be signalled or its directory cannot be removed.
    pub fn stop(self) -> Result<(), BrokerError> {
        self.signal(Signal::SIGTERM)?;
        if !wait_until(STOP_WITHIN, || self.living().is_empty()) {
            self.signal(Signal::SIGKILL)?;
            wait_until(STOP_WITHIN, || self.living().is_empty());
        }
        remove(&self.dir)
    }

    fn signal(&self, signal: Signal) -> Result<(), BrokerError> {
        for process in self.living() {
            match signal::kill(Pid::from_raw(process), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => {
                    return Err(BrokerError::failed(format!("send {signal} to process {process}"), errno));
                }
            }
        }
        Ok(())
    }

    /// Processes that live and are ours: a number alone may be somebody else's by now, but only ours names our directory.
    fn living(&self) -> Vec<i32> {
        let dir = self.dir.to_string_lossy();
        self.processes.iter().copied().filter(|process| command_line(*process).contains(&*dir)).collect()
    }
}

fn command_line(process: i32) -> String {
    if let Ok(text) = fs::read(format!("/proc/{process}/cmdline")) {
        return String::from_utf8_lossy(&text).into_owned();
    }
    let output = Command::new("ps").args(["-o", "command=", "-p", &process.to_string()]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Starts what `plan` says for a directory and ports, in place of what was there and has ended.
pub(crate) fn launch(
    home: &Home,
    broker: &str,
    ports: usize,
    plan: impl FnOnce(&Path, &[u16]) -> Result<Vec<Plan>, BrokerError>,
) -> Result<Detached, BrokerError> {
    let _starting = home.lock("dev.lock")?;
    if let Some(running) = Detached::find(home, broker) {
        return Ok(running);
    }
    let dir = home.dev(broker);
    remove(&dir)?;
    let ports = {
        let _lock = home.lock("run.lock")?;
        run_dir::claim(home, &dir, ports)?
    };
    let plans = plan(&dir, &ports)?;
    let mut children = Vec::new();
    let url = url(broker, plans.iter().map(|plan| plan.address));
    if let Err(error) = start(&plans, &mut children) {
        for child in &mut children {
            let _ = child.kill().and_then(|()| child.wait());
        }
        return Err(error);
    }
    let processes: Vec<i32> = children.iter().filter_map(|child| i32::try_from(child.id()).ok()).collect();
    let lines: Vec<_> = processes.iter().map(i32::to_string).collect();
    let links = links(plans.iter());
    let text = format!("{url}\n{LINKS}{}\n{}\n", Link::show_all(&links), lines.join("\n"));
    write(dir.join(STATE_FILE), &text)?;
    Ok(Detached { dir, url, links, processes })
}

fn start(plans: &[Plan], children: &mut Vec<Child>) -> Result<(), BrokerError> {
    for plan in plans {
        children.push(spawn(plan)?);
    }
    for (plan, child) in plans.iter().zip(children) {
        plan.wait_ready(plans.len(), || !matches!(child.try_wait(), Ok(None)))?;
    }
    Ok(())
}

fn spawn(plan: &Plan) -> Result<Child, BrokerError> {
    let log = plan.log();
    let file = File::create(&log).map_err(BrokerError::io("create", &log))?;
    let errors = file.try_clone().map_err(BrokerError::io("share", &log))?;
    let (program, args) =
        plan.command.split_first().map_or((OsStr::new(""), &[][..]), |(p, a)| (p.as_ref(), a));
    let mut command = Command::new(program);
    // A process group of its own: an interrupt in this terminal is not for it.
    command.args(args).current_dir(&plan.dir).process_group(0);
    command.stdin(Stdio::null()).stdout(file).stderr(errors);
    command.spawn().map_err(|error| BrokerError::failed(format!("start {}", plan.name), error))
}
