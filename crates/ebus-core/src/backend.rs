//! What every backend is: publishers, sources, topics, and reading back.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::{
    Capability, Epoch, Error, ErrorKind, Group, LedgerLimits, Message, NextOffset, Parking, Position,
    Publisher, Source, Timestamp, Topic,
};

/// A connection to a broker. Cheap to share behind an `Arc`.
///
/// Only the control plane is here; no call of it lies on the path of a message.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// What it can do.
    fn capability(&self) -> Capability;

    /// A publisher; all of them share the bounds of the connection.
    fn publisher(&self) -> Publisher;

    /// Joins a group. Resolves when the start position of a new group is committed for every partition of its topics.
    ///
    /// # Errors
    /// `NotFound` for a topic that does not exist, `Unsupported` for what the backend lacks, `Unavailable` or `Timeout`
    /// when the broker does not answer in time.
    async fn source(&self, options: SourceOptions) -> Result<Box<dyn Source>, Error>;

    /// Creates a topic, or finds it as it should be.
    ///
    /// # Errors
    /// `ConfigInvalid` when it exists with other partitions: nothing is changed.
    async fn create_topic(&self, spec: &TopicSpec) -> Result<TopicInfo, Error>;

    /// What there is of a topic.
    ///
    /// # Errors
    /// `NotFound` when it does not exist.
    async fn describe_topic(&self, topic: &Topic) -> Result<TopicInfo, Error>;

    /// Reads a range beside all groups, without touching them.
    ///
    /// # Errors
    /// `NotFound` when the topic or the partition does not exist.
    async fn read(&self, range: ReadRange) -> Result<Box<dyn Reader>, Error>;

    /// What a group has committed, for every partition of a topic.
    ///
    /// # Errors
    /// `NotFound` when the topic does not exist.
    async fn committed(&self, group: &Group, topic: &Topic) -> Result<Vec<Committed>, Error>;

    /// Where this group keeps which of its keys are parked. Resolves when it is certain that this connection may write there.
    ///
    /// # Errors
    /// `Unsupported` where the backend has no such place, which is the default; `Denied` without the right to write.
    async fn parking(&self, group: &Group) -> Result<Arc<dyn Parking>, Error> {
        let backend = self.capability().backend;
        Err(Error::new(ErrorKind::Unsupported, format!("the backend {backend} has no place for parked keys"))
            .with_operation("parking")
            .with_context("group", group))
    }

    /// The same for who only looks, or leaves a request: nothing is created, nor written before it is asked for. The default is
    /// [`parking`](Self::parking), for backends of which there is nothing to create.
    ///
    /// # Errors
    /// `NotFound` when the group keeps no parked keys: nobody has opened it for [`parking`](Self::parking) yet; `Unsupported` where the
    /// backend has no such place; `Denied` without the right to read it.
    async fn existing_parking(&self, group: &Group) -> Result<Arc<dyn Parking>, Error> {
        self.parking(group).await
    }

    /// Sends what is enqueued, waits for its acknowledgements, and disconnects. Calling it again gives the same result.
    ///
    /// Topics, groups and positions stay.
    ///
    /// # Errors
    /// `Timeout` when something was not acknowledged within `within`; it is closed all the same.
    async fn close(&self, within: Duration) -> Result<(), Error>;
}

/// Where a group begins that has no position yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StartPosition {
    /// At the first message that there is.
    #[default]
    Earliest,
    /// After the last message that there is when the group is new. A partition added later is read from its beginning.
    Latest,
    /// At the first message made at this time or later.
    Time(Timestamp),
}

/// A time that does not come: ten years. Longer ones are taken for it, so that adding one to the time of day is in the range of every
/// system's clock.
pub const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How a member joins a group.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SourceOptions {
    /// The group.
    pub group: Group,
    /// What it reads at first; may be none yet.
    pub topics: Vec<Topic>,
    /// Where the group begins if it has no position.
    pub start: StartPosition,
    /// Bounds of the uncommitted span per partition.
    pub limits: LedgerLimits,
    // Not public: both are within what every clock can hold.
    commit_interval: Duration,
    revoke_within: Duration,
}

impl SourceOptions {
    /// With the defaults: from the earliest message, a span of 16,384 messages, commits every 200 ms, 10 s for a hand-over.
    pub fn new(group: Group, topics: Vec<Topic>) -> Self {
        Self {
            group,
            topics,
            start: StartPosition::Earliest,
            limits: LedgerLimits::default(),
            commit_interval: Duration::from_millis(200),
            revoke_within: Duration::from_secs(10),
        }
    }

    /// Where the group begins if it has no position.
    #[must_use]
    pub fn with_start(mut self, start: StartPosition) -> Self {
        self.start = start;
        self
    }

    /// Bounds of the uncommitted span per partition.
    #[must_use]
    pub fn with_limits(mut self, limits: LedgerLimits) -> Self {
        self.limits = limits;
        self
    }

    /// How often positions are committed when something finished; [`FOR_EVER`] at most.
    pub fn commit_interval(&self) -> Duration {
        self.commit_interval
    }

    /// How long a hand-over waits for runs in progress before they are cancelled; [`FOR_EVER`] at most.
    pub fn revoke_within(&self) -> Duration {
        self.revoke_within
    }

    /// How often positions are committed; [`FOR_EVER`] at most.
    #[must_use]
    pub fn with_commit_interval(mut self, interval: Duration) -> Self {
        self.commit_interval = interval.min(FOR_EVER);
        self
    }

    /// How long a hand-over waits for runs in progress; [`FOR_EVER`] at most.
    #[must_use]
    pub fn with_revoke_within(mut self, within: Duration) -> Self {
        self.revoke_within = within.min(FOR_EVER);
        self
    }
}

/// A topic to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicSpec {
    /// Its name.
    pub topic: Topic,
    /// How many partitions it has, at least 1; this cannot be changed later without an end to order per key.
    pub partitions: u32,
    /// On how many nodes each partition is kept; 1 for a single broker.
    pub replicas: u16,
}

impl TopicSpec {
    /// A topic of `partitions` partitions on one node each.
    pub fn new(topic: Topic, partitions: u32) -> Self {
        Self { topic, partitions, replicas: 1 }
    }

    /// On how many nodes each partition is kept.
    #[must_use]
    pub fn with_replicas(mut self, replicas: u16) -> Self {
        self.replicas = replicas;
        self
    }
}

/// What there is of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicInfo {
    /// Its name.
    pub topic: Topic,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionInfo>,
}

impl TopicInfo {
    /// For backends.
    pub fn new(topic: Topic, partitions: Vec<PartitionInfo>) -> Self {
        Self { topic, partitions }
    }
}

/// What there is of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionInfo {
    /// The offset of the first message that is still there; `end` when there is none.
    pub earliest: u64,
    /// The offset after the last message.
    pub end: NextOffset,
}

/// A range of a partition to read beside all groups.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadRange {
    /// The topic.
    pub topic: Topic,
    /// The partition.
    pub partition: u32,
    /// The first offset; what is no more there is skipped.
    pub from: u64,
    /// The offset to stop before.
    pub to: NextOffset,
}

impl ReadRange {
    /// From `from` up to, not including, `to`.
    pub fn new(topic: Topic, partition: u32, from: u64, to: NextOffset) -> Self {
        Self { topic, partition, from, to }
    }
}

/// Reads a bounded range in ascending order of offset.
#[async_trait]
pub trait Reader: Send {
    /// Appends up to `most` messages with their offsets to `out`; how many. 0 at the end of the range.
    ///
    /// # Cancel safety
    /// Nothing is appended before its last await.
    async fn next(&mut self, most: usize, out: &mut Vec<(u64, Message)>) -> Result<usize, Error>;
}

/// What a group has committed for one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The partition.
    pub partition: u32,
    /// The position; `None` when there is none yet.
    pub position: Option<Position>,
    /// The epoch that wrote it.
    pub epoch: Epoch,
}

impl Committed {
    /// For backends.
    pub fn new(partition: u32, position: Option<Position>, epoch: Epoch) -> Self {
        Self { partition, position, epoch }
    }
}
