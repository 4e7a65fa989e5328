//! Members and publishers as processes, around a private broker.

mod broker;
mod running;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ebus_testkit::history::{Kind, Part};
use nix::sys::signal::Signal;

use crate::options::{Mode, Options};
use crate::plan::{Act, Link};
use crate::publisher::Load;
use crate::world::{Files, Marks, PUBLISHERS};
use broker::{Broker, Operation};
use running::{Network, Running};

/// How long a member that leaves may take: its drain and its disconnecting, several times over.
const LEAVE_WITHIN: Duration = Duration::from_secs(40);
/// How long a publisher may take to get all its answers.
const ANSWERS_WITHIN: Duration = Duration::from_secs(90);
/// Members that may be there beside those that shall be: just joined, or about to leave.
const LEAVING: usize = 6;
/// How often processes are looked at that shall end.
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(crate) struct Processes {
    marks: Marks,
    files: Files,
    program: PathBuf,
    load: Load,
    mode: Mode,
    broker: Broker,
    members: BTreeMap<u32, Running>,
    publishers: BTreeMap<u32, Running>,
    /// Members that were told to leave, and by when they must have.
    leaving: Vec<(Running, Instant)>,
    parts: Vec<Part>,
}

impl Processes {
    pub(crate) fn launch(
        options: &Options,
        members: u32,
        marks: Marks,
        files: Files,
        load: Load,
    ) -> Result<Self> {
        let program = std::env::current_exe().context("could not find this program")?;
        let processes = PUBLISHERS as usize + members as usize + LEAVING;
        let broker = Broker::launch(options.ground, processes, marks.clone())?;
        let parts = vec![Part::new(files.history("driver"), false)];
        Ok(Self {
            marks,
            files,
            program,
            load,
            mode: options.mode,
            broker,
            members: BTreeMap::new(),
            publishers: BTreeMap::new(),
            leaving: Vec::new(),
            parts,
        })
    }

    pub(crate) fn url(&self) -> &str {
        self.broker.url()
    }

    pub(crate) fn marks(&self) -> &Marks {
        &self.marks
    }

    pub(crate) fn parts(&self) -> Vec<Part> {
        self.parts.clone()
    }

    pub(crate) fn publisher(&mut self, number: u32) -> Result<()> {
        let Load { seed, rate, block_ms, .. } = self.load;
        let load = [
            ("--number", u64::from(number)),
            ("--seed", seed),
            ("--rate", rate.into()),
            ("--block-ms", block_ms),
        ];
        let more = load.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_string()]).collect();
        let running = self.start(&format!("publisher-{number}"), "publisher", more)?;
        self.publishers.insert(number, running);
        Ok(())
    }

    fn start(&mut self, name: &str, command: &str, more: Vec<String>) -> Result<Running> {
        let network = self.broker.network().with_context(|| format!("no network for {name}"))?;
        let running = Running::start(&self.program, command, name, network, &self.files, more)?;
        self.parts.push(Part::new(self.files.history(name), false));
        Ok(running)
    }

    fn died(&mut self, name: &str) {
        let path = self.files.history(name);
        self.parts.iter_mut().filter(|part| part.path == path).for_each(|part| part.killed = true);
        self.marks.mark(Kind::Killed, name);
    }

    pub(crate) fn act(&mut self, act: Act) -> Result<()> {
        match act {
            Act::Join(number) => {
                let running = self.start(&format!("member-{number}"), "member", self.mode.args())?;
                self.members.insert(number, running);
            }
            Act::Leave(number) => {
                if let Some(member) = self.members.remove(&number) {
                    member.signal(Signal::SIGTERM)?;
                    self.leaving.push((member, Instant::now() + LEAVE_WITHIN));
                }
            }
            Act::Kill(number) => {
                if let Some(mut member) = self.members.remove(&number) {
                    member.kill()?;
                    self.died(member.name());
                }
            }
            Act::Publish(number) => self.publisher(number)?,
            Act::KillPublisher(number) => {
                if let Some(mut publisher) = self.publishers.remove(&number) {
                    publisher.kill()?;
                    self.died(publisher.name());
                }
            }
            Act::Stop(number) => {
                if let Some(member) = self.members.get_mut(&number) {
                    member.stop(&self.marks)?;
                }
            }
            Act::Continue(number) => {
                if let Some(member) = self.members.get_mut(&number) {
                    member.go_on(&self.marks)?;
                }
            }
            Act::Cut(link) => self.link(link, |running, marks| running.cut(marks)),
            Act::Stall(link) => self.link(link, |running, marks| running.stall(marks)),
            Act::Heal(link) => self.link(link, |running, marks| running.heal(marks)),
            Act::NodeStop(node) => self.broker.order(Operation::Stop(node)),
            Act::NodeKill(node) => self.broker.order(Operation::Kill(node)),
            Act::NodeFreeze(node) => self.broker.order(Operation::Freeze(node)),
            Act::NodeStart(node) => self.broker.order(Operation::Start(node)),
            Act::NodeThaw(node) => self.broker.order(Operation::Thaw(node)),
            _ => anyhow::bail!("{act} is for memory"),
        }
        Ok(())
    }

    fn link(&mut self, link: Link, act: impl FnOnce(&mut Running, &Marks)) {
        let running = match link {
            Link::Member(number) => self.members.get_mut(&number),
            Link::Publisher(number) => self.publishers.get_mut(&number),
        };
        if let Some(running) = running {
            act(running, &self.marks);
        }
    }

    pub(crate) fn tend(&mut self) -> Vec<String> {
        let mut trouble = self.broker.trouble();
        let mut dead = Vec::new();
        for all in [&mut self.members, &mut self.publishers] {
            all.retain(|_, running| match running.end() {
                None => true,
                Some(how) => {
                    trouble.push(format!("{} ended by itself: {how}; see its log", running.name()));
                    dead.push(running.name().to_owned());
                    false
                }
            });
        }
        let now = Instant::now();
        self.leaving.retain_mut(|(running, until)| match running.end() {
            Some(how) if how == running::CLEAN => false,
            Some(how) => {
                trouble.push(format!("{} left, and failed: {how}; see its log", running.name()));
                dead.push(running.name().to_owned());
                false
            }
            None if now < *until => true,
            None => {
                trouble.push(format!(
                    "{} did not leave within {LEAVE_WITHIN:?}, and was killed",
                    running.name()
                ));
                // It may have ended meanwhile; then there is nothing to kill.
                let _ = running.kill();
                dead.push(running.name().to_owned());
                false
            }
        });
        dead.iter().for_each(|name| self.died(name));
        trouble
    }

    pub(crate) async fn heal(&mut self) -> Vec<String> {
        let all = self.members.values_mut().chain(self.publishers.values_mut());
        let mut trouble = Vec::new();
        for running in all.chain(self.leaving.iter_mut().map(|(running, _)| running)) {
            running.heal(&self.marks);
            trouble.extend(running.go_on(&self.marks).err().map(|error| error.to_string()));
        }
        trouble.extend(self.broker.heal().await.err().map(|error| error.to_string()));
        trouble.extend(self.tend());
        trouble
    }

    pub(crate) async fn stop_publishers(&mut self) -> Vec<String> {
        let mut trouble = self.tend();
        for running in std::mem::take(&mut self.publishers).into_values() {
            trouble.extend(running.signal(Signal::SIGTERM).err().map(|error| error.to_string()));
            self.leaving.push((running, Instant::now() + ANSWERS_WITHIN));
        }
        trouble.extend(self.all_left().await);
        trouble
    }

    pub(crate) async fn leave_all(&mut self) -> Vec<String> {
        let mut trouble = self.tend();
        for running in std::mem::take(&mut self.members).into_values() {
            trouble.extend(running.signal(Signal::SIGTERM).err().map(|error| error.to_string()));
            self.leaving.push((running, Instant::now() + LEAVE_WITHIN));
        }
        trouble.extend(self.all_left().await);
        trouble
    }

    async fn all_left(&mut self) -> Vec<String> {
        let mut trouble = Vec::new();
        while !self.leaving.is_empty() {
            trouble.extend(self.tend());
            tokio::time::sleep(POLL).await;
        }
        trouble
    }
}

/// The network of a process, and the URL by which it reaches the broker through it.
type Reach = (Network, String);
