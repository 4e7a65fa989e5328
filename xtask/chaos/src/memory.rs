//! Members and publishers as tasks around the broker in memory, whose own faults take the place of signals and cut wires.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use ebus::memory::{Faults, MemberId, MemoryBroker, MemoryConfig};
use ebus::{Backend, Group, PartitionId, Topic};
use ebus_testkit::history::{Kind, Part};
use ebus_testkit::record::Recorded;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::member::Member;
use crate::options::Mode;
use crate::plan::Act;
use crate::publisher::{Load, publish};
use crate::setting::Names;
use crate::world::{Files, Marks};

#[derive(Debug)]
pub(crate) struct Memory {
    marks: Marks,
    files: Files,
    broker: MemoryBroker,
    group: Group,
    topic: Topic,
    load: Load,
    mode: Mode,
    members: BTreeMap<u32, Slot>,
    joining: Arc<tokio::sync::Mutex<()>>,
    /// They leave, or were crashed: their tasks end.
    ending: Vec<Slot>,
    publishers: BTreeMap<u32, JoinHandle<Result<()>>>,
    stop: watch::Sender<bool>,
    down: [bool; 2],
}

/// A member that is a task.
#[derive(Debug)]
struct Slot {
    name: String,
    /// What the broker calls it, once it has joined.
    id: Arc<std::sync::OnceLock<MemberId>>,
    end: Option<oneshot::Sender<How>>,
    task: JoinHandle<Result<()>>,
}

/// How a member is to end.
#[derive(Debug)]
enum How {
    Leave,
    /// Dropped: nothing is finished, nobody is told.
    Drop,
    /// The broker ends it.
    Crash,
}

/// A member learns of its crash when it next receives, which it does without pause.
const CRASH_WITHIN: Duration = Duration::from_secs(2);

const COMMITS: usize = 0;
const PUBLISHES: usize = 1;

impl Memory {
    pub(crate) fn new(marks: Marks, files: Files, load: Load, mode: Mode) -> Result<Self> {
        // Nothing may be given up before it is read back.
        let mut config = MemoryConfig::default();
        config.retain_messages = 1 << 24;
        config.retain_bytes = 8 << 30;
        let names = Names::default();
        Ok(Self {
            marks,
            files,
            broker: MemoryBroker::new(config)?,
            group: Group::new(&names.group)?,
            topic: Topic::new(&names.topic)?,
            load,
            mode,
            members: BTreeMap::new(),
            joining: Arc::default(),
            ending: Vec::new(),
            publishers: BTreeMap::new(),
            stop: watch::Sender::new(false),
            down: [false; 2],
        })
    }

    pub(crate) fn connect(&self) -> Arc<dyn Backend> {
        Arc::new(self.broker.connect())
    }

    pub(crate) fn marks(&self) -> &Marks {
        &self.marks
    }

    /// All tasks write into the driver's: it dies with them.
    pub(crate) fn parts(&self) -> Vec<Part> {
        vec![Part::new(self.files.history("driver"), false)]
    }

    fn recorded(&self, name: &str) -> Arc<dyn Backend> {
        Arc::new(Recorded::new(self.connect(), self.marks.0.clone(), name))
    }

    pub(crate) fn publisher(&mut self, number: u32) -> Result<()> {
        let (backend, clock) = (self.recorded(&format!("publisher-{number}")), self.marks.0.clone());
        let (load, stop) = (Load { number, ..self.load }, self.stop.subscribe());
        let task = tokio::spawn(async move { publish(backend, &clock, load, stop).await });
        self.publishers.insert(number, task);
        Ok(())
    }

    fn faults(&self) -> Faults {
        self.broker.faults()
    }

    fn join(&mut self, number: u32) {
        let name = format!("member-{number}");
        let id = Arc::new(std::sync::OnceLock::new());
        let (end, mut ends) = oneshot::channel();
        let (backend, history) = (self.recorded(&name), self.marks.0.clone());
        let (faults, group, mode) = (self.faults(), self.group.clone(), self.mode);
        let (own, told, joining) = (name.clone(), Arc::clone(&id), Arc::clone(&self.joining));
        let task = tokio::spawn(async move {
            // One after the other, so that the last member is this one.
            let turn = joining.lock().await;
            let joined = Member::join(backend, &history, &own, mode).await;
            let member = joined.map_err(|error| anyhow::anyhow!("could not join: {}", error.chain()))?;
            told.get_or_init(|| *faults.members(&group).last().expect("it has just joined"));
            drop(turn);
            let how = tokio::select! {
                biased;
                how = &mut ends => how.unwrap_or(How::Drop),
                why = member.ended() => anyhow::bail!("{own} ended by itself: {why}"),
            };
            match how {
                How::Leave => member.leave().await,
                How::Drop => drop(member),
                // Whatever it says, it is dropped then.
                How::Crash => drop(tokio::time::timeout(CRASH_WITHIN, member.ended()).await),
            }
            Ok(())
        });
        self.members.insert(number, Slot { name, id, end: Some(end), task });
    }

    /// Ends a member by `how`; the history says that it is in trouble, where it is, before it is.
    fn end(&mut self, number: u32, how: How) {
        let Some(mut slot) = self.members.remove(&number) else { return };
        if !matches!(how, How::Leave) {
            self.marks.mark(Kind::Stopped, &slot.name);
        }
        // One that has not joined yet is dropped.
        let crashed = slot.id.get().copied().filter(|_| matches!(how, How::Crash));
        let how = if crashed.is_none() && matches!(how, How::Crash) { How::Drop } else { how };
        // Before it is done: the task must not take it for an end by itself.
        slot.end.take().map(|end| end.send(how));
        if let Some(id) = crashed {
            // It may have ended meanwhile.
            let _ = self.faults().crash(&self.group, id);
        }
        self.ending.push(slot);
    }

    pub(crate) fn act(&mut self, act: Act) -> Result<()> {
        match act {
            Act::Join(number) => self.join(number),
            Act::Leave(number) => self.end(number, How::Leave),
            Act::Kill(number) => self.end(number, How::Drop),
            Act::Publish(number) => self.publisher(number)?,
            // Dropped: what it had in flight is stored or not, and nobody is told.
            Act::KillPublisher(number) => {
                self.publishers.remove(&number).inspect(|publisher| publisher.abort());
            }
            Act::Crash(number) => self.end(number, How::Crash),
            Act::Revoke(draw) => self.revoke(draw),
            Act::Lose(draw) => self.lose(draw),
            Act::CommitsFail => self.commits_fail(true),
            Act::CommitsWork => self.commits_fail(false),
            Act::PublishesFail => self.publishes_fail(true),
            Act::PublishesWork => self.publishes_fail(false),
            _ => anyhow::bail!("{act} is for processes"),
        }
        Ok(())
    }

    /// A partition that is owned, its owner, and any member.
    fn drawn(&self, draw: u64) -> Option<(PartitionId, MemberId, MemberId)> {
        let mut owners = self.faults().owners(&self.group);
        owners.sort_by_key(|(partition, _)| partition.partition);
        let members = self.faults().members(&self.group);
        let pick = |draw: u64, count: usize| usize::try_from(draw % count.max(1) as u64).unwrap_or(0);
        let (partition, owner) = owners.get(pick(draw, owners.len()))?.clone();
        let to = members.get(pick(draw >> 32, members.len()))?;
        Some((partition, owner, *to))
    }

    fn revoke(&self, draw: u64) {
        let Some((partition, _, to)) = self.drawn(draw) else { return };
        // It may be on its way already.
        let _ = self.faults().revoke_to(&self.group, &partition, to);
    }

    fn lose(&self, draw: u64) {
        let Some((partition, owner, to)) = self.drawn(draw) else { return };
        let slot = self.members.values().find(|slot| slot.id.get() == Some(&owner));
        let Some(name) = slot.map(|slot| slot.name.clone()) else { return };
        self.marks.mark(Kind::Stopped, &name);
        let _ = self.faults().lose_to(&self.group, &partition, to);
        self.marks.mark(Kind::Continued, &name);
    }

    fn commits_fail(&mut self, fail: bool) {
        if self.down[COMMITS] != fail && self.faults().commits_fail(&self.group, fail).is_ok() {
            self.down[COMMITS] = fail;
            self.marks.mark(if fail { Kind::Down } else { Kind::Up }, "commits");
        }
    }

    fn publishes_fail(&mut self, fail: bool) {
        if self.down[PUBLISHES] != fail && self.faults().unavailable(&self.topic, fail).is_ok() {
            self.down[PUBLISHES] = fail;
        }
    }

    pub(crate) fn heal(&mut self) {
        self.commits_fail(false);
        self.publishes_fail(false);
    }

    /// Members that ended without being told to; a task that has ended is waited for elsewhere.
    pub(crate) fn tend(&mut self) -> Vec<String> {
        let (gone, there) =
            std::mem::take(&mut self.members).into_iter().partition(|(_, slot)| slot.task.is_finished());
        self.members = there;
        let gone: BTreeMap<u32, Slot> = gone;
        let told = gone.values().map(|slot| format!("{} ended by itself", slot.name)).collect();
        self.ending.extend(gone.into_values());
        told
    }

    pub(crate) async fn stop_publishers(&mut self) -> Vec<String> {
        self.stop.send_replace(true);
        let mut trouble = Vec::new();
        for publisher in std::mem::take(&mut self.publishers).into_values() {
            trouble.extend(ended(publisher, "a publisher").await);
        }
        trouble
    }

    pub(crate) async fn leave_all(&mut self) -> Vec<String> {
        let numbers: Vec<u32> = self.members.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.end(number, How::Leave));
        let mut trouble = Vec::new();
        for slot in std::mem::take(&mut self.ending) {
            trouble.extend(ended(slot.task, &slot.name).await);
        }
        trouble
    }
}

/// What went wrong with a task.
async fn ended(task: JoinHandle<Result<()>>, name: &str) -> Option<String> {
    let ended = task.await.context("its task failed").and_then(|result| result);
    ended.err().map(|error| format!("{name}: {error:#}"))
}
