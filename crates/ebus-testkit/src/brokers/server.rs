//! A private server: one node or several, to be stopped, killed, frozen and started again.

use std::{
    ffi::OsString,
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    BrokerError, Link,
    install::last_lines,
    process::{POLL, Process},
    run_dir::RunDir,
};
use crate::route::Route;

/// The slowest seen start of three Kafka nodes on two busy cores, several times over.
const START_WITHIN: Duration = Duration::from_secs(120);
/// A Kafka that has nobody to hand its partitions to gives up after a while by itself.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// The kernel ends a killed process at once, but a loaded machine may take its time to notice.
const KILL_WITHIN: Duration = Duration::from_secs(10);

/// Asks a node once whether it can be used together with this many nodes of its cluster; says why not.
pub(crate) type Probe = Box<dyn Fn(usize) -> Result<(), String> + Send + Sync>;

/// Everything to start a node with, the first time and every other.
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) address: SocketAddr,
    pub(crate) command: Vec<OsString>,
    pub(crate) probe: Probe,
    /// Its part of each link.
    pub(crate) links: Vec<Route>,
}

impl Plan {
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Waits until the node answers, or its process has ended, or it took too long.
    pub(crate) fn wait_ready(
        &self,
        nodes: usize,
        mut has_ended: impl FnMut() -> bool,
    ) -> Result<(), BrokerError> {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            let Err(why) = (self.probe)(nodes) else { return Ok(()) };
            let why = match (has_ended(), Instant::now() >= deadline) {
                (true, _) => "it ended by itself".to_owned(),
                (_, true) => format!("not ready within {START_WITHIN:?}: {why}"),
                _ => {
                    std::thread::sleep(POLL);
                    continue;
                }
            };
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            let why = format!("{why}; the end of its log:\n{}", last_lines(&log, 20));
            return Err(BrokerError::failed(format!("start {} on {}", self.name, self.address), why));
        }
    }
}

/// One process of a [`Server`].
///
/// All methods block until what they say is so; a test that runs on an async runtime calls them with `spawn_blocking`, or
/// while nothing else has to make progress on that thread.
pub struct Node {
    plan: Plan,
    run: PathBuf,
    process: Option<Process>,
}

impl Node {
    /// Where clients reach it, the same over its whole life.
    pub fn address(&self) -> SocketAddr {
        self.plan.address
    }

    /// What the server wrote to its output, over all its starts.
    pub fn log(&self) -> PathBuf {
        self.plan.log()
    }

    /// Whether its process lives; a frozen one does.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| !process.has_ended())
    }

    /// Starts it on its port and its data, and waits until it answers. Does nothing when it is running.
    ///
    /// # Errors
    /// When it ended by itself or did not answer in time, with the end of its log.
    pub fn start(&mut self) -> Result<(), BrokerError> {
        self.spawn()?;
        self.wait_ready(1)
    }

    /// Ends it gracefully (SIGTERM) and waits for its end.
    ///
    /// # Errors
    /// When it did not end in time; it is killed then.
    pub fn stop(&mut self) -> Result<(), BrokerError> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.signal(Signal::SIGCONT)?;
        process.signal(Signal::SIGTERM)?;
        if process.wait_end(STOP_WITHIN) {
            return Ok(());
        }
        let what = format!("stop {} on {}", self.plan.name, self.plan.address);
        Err(BrokerError::failed(what, format_args!("it did not end within {STOP_WITHIN:?} and was killed")))
    }

    /// Ends it without warning (SIGKILL), as a crash does; its data stay.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn kill(&mut self) -> Result<(), BrokerError> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.signal(Signal::SIGKILL)?;
        if process.wait_end(KILL_WITHIN) {
            return Ok(());
        }
        let what = format!("kill {} on {}", self.plan.name, self.plan.address);
        Err(BrokerError::failed(what, format_args!("it did not end within {KILL_WITHIN:?}")))
    }

    /// Stops it and starts it again.
    ///
    /// # Errors
    /// Those of [`stop`](Self::stop) and [`start`](Self::start).
    pub fn restart(&mut self) -> Result<(), BrokerError> {
        self.stop()?;
        self.start()
    }

    /// Suspends it (SIGSTOP): connections stay open, nothing is answered. What a network partition looks like to a client.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn freeze(&mut self) -> Result<(), BrokerError> {
        self.process.as_mut().map_or(Ok(()), Process::freeze)
    }

    /// Lets a frozen one go on (SIGCONT).
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn thaw(&mut self) -> Result<(), BrokerError> {
        self.process.as_mut().map_or(Ok(()), |process| process.signal(Signal::SIGCONT))
    }

    fn spawn(&mut self) -> Result<(), BrokerError> {
        if !self.is_running() {
            let plan = &self.plan;
            self.process = Some(Process::spawn(&plan.command, &plan.dir, &self.run, &plan.log())?);
        }
        Ok(())
    }

    fn wait_ready(&mut self, nodes: usize) -> Result<(), BrokerError> {
        let process = &mut self.process;
        self.plan.wait_ready(nodes, || process.as_mut().is_none_or(Process::has_ended))
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { name, address, .. } = &self.plan;
        f.debug_struct("Node").field("name", name).field("address", address).finish_non_exhaustive()
    }
}

/// A private server of one node, or a cluster of several.
///
/// Dropping it kills its processes and removes its data. When the process that owns it dies, however it dies, the same
/// happens. Its methods act on all nodes; [`node`](Self::node) reaches a single one.
#[derive(Debug)]
pub struct Server {
    scheme: &'static str,
    // Before the directory: the processes end before what they use is removed.
    nodes: Vec<Node>,
    dir: RunDir,
}

impl Server {
    pub(crate) fn launch(scheme: &'static str, dir: RunDir, plans: Vec<Plan>) -> Result<Self, BrokerError> {
        let run = dir.path().to_owned();
        let nodes = plans.into_iter().map(|plan| Node { plan, run: run.clone(), process: None }).collect();
        let mut server = Self { scheme, nodes, dir };
        server.start()?;
        Ok(server)
    }

    /// What `Bus::connect` takes: `kafka://127.0.0.1:21000,127.0.0.1:21002`, `nats://127.0.0.1:21004`.
    pub fn url(&self) -> String {
        let addresses = self.nodes.iter().map(Node::address);
        url(self.scheme, addresses)
    }

    /// The addresses of all nodes, as raw clients take them.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(Node::address).collect()
    }

    /// One of its links, counted from 0; `None` past the last.
    pub fn link(&self, index: usize) -> Option<Link> {
        self.links().into_iter().nth(index)
    }

    /// All its links.
    pub fn links(&self) -> Vec<Link> {
        links(self.nodes.iter().map(|node| &node.plan))
    }

    /// Where its data are while it exists.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// One node, counted from 0; `None` past the last.
    pub fn node(&mut self, index: usize) -> Option<&mut Node> {
        self.nodes.get_mut(index)
    }

    /// All nodes.
    pub fn nodes(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// Starts what is not running, on the same ports and data, and waits until all nodes know each other and answer.
    ///
    /// # Errors
    /// See [`Node::start`].
    pub fn start(&mut self) -> Result<(), BrokerError> {
        let count = self.nodes.len();
        self.nodes.iter_mut().try_for_each(Node::spawn)?;
        self.nodes.iter_mut().try_for_each(|node| node.wait_ready(count))
    }

    /// Ends all nodes gracefully.
    ///
    /// # Errors
    /// See [`Node::stop`].
    pub fn stop(&mut self) -> Result<(), BrokerError> {
        // All at once: the last members of a quorum cannot finish what needs the others.
        for node in &mut self.nodes {
            if let Some(process) = &mut node.process {
                process.signal(Signal::SIGTERM)?;
            }
        }
        self.nodes.iter_mut().try_for_each(Node::stop)
    }

    /// Kills all nodes.
    ///
    /// # Errors
    /// See [`Node::kill`].
    pub fn kill(&mut self) -> Result<(), BrokerError> {
        self.nodes.iter_mut().try_for_each(Node::kill)
    }

    /// Stops and starts all nodes.
    ///
    /// # Errors
    /// See [`Node::restart`].
    pub fn restart(&mut self) -> Result<(), BrokerError> {
        self.stop()?;
        self.start()
    }

    /// Suspends all nodes.
    ///
    /// # Errors
    /// See [`Node::freeze`].
    pub fn freeze(&mut self) -> Result<(), BrokerError> {
        self.nodes.iter_mut().try_for_each(Node::freeze)
    }

    /// Lets all nodes go on.
    ///
    /// # Errors
    /// See [`Node::thaw`].
    pub fn thaw(&mut self) -> Result<(), BrokerError> {
        self.nodes.iter_mut().try_for_each(Node::thaw)
    }
}

pub(crate) fn url(scheme: &str, addresses: impl Iterator<Item = SocketAddr>) -> String {
    let addresses: Vec<_> = addresses.map(|address| address.to_string()).collect();
    format!("{scheme}://{}", addresses.join(","))
}

/// The links of a cluster, from the parts that its nodes have of them.
pub(crate) fn links<'p>(plans: impl Iterator<Item = &'p Plan>) -> Vec<Link> {
    let parts: Vec<_> = plans.map(|plan| &plan.links).collect();
    let count = parts.iter().map(|part| part.len()).min().unwrap_or(0);
    (0..count).map(|link| Link::new(parts.iter().map(|part| part[link].clone()).collect())).collect()
}
