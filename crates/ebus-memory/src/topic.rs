//! A topic: its partitions, and which of them a message goes to (G2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use ebus_core::{Key, LogMark, PartitionId, Topic, TopicInfo};
use parking_lot::Mutex;

use crate::convert::partition_of;
use crate::log::Log;
use crate::retention::Limits;

/// A topic.
#[derive(Debug)]
pub(crate) struct TopicLog {
    pub(crate) topic: Topic,
    pub(crate) partitions: Vec<Arc<Log>>,
    /// Where the next message without a key goes.
    turn: AtomicU32,
    /// Whether `trouble` says anything: all that a healthy publish looks at.
    troubled: AtomicBool,
    removed: AtomicBool,
    trouble: Mutex<Trouble>,
}

/// What fault injection does to publishes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) unavailable: bool,
    /// How many of the next messages are stored twice.
    pub(crate) twice: u32,
    /// How much later receipts come.
    pub(crate) delay: Duration,
}

impl TopicLog {
    pub(crate) fn new(topic: Topic, mark: LogMark, partitions: u32, limits: Limits) -> Self {
        let log = |number| Arc::new(Log::new(PartitionId::new(topic.clone(), number), mark, limits));
        Self {
            partitions: (0..partitions).map(log).collect(),
            topic,
            turn: AtomicU32::new(0),
            troubled: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            trouble: Mutex::default(),
        }
    }

    /// The log of a key's partition; without a key, of each partition in turn.
    pub(crate) fn log_for(&self, key: Option<&Key>) -> &Arc<Log> {
        let count = self.partitions.len() as u32;
        let partition = match key {
            Some(key) => partition_of(key.as_bytes(), count),
            None => self.turn.fetch_add(1, Ordering::Relaxed) % count,
        };
        &self.partitions[partition as usize]
    }

    pub(crate) fn info(&self) -> TopicInfo {
        TopicInfo::new(self.topic.clone(), self.partitions.iter().map(|log| log.info()).collect())
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::Release);
        self.partitions.iter().for_each(|log| log.remove());
    }

    /// What fault injection does to the next message.
    pub(crate) fn trouble(&self) -> Trouble {
        if !self.troubled.load(Ordering::Acquire) {
            return Trouble::default();
        }
        let mut trouble = self.trouble.lock();
        let now = *trouble;
        if !now.unavailable {
            trouble.twice = trouble.twice.saturating_sub(1);
        }
        now
    }

    pub(crate) fn set_trouble(&self, change: impl FnOnce(&mut Trouble)) {
        let mut trouble = self.trouble.lock();
        change(&mut trouble);
        self.troubled.store(*trouble != Trouble::default(), Ordering::Release);
    }
}
