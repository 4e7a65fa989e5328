//! A member in a process of its own, which can be frozen and killed. It says on its output what it does.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ebus_core::{Settlement, SourceEvent, Topic};
use ebus_kafka::GroupProtocol;

use crate::raw::{PATIENCE, Tested, block};
use crate::{connect, options};

const ROLE: &str = "EBUS_KAFKA_TEST_MEMBER";

/// What this process is to be, when it is one of those.
pub(crate) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

pub(crate) fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis())
}

/// `protocol topic url`: reads the topic, a message every 10 ms, and starts nothing past the end of a lease, as a pool does.
pub(crate) fn run(role: String) {
    let mut words = role.splitn(3, ' ');
    let mut word = || words.next().expect("three words").to_owned();
    let protocol = if word() == "consumer" { GroupProtocol::Consumer } else { GroupProtocol::Classic };
    let (topic, url) = (Topic::new(word()).expect("legal"), word());
    let result = block(async move {
        let backend = connect(&url, protocol).await?;
        let mut source = ebus_core::Backend::source(&backend, options(&topic)?).await?;
        let (mut leases, mut waiting) = (std::collections::HashMap::new(), std::collections::VecDeque::new());
        let mut out = std::io::stdout();
        loop {
            let mut events = Vec::new();
            let turn = Duration::from_millis(10);
            if let Ok(received) = tokio::time::timeout(turn, source.recv(100, &mut events)).await {
                received?;
            }
            for event in events {
                match event {
                    SourceEvent::Assigned { owned } => {
                        for one in owned {
                            writeln!(out, "own {} {} {}", one.partition.partition, one.owned.epoch.0, now())?;
                            leases.insert(one.owned, (one.partition.partition, one.lease));
                        }
                    }
                    SourceEvent::Message(inbound) => waiting.push_back(inbound),
                    SourceEvent::Revoking { owned, .. } => {
                        owned.iter().for_each(|one| drop(leases.remove(one)));
                        source.release(&owned);
                    }
                    SourceEvent::Lost { owned } => {
                        for one in owned {
                            if let Some((partition, _)) = leases.remove(&one) {
                                writeln!(out, "lost {partition} {} {}", one.epoch.0, now())?;
                            }
                        }
                    }
                    _ => {}
                }
            }
            let Some(inbound) = waiting.pop_front() else { continue };
            let (at, owned) = (now(), inbound.token.owned());
            let Some((partition, lease)) = leases.get(&owned) else { continue };
            if !lease.is_current(Instant::now()) {
                waiting.push_front(inbound);
                continue;
            }
            writeln!(out, "run {partition} {} {at} {}", owned.epoch.0, inbound.token.offset())?;
            source.settle(&mut vec![(inbound.token, Settlement::Finished)]);
        }
    });
    if let Err(failed) = result {
        eprintln!("{failed:?}");
        std::process::exit(1);
    }
}

/// What a member said: a word, a partition, an epoch, and when.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) what: String,
    pub(crate) partition: u32,
    pub(crate) epoch: u64,
    pub(crate) at: u128,
}

/// A member in another process; killed when it is dropped.
pub(crate) struct Member {
    child: Child,
    lines: Arc<Mutex<Vec<Line>>>,
}

impl Member {
    pub(crate) fn start(url: &str, topic: &Topic, protocol: GroupProtocol) -> Tested<Self> {
        let label = if protocol == GroupProtocol::Consumer { "consumer" } else { "classic" };
        let mut child = Command::new(std::env::current_exe()?)
            .env(ROLE, format!("{label} {topic} {url}"))
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (into, output) = (lines.clone(), child.stdout.take().ok_or("it has an output")?);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let mut words = line.split(' ');
                let what = words.next().unwrap_or_default().to_owned();
                let mut number = || words.next().and_then(|word| word.parse::<u128>().ok());
                let (Some(partition), Some(epoch), Some(at)) = (number(), number(), number()) else {
                    continue;
                };
                let line = Line { what, partition: partition as u32, epoch: epoch as u64, at };
                into.lock().expect("nobody panics with it").push(line);
            }
        });
        Ok(Self { child, lines })
    }

    pub(crate) fn lines(&self, what: &str) -> Vec<Line> {
        let lines = self.lines.lock().expect("nobody panics with it");
        lines.iter().filter(|line| line.what == what).cloned().collect()
    }

    /// Sends a signal by its name: STOP, CONT, KILL.
    pub(crate) fn signal(&self, name: &str) -> Tested {
        let status = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status()?;
        if status.success() { Ok(()) } else { Err(format!("kill -{name}: {status}").into()) }
    }

    pub(crate) async fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) -> Tested {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            if Instant::now() >= end {
                let lines = self.lines.lock().expect("nobody panics with it");
                let tail: Vec<_> = lines.iter().rev().take(20).collect();
                return Err(format!("not in time: {what}; it said last: {tail:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
