//! The broker: topics, groups and positions, for as long as somebody holds it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ebus_core::{Error, ErrorKind, Group, LogMark, Topic};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use crate::backend::MemoryBackend;
use crate::config::{MemoryConfig, TopicPolicy, validate_partitions};
use crate::connection::Connection;
use crate::error;
use crate::fault::Faults;
use crate::group::GroupState;
use crate::log::Log;
use crate::member::MemberId;
use crate::retention::Limits;
use crate::topic::TopicLog;

/// Topics, groups and positions in this process. A clone is the same broker.
///
/// It lives as long as a clone, a connection, a publisher or a source of it.
#[derive(Clone)]
pub struct MemoryBroker {
    shared: Arc<Shared>,
}

struct Shared {
    config: MemoryConfig,
    origin: Instant,
    topics: RwLock<HashMap<Topic, Arc<TopicLog>>>,
    groups: Mutex<HashMap<Group, Arc<GroupState>>>,
    members: AtomicU64,
}

impl MemoryBroker {
    /// An empty broker.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the setting.
    pub fn new(config: MemoryConfig) -> Result<Self, Error> {
        config.validate()?;
        let shared = Shared {
            config,
            origin: Instant::now(),
            topics: RwLock::default(),
            groups: Mutex::default(),
            members: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A connection with bounds of its own.
    pub fn connect(&self) -> MemoryBackend {
        let config = self.config();
        MemoryBackend::on(self.clone(), Connection::new(config.max_in_flight, config.max_in_flight_bytes))
    }

    /// Its settings.
    pub fn config(&self) -> &MemoryConfig {
        &self.shared.config
    }

    /// Makes things go wrong, for tests.
    pub fn faults(&self) -> Faults {
        Faults::new(self.clone())
    }

    /// Forgets a group and its positions, so that it holds no log any more. Its next member finds a new group.
    ///
    /// # Errors
    /// `NotFound`, or `ConfigInvalid` while it has members.
    pub fn delete_group(&self, group: &Group) -> Result<(), Error> {
        let mut groups = self.shared.groups.lock();
        let failed = |kind, message| {
            Err(Error::new(kind, message).with_operation("delete_group").with_context("group", group))
        };
        match groups.get(group) {
            None => failed(ErrorKind::NotFound, "no such group"),
            Some(state) if !state.dissolve() => {
                failed(ErrorKind::ConfigInvalid, "the group has members; close them first")
            }
            Some(_) => {
                groups.remove(group);
                Ok(())
            }
        }
    }

    pub(crate) fn origin(&self) -> Instant {
        self.shared.origin
    }

    pub(crate) fn next_member(&self) -> MemberId {
        MemberId(self.shared.members.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn topic(&self, topic: &Topic) -> Option<Arc<TopicLog>> {
        self.shared.topics.read().get(topic).cloned()
    }

    /// The topic, by the policy for those that do not exist.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn topic_or_create(
        &self,
        topic: &Topic,
        operation: &'static str,
    ) -> Result<Arc<TopicLog>, Error> {
        if let Some(found) = self.topic(topic) {
            return Ok(found);
        }
        match self.config().topic_policy {
            TopicPolicy::MustExist => Err(error::no_such_topic(operation, topic)),
            TopicPolicy::Create { partitions } => Ok(self.insert(topic, partitions)),
        }
    }

    /// Creates the topic, or finds it as it should be.
    ///
    /// # Errors
    /// `ConfigInvalid` when it exists with other partitions.
    pub(crate) fn create(&self, topic: &Topic, partitions: u32) -> Result<Arc<TopicLog>, Error> {
        validate_partitions(partitions)?;
        let found = self.insert(topic, partitions);
        match found.partitions.len() {
            has if has == partitions as usize => Ok(found),
            has => {
                let message =
                    format!("the topic exists with {has} partitions, not {partitions}; nothing was changed");
                Err(error::invalid(message).with_operation("create_topic").with_context("topic", topic))
            }
        }
    }

    /// Finds it, or creates it and tells the groups.
    fn insert(&self, topic: &Topic, partitions: u32) -> Arc<TopicLog> {
        let mut topics = self.shared.topics.write();
        if let Some(found) = topics.get(topic) {
            return found.clone();
        }
        let created = self.make(topic, partitions);
        topics.insert(topic.clone(), created.clone());
        drop(topics);
        tracing::info!(%topic, partitions, "topic created");
        self.tell(&created);
        created
    }

    fn make(&self, topic: &Topic, partitions: u32) -> Arc<TopicLog> {
        let limits = Limits { messages: self.config().retain_messages, bytes: self.config().retain_bytes };
        let half = || u128::from(RandomState::new().hash_one(topic));
        Arc::new(TopicLog::new(topic.clone(), LogMark(half() << 64 | half()), partitions, limits))
    }

    fn tell(&self, topic: &TopicLog) {
        for group in self.groups() {
            group.topic_created(topic);
        }
    }

    /// For fault injection: another, empty log under the same name. False when there is none.
    pub(crate) fn remake(&self, topic: &Topic) -> bool {
        let mut topics = self.shared.topics.write();
        let Some(old) = topics.get(topic).cloned() else { return false };
        let new = self.make(topic, old.partitions.len() as u32);
        topics.insert(topic.clone(), new.clone());
        drop(topics);
        old.remove();
        self.tell(&new);
        true
    }

    pub(crate) fn logs(&self) -> Vec<Arc<Log>> {
        self.shared.topics.read().values().flat_map(|topic| topic.partitions.iter().cloned()).collect()
    }

    pub(crate) fn group(&self, group: &Group) -> Option<Arc<GroupState>> {
        self.shared.groups.lock().get(group).cloned()
    }

    /// Finds the group or makes it, and does `with` it before anybody can delete it.
    pub(crate) fn with_group<T>(&self, group: &Group, with: impl FnOnce(&Arc<GroupState>) -> T) -> T {
        let mut groups = self.shared.groups.lock();
        let state = groups.entry(group.clone()).or_insert_with(|| {
            Arc::new(GroupState::new(group.clone(), self.config().max_idle, self.shared.origin))
        });
        with(state)
    }

    pub(crate) fn groups(&self) -> Vec<Arc<GroupState>> {
        self.shared.groups.lock().values().cloned().collect()
    }
}

impl std::fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBroker").field("config", self.config()).finish_non_exhaustive()
    }
}
