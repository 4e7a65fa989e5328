//! A driver of a source for tests: takes what it says, and settles at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ebus_core::{
    Backend, Committed, Epoch, Error, ErrorKind, Group, Message, Publish, Settlement, Source, SourceEvent,
    SourceOptions, Token, Topic, TopicSpec,
};
use ebus_nats::{NatsBackend, NatsConfig};
use libtest_mimic::Failed;
use tokio::time::{Instant, timeout};

pub(crate) type Tested = Result<(), Failed>;

/// Longer than any take-over on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test in a runtime of its own.
pub(crate) fn run(test: impl Future<Output = Tested>) -> Tested {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        timeout(4 * PATIENCE, test).await.unwrap_or_else(|_| Err("the test hangs".into()))
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// A name that no other test or run uses.
pub(crate) fn unique(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{what}-{:x}-{}", now & 0xff_ffff_ffff, COUNT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn topic(what: &str) -> Topic {
    Topic::new(unique(what)).expect("legal")
}

pub(crate) fn group(what: &str) -> Group {
    Group::new(unique(what)).expect("legal")
}

pub(crate) async fn connect(url: &str) -> Result<NatsBackend, Error> {
    NatsBackend::connect(config(url)).await
}

pub(crate) fn config(url: &str) -> NatsConfig {
    NatsConfig::from_url(url).expect("legal")
}

pub(crate) async fn create(backend: &NatsBackend, topic: &Topic, partitions: u32) -> Result<(), Error> {
    backend.create_topic(&TopicSpec::new(topic.clone(), partitions)).await.map(drop)
}

/// Publishes `keys` x `versions`, in order, and waits for all receipts.
pub(crate) async fn publish(
    backend: &NatsBackend,
    topic: &Topic,
    keys: usize,
    versions: std::ops::Range<u64>,
) -> Result<(), Error> {
    let mut publisher = backend.publisher();
    let mut waiting = Vec::new();
    for version in versions {
        for key in 0..keys {
            let message = Message::new(version.to_string()).with_key(format!("k{key}"));
            waiting.push(publisher.enqueue(Publish::new(topic.clone(), message)).await?);
        }
    }
    for receipt in waiting {
        receipt.await?;
    }
    Ok(())
}

/// What a source said.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Key, payload, partition's slot, offset.
    pub(crate) messages: Vec<(String, String, u32, u64)>,
    pub(crate) epochs: Vec<Epoch>,
    pub(crate) lost: usize,
    pub(crate) released: usize,
    pub(crate) trouble: Vec<Error>,
    /// What is not settled.
    pub(crate) held: Vec<Token>,
}

impl Heard {
    /// Versions of each key grow by one.
    pub(crate) fn check_order(&self) -> Tested {
        let mut last = std::collections::HashMap::new();
        for (key, version, ..) in &self.messages {
            let version: u64 = version.parse()?;
            let before = last.insert(key, version);
            if before.is_some_and(|before| version != before + 1) {
                return Err(format!("{key}: {version} after {before:?}").into());
            }
        }
        Ok(())
    }
}

/// A source and what it said so far.
pub(crate) struct Driver {
    pub(crate) source: Box<dyn Source>,
    pub(crate) heard: Heard,
    /// Settle at once.
    pub(crate) settle: bool,
}

impl Driver {
    pub(crate) async fn join(backend: &NatsBackend, group: &Group, topic: &Topic) -> Result<Self, Error> {
        let options = SourceOptions::new(group.clone(), vec![topic.clone()])
            .with_commit_interval(Duration::from_millis(50))
            .with_revoke_within(Duration::from_secs(2));
        Ok(Self { source: backend.source(options).await?, heard: Heard::default(), settle: true })
    }

    /// Drives the source until `done`, or fails with what was heard.
    pub(crate) async fn until(&mut self, what: &str, done: impl Fn(&Heard) -> bool) -> Tested {
        let deadline = Instant::now() + PATIENCE;
        while !done(&self.heard) {
            if !self.step(deadline).await? {
                let Heard { messages, epochs, lost, trouble, .. } = &self.heard;
                let count = messages.len();
                return Err(format!(
                    "not {what}: {count} messages, epochs {epochs:?}, {lost} lost, {trouble:?}"
                )
                .into());
            }
        }
        Ok(())
    }

    /// Drives the source for a while.
    pub(crate) async fn during(&mut self, time: Duration) -> Tested {
        let deadline = Instant::now() + time;
        while self.step(deadline).await? {}
        Ok(())
    }

    async fn step(&mut self, deadline: Instant) -> Result<bool, Failed> {
        let mut events = Vec::new();
        match tokio::time::timeout_at(deadline, self.source.recv(1_000, &mut events)).await {
            Err(_) => return Ok(false),
            Ok(count) => assert_eq!(count?, events.len()),
        }
        let mut settled = Vec::new();
        for event in events {
            match event {
                SourceEvent::Message(inbound) => {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let key =
                        inbound.message.key.as_ref().map(|key| text(key.as_bytes())).unwrap_or_default();
                    let (slot, offset) = (inbound.token.owned().slot.0, inbound.token.offset());
                    self.heard.messages.push((key, text(&inbound.message.payload), slot, offset));
                    if self.settle {
                        settled.push((inbound.token, Settlement::Finished));
                    } else {
                        self.heard.held.push(inbound.token);
                    }
                }
                SourceEvent::Assigned { owned } => {
                    self.heard.epochs.extend(owned.iter().map(|assigned| assigned.owned.epoch));
                }
                SourceEvent::Revoking { owned, .. } => self.source.release(&owned),
                SourceEvent::Lost { owned } => self.heard.lost += owned.len(),
                SourceEvent::Released { owned, .. } => self.heard.released += owned.len(),
                SourceEvent::Trouble(error) => self.heard.trouble.push(error),
                other => return Err(format!("unknown event {other:?}").into()),
            }
        }
        self.source.settle(&mut settled);
        Ok(true)
    }

    pub(crate) async fn close(self) -> Result<Heard, Error> {
        self.source.close(PATIENCE).await?;
        Ok(self.heard)
    }
}

/// The position of one partition as the group's record has it.
pub(crate) fn one(mut committed: Vec<Committed>) -> Committed {
    committed.remove(0)
}

/// Fails unless it failed like this, saying this.
pub(crate) fn refused<T>(result: Result<T, Error>, kind: ErrorKind, says: &str) -> Tested {
    match result {
        Ok(_) => Err(format!("it should be refused: {says}").into()),
        Err(error) if error.kind() == kind && error.chain().contains(says) => Ok(()),
        Err(error) => Err(format!("not {kind} with {says:?}: {error:?}").into()),
    }
}
