//! Several members of one group, each driven by a task of its own, and what they did in one order (G1, G2, G3, G6).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ebus_core::{
    Backend, Epoch, ErrorKind, Group, Owned, PartitionId, Settlement, Source, SourceEvent, SourceOptions,
    Topic,
};
use libtest_mimic::Failed;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::drive::{PATIENCE, Tested};

/// A message that was handed on and finished at once.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) at: Instant,
    pub(crate) member: &'static str,
    pub(crate) partition: PartitionId,
    pub(crate) epoch: Epoch,
    pub(crate) offset: u64,
    pub(crate) key: String,
    pub(crate) version: u64,
}

/// What all members did.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) runs: Vec<Run>,
    /// The different messages among them.
    messages: HashSet<(PartitionId, u64)>,
    /// Who owns what as far as the members know.
    pub(crate) owned: BTreeMap<&'static str, BTreeSet<PartitionId>>,
    /// How often a partition was taken over.
    pub(crate) assigned: usize,
    /// Which were lost without notice, by whom.
    pub(crate) lost: Vec<(&'static str, PartitionId, Instant)>,
    pub(crate) trouble: Vec<String>,
}

/// Shared by all members of a team.
#[derive(Debug, Default)]
struct Shared {
    log: Mutex<Log>,
    changed: Notify,
}

/// The members of one group.
pub(crate) struct Team {
    pub(crate) group: Group,
    pub(crate) topics: Vec<Topic>,
    shared: Arc<Shared>,
    members: BTreeMap<&'static str, Member>,
}

struct Member {
    orders: mpsc::UnboundedSender<Order>,
    task: JoinHandle<Tested>,
}

enum Order {
    /// Leave cleanly.
    Close,
    /// Do nothing at all for so long, as by SIGSTOP.
    Freeze(Duration),
    /// A hand-over takes so long from now on.
    Linger(Duration),
}

impl Team {
    pub(crate) fn new(group: &Group, topics: &[&Topic]) -> Self {
        let topics = topics.iter().map(|topic| (*topic).clone()).collect();
        Self { group: group.clone(), topics, shared: Arc::default(), members: BTreeMap::new() }
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        self.shared.log.lock().expect("no member panics with it")
    }

    /// Partitions that were taken over, those that a member owns, those that were lost.
    pub(crate) fn counts(&self, name: &str) -> (usize, usize, usize) {
        let log = self.log();
        (log.assigned, log.holds(name), log.lost.len())
    }

    /// Nothing was lost, and there was no trouble.
    pub(crate) fn quiet(&self) -> Tested {
        let log = self.log();
        if log.lost.is_empty() && log.trouble.is_empty() {
            return Ok(());
        }
        Err(format!("lost {:?}, trouble {:?}", log.lost, log.trouble).into())
    }

    pub(crate) async fn join(&mut self, name: &'static str, backend: &dyn Backend) -> Tested {
        let options = SourceOptions::new(self.group.clone(), self.topics.clone())
            .with_commit_interval(Duration::from_millis(50))
            .with_revoke_within(Duration::from_secs(5));
        let source = backend.source(options).await?;
        let (orders, taken) = mpsc::unbounded_channel();
        self.log().owned.insert(name, BTreeSet::new());
        let task = tokio::spawn(drive(name, source, taken, self.shared.clone()));
        self.members.insert(name, Member { orders, task });
        Ok(())
    }

    /// Leaves cleanly.
    pub(crate) async fn leave(&mut self, name: &str) -> Tested {
        let member = self.members.remove(name).ok_or("no such member")?;
        let _ = member.orders.send(Order::Close);
        member.task.await?
    }

    /// Ends it as by SIGKILL.
    pub(crate) async fn kill(&mut self, name: &str) {
        if let Some(member) = self.members.remove(name) {
            member.task.abort();
            let _ = member.task.await;
            self.log().owned.remove(name);
        }
    }

    pub(crate) fn freeze(&self, name: &str, time: Duration) {
        let _ = self.members[name].orders.send(Order::Freeze(time));
    }

    pub(crate) fn linger(&self, name: &str, time: Duration) {
        let _ = self.members[name].orders.send(Order::Linger(time));
    }

    pub(crate) async fn leave_all(&mut self) -> Tested {
        let names: Vec<_> = self.members.keys().copied().collect();
        for name in names {
            self.leave(name).await?;
        }
        Ok(())
    }

    /// Waits until it is so; how long that took.
    pub(crate) async fn until(&self, what: &str, done: impl Fn(&Log) -> bool) -> Result<Duration, Failed> {
        let began = Instant::now();
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if done(&self.log()) {
                return Ok(began.elapsed());
            }
            if let Some((name, _)) = self.members.iter().find(|(_, member)| member.task.is_finished()) {
                return Err(format!("not {what}: {name} has ended").into());
            }
            let left = PATIENCE.saturating_sub(began.elapsed());
            if tokio::time::timeout(left, changed).await.is_err() {
                let log = self.log();
                let (runs, owned, trouble) = (log.runs.len(), &log.owned, &log.trouble);
                return Err(format!("not {what}: {runs} runs, {owned:#?}, {trouble:#?}").into());
            }
        }
    }

    /// Waits until every partition is owned once and the shares differ by one at most.
    pub(crate) async fn until_even(&self, partitions: usize) -> Result<Duration, Failed> {
        self.until("evenly shared", |log| is_even(log, partitions)).await
    }
}

pub(crate) fn is_even(log: &Log, partitions: usize) -> bool {
    let counts: Vec<usize> = log.owned.values().map(BTreeSet::len).collect();
    let all: BTreeSet<_> = log.owned.values().flatten().collect();
    let most = counts.iter().max().copied().unwrap_or(0);
    let least = counts.iter().min().copied().unwrap_or(0);
    all.len() == partitions && counts.iter().sum::<usize>() == partitions && most - least <= 1
}

impl Log {
    /// Checks what must hold whatever happened: a partition's epochs only grow, offsets of an epoch too, and no version of a
    /// key is run before all earlier ones were.
    pub(crate) fn check(&self) -> Tested {
        let mut partitions: HashMap<&PartitionId, (Epoch, u64)> = HashMap::new();
        let mut keys: HashMap<&str, u64> = HashMap::new();
        for run in &self.runs {
            let now = (run.epoch, run.offset);
            if let Some(before) = partitions.insert(&run.partition, now)
                && now <= before
            {
                return Err(format!("{:?} {now:?} after {before:?}", run.partition).into());
            }
            let most = keys.entry(&run.key).or_insert(0);
            if run.version > *most + 1 {
                return Err(format!("{} skips from {most}: {run:?}", run.key).into());
            }
            *most = run.version.max(*most);
        }
        Ok(())
    }

    /// How many different messages were run, and how many runs there were beyond that.
    pub(crate) fn distinct(&self) -> (usize, usize) {
        (self.messages.len(), self.runs.len() - self.messages.len())
    }

    pub(crate) fn holds(&self, name: &str) -> usize {
        self.owned.get(name).map_or(0, BTreeSet::len)
    }
}

async fn drive(
    name: &'static str,
    mut source: Box<dyn Source>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    shared: Arc<Shared>,
) -> Tested {
    let mut owned: HashMap<Owned, PartitionId> = HashMap::new();
    let mut leaving: Vec<(tokio::time::Instant, Owned)> = Vec::new();
    let mut linger = Duration::ZERO;
    loop {
        let mut events = Vec::new();
        let due = leaving.iter().map(|(at, _)| *at).min();
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(Order::Freeze(time)) => {
                    tokio::time::sleep(time).await;
                    continue;
                }
                Some(Order::Linger(time)) => {
                    linger = time;
                    continue;
                }
                Some(Order::Close) | None => break,
            },
            received = source.recv(1_000, &mut events) => { received?; }
            () = async { tokio::time::sleep_until(due.expect("checked")).await }, if due.is_some() => {
                let now = tokio::time::Instant::now();
                leaving.retain(|(at, ownership)| {
                    let keep = *at > now;
                    if !keep {
                        source.release(&[*ownership]);
                    }
                    keep
                });
                continue;
            }
        }
        let mut settled = Vec::new();
        let mut log = shared.log.lock().expect("no member panics with it");
        for event in events {
            match event {
                SourceEvent::Message(inbound) => {
                    let ownership = inbound.token.owned();
                    log.messages.insert((owned[&ownership].clone(), inbound.token.offset()));
                    let key = inbound.message.key.as_ref().map(|key| key.as_bytes()).unwrap_or_default();
                    log.runs.push(Run {
                        at: Instant::now(),
                        member: name,
                        partition: owned[&ownership].clone(),
                        epoch: ownership.epoch,
                        offset: inbound.token.offset(),
                        key: String::from_utf8_lossy(key).into_owned(),
                        version: String::from_utf8_lossy(&inbound.message.payload).parse().unwrap_or(0),
                    });
                    settled.push((inbound.token, Settlement::Finished));
                }
                SourceEvent::Assigned { owned: assigned } => {
                    for assigned in assigned {
                        log.assigned += 1;
                        owned.insert(assigned.owned, assigned.partition.clone());
                        log.owned.entry(name).or_default().insert(assigned.partition);
                    }
                }
                SourceEvent::Revoking { owned: revoked, .. } => {
                    let at = tokio::time::Instant::now() + linger;
                    leaving.extend(revoked.into_iter().map(|ownership| (at, ownership)));
                }
                SourceEvent::Released { owned: ended, .. } => {
                    for ownership in ended {
                        let partition = owned.remove(&ownership).ok_or("released and never owned")?;
                        log.owned.entry(name).or_default().remove(&partition);
                    }
                }
                SourceEvent::Lost { owned: ended } => {
                    for ownership in ended {
                        let partition = owned.remove(&ownership).ok_or("lost and never owned")?;
                        log.owned.entry(name).or_default().remove(&partition);
                        log.lost.push((name, partition, Instant::now()));
                    }
                }
                SourceEvent::Trouble(error) => log.trouble.push(format!("{name}: {}", error.chain())),
                other => return Err(format!("unknown event {other:?}").into()),
            }
        }
        drop(log);
        source.settle(&mut settled);
        shared.changed.notify_waiters();
    }
    let closed = source.close(PATIENCE).await;
    match closed {
        // It had been frozen or cut off: nobody hands over what he has lost.
        Err(error) if error.kind() == ErrorKind::Fenced => {
            shared
                .log
                .lock()
                .expect("no member panics with it")
                .trouble
                .push(format!("{name}: {}", error.chain()));
        }
        closed => closed?,
    }
    shared.log.lock().expect("no member panics with it").owned.remove(name);
    shared.changed.notify_waiters();
    Ok(())
}
