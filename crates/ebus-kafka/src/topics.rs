//! The handle that asks and creates: topics, their ids and ends. Never by the way: a topic is created by an explicit call or
//! by the policy (G8), and the broker's auto-creation is off.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebus_core::{Error, ErrorKind, Group, LogMark, NextOffset, PartitionInfo, Topic, TopicInfo, TopicSpec};
use parking_lot::Mutex;
use rdkafka::client::Client;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::clients::{self, FRAMING, Log};
use crate::config::{KafkaConfig, TopicPolicy};
use crate::elsewhere::Elsewhere;
use crate::error::{from_kafka, invalid};
use crate::sys::admin::{self, Described};
use crate::sys::committed::{GroupOffset, NewOffset, commit, committed};
use crate::sys::configs::topic_configs;
use crate::sys::ends::{End, ends};
use crate::takes::Takes;

/// How often a topic that was just created is looked up until each partition has a leader.
const SETTLING: Duration = Duration::from_millis(20);
/// How long the first publish to a topic waits to be told what the topic takes.
const TELLING: Duration = Duration::from_secs(2);

/// The control handle. Its methods block: call them through [`Control::run`].
#[derive(Clone)]
pub(crate) struct Control {
    handle: Arc<Elsewhere<BaseConsumer<Log>>>,
    config: Arc<KafkaConfig>,
    askers: Arc<Mutex<Vec<Asker>>>,
}

/// A handle that asks for the positions of a group.
#[derive(Clone)]
struct Asker {
    group: Group,
    handle: Arc<Elsewhere<BaseConsumer<Log>>>,
}

/// How many of them are kept, for the groups that were asked for last. Each is two threads and some connections.
const ASKERS: usize = 4;

impl Control {
    pub(crate) fn new(config: Arc<KafkaConfig>) -> Result<Self, Error> {
        let handle = clients::consumer(&clients::control(&config), Log::default(), "connect")?;
        Ok(Self { handle: Arc::new(Elsewhere::new(handle)), config, askers: Arc::default() })
    }

    pub(crate) fn client(&self) -> &Client<Log> {
        self.handle.client()
    }

    /// What a group has committed for a topic of so many partitions; blocks.
    pub(crate) fn group_offsets(
        &self,
        group: &Group,
        topic: &Topic,
        partitions: u32,
    ) -> Result<Vec<GroupOffset>, Error> {
        let asker = self.asker(group)?;
        while asker.poll(Duration::ZERO).is_some() {}
        committed(&asker, topic.as_str(), partitions, self.timeout())
    }

    /// Commits offsets for a group without members; blocks. A group with members refuses: `Fenced` or `Unexpected`.
    pub(crate) fn commit_for(&self, group: &Group, offsets: &[NewOffset<'_>]) -> Result<(), Error> {
        let asker = self.asker(group)?;
        while asker.poll(Duration::ZERO).is_some() {}
        commit(&asker, offsets, self.timeout())
    }

    fn asker(&self, group: &Group) -> Result<Arc<Elsewhere<BaseConsumer<Log>>>, Error> {
        let mut askers = self.askers.lock();
        let found = askers.iter().position(|asker| asker.group == *group);
        let asker = match found {
            Some(index) => askers.remove(index),
            None => {
                let config = clients::asker(&self.config, group);
                let handle = clients::consumer(&config, Log::default(), "read committed positions")?;
                Asker { group: group.clone(), handle: Arc::new(Elsewhere::new(handle)) }
            }
        };
        let handle = asker.handle.clone();
        askers.insert(0, asker);
        let kept = askers.len().min(ASKERS);
        askers.truncate(kept);
        Ok(handle)
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.config.request_timeout
    }

    /// Serves logs and errors of the handle; does not wait.
    pub(crate) fn serve(&self) {
        while self.handle.poll(Duration::ZERO).is_some() {}
    }

    /// Runs `work` on a blocking thread.
    ///
    /// # Cancel safety
    /// Dropped: the work goes on and its result is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let control = self.clone();
        match tokio::task::spawn_blocking(move || work(&control)).await {
            Ok(result) => result.map_err(|error| error.with_operation(operation)),
            Err(failed) => {
                Err(Error::new(ErrorKind::Unexpected, "a blocking task of the Kafka client ended early")
                    .with_operation(operation)
                    .with_source(failed))
            }
        }
    }

    /// Waits for the first answer of the cluster.
    pub(crate) fn reach(&self) -> Result<(), Error> {
        let end = Instant::now() + self.timeout();
        loop {
            let left = end.saturating_duration_since(Instant::now()).min(Duration::from_millis(250));
            if self.client().fetch_cluster_id(left.max(Duration::from_millis(1))).is_some() {
                return Ok(());
            }
            self.serve();
            let last = self.handle.context().last_error();
            let denied =
                last.as_ref().is_some_and(|(code, _)| crate::error::kind_of(*code) == ErrorKind::Denied);
            if denied || Instant::now() >= end {
                let error = match &last {
                    Some((code, _)) if denied => crate::error::from_code("connect", *code),
                    _ => Error::new(
                        ErrorKind::Unavailable,
                        "no broker answered; check the address and that the cluster is up",
                    ),
                };
                let error = error.with_operation("connect").with_context("bootstrap", &self.config.bootstrap);
                return Err(match last {
                    Some((_, reason)) => error.with_context("librdkafka_said", reason),
                    None => error,
                });
            }
        }
    }

    /// Looks a topic up.
    pub(crate) fn describe(&self, topic: &Topic) -> Result<Option<Described>, Error> {
        let mut found = admin::describe_topics(self.client(), &[topic.as_str()], self.timeout())?;
        Ok(found.pop().flatten().filter(|described| described.partitions > 0))
    }

    /// Which logs the topics are that exist.
    pub(crate) fn marks(&self, topics: &[Topic]) -> Result<HashMap<Topic, LogMark>, Error> {
        let names: Vec<&str> = topics.iter().map(Topic::as_str).collect();
        let found = admin::describe_topics(self.client(), &names, self.timeout())?;
        let marks = topics.iter().zip(found);
        Ok(marks.filter_map(|(topic, found)| Some((topic.clone(), LogMark(found?.id)))).collect())
    }

    /// Looks a topic up that must exist.
    pub(crate) fn existing(&self, topic: &Topic) -> Result<Described, Error> {
        self.describe(topic)?.ok_or_else(|| not_found(topic))
    }

    /// Finds a topic, or creates it where the policy says so.
    pub(crate) fn ensure(&self, topic: &Topic) -> Result<Described, Error> {
        if let Some(described) = self.describe(topic)? {
            return Ok(described);
        }
        match self.config.topic_policy {
            TopicPolicy::MustExist => Err(not_found(topic)),
            TopicPolicy::Create { partitions, replicas } => {
                tracing::info!(%topic, partitions, replicas, "creating a topic that does not exist, as the topic policy says");
                self.create_or_find(topic, partitions, replicas)
            }
        }
    }

    /// What a topic takes, if its brokers tell in time.
    pub(crate) fn takes(&self, topic: &Topic) -> Option<Takes> {
        match topic_configs(self.client(), topic.as_str(), self.timeout().min(TELLING)) {
            Ok(configs) => Some(Takes {
                most_bytes: configs.get("max.message.bytes").and_then(|most| most.parse().ok()),
                needs_key: configs.get("cleanup.policy").is_some_and(|policy| policy.contains("compact")),
            }),
            Err(error) => {
                tracing::debug!(%topic, error = %error.chain(), "what the topic takes is not told; its broker refuses the rest");
                None
            }
        }
    }

    /// Creates a topic, or finds it with the same partitions.
    pub(crate) fn create(&self, spec: &TopicSpec) -> Result<TopicInfo, Error> {
        if spec.partitions == 0 || spec.replicas == 0 {
            return Err(
                invalid("partitions and replicas must be at least 1").with_context("topic", &spec.topic)
            );
        }
        let described = match self.describe(&spec.topic)? {
            Some(described) => described,
            None => self.create_or_find(&spec.topic, spec.partitions, spec.replicas)?,
        };
        if described.partitions != spec.partitions {
            return Err(invalid(format!(
                "the topic exists with {} partitions, not {}; changing it would end the order per key",
                described.partitions, spec.partitions
            ))
            .with_context("topic", &spec.topic));
        }
        self.info(&spec.topic, described.partitions)
    }

    fn create_or_find(&self, topic: &Topic, partitions: u32, replicas: u16) -> Result<Described, Error> {
        let end = Instant::now() + self.timeout();
        let largest = (self.config.max_message_bytes + FRAMING).to_string();
        let settings = [("max.message.bytes", largest)];
        // False: somebody else was quicker, which is as good.
        admin::create_topic(self.client(), topic.as_str(), partitions, replicas, &settings, self.timeout())?;
        loop {
            match self.describe(topic)? {
                Some(described) if described.led => return Ok(described),
                _ if Instant::now() >= end => {
                    return Err(Error::new(
                        ErrorKind::Timeout,
                        "the topic was created, but not every partition has a leader yet; check the brokers",
                    )
                    .with_context("topic", topic));
                }
                _ => std::thread::sleep(SETTLING),
            }
        }
    }

    /// Where its partitions begin and end.
    pub(crate) fn info(&self, topic: &Topic, partitions: u32) -> Result<TopicInfo, Error> {
        Ok(TopicInfo::new(topic.clone(), self.ranges(topic, partitions)?))
    }

    /// Where each partition of a topic that was seen begins and ends.
    pub(crate) fn ranges(&self, topic: &Topic, partitions: u32) -> Result<Vec<PartitionInfo>, Error> {
        let end = Instant::now() + self.timeout();
        loop {
            let ask = |side: End| {
                let left = end.saturating_duration_since(Instant::now()).max(SETTLING);
                ends(self.client(), topic.as_str(), partitions, side, left)
            };
            let both = ask(End::First).and_then(|first| Ok((first, ask(End::Next)?)));
            match both {
                Ok((first, next)) => {
                    let ranges = first.into_iter().zip(next);
                    return Ok(ranges
                        .map(|(earliest, end)| PartitionInfo { earliest, end: NextOffset(end) })
                        .collect());
                }
                // What is new is not known to every broker at once: neither a topic, nor who leads a partition.
                Err(error)
                    if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::NotFound)
                        && Instant::now() < end =>
                {
                    std::thread::sleep(SETTLING);
                }
                Err(error) => return Err(error.with_context("topic", topic)),
            }
        }
    }

    /// Where a partition of a topic that was seen begins and ends.
    pub(crate) fn range(&self, topic: &Topic, partition: u32) -> Result<PartitionInfo, Error> {
        let number = i32::try_from(partition).unwrap_or(i32::MAX);
        let end = Instant::now() + self.timeout();
        let (low, high) = loop {
            let left = end.saturating_duration_since(Instant::now()).max(SETTLING);
            match self.client().fetch_watermarks(topic.as_str(), number, left) {
                Ok(range) => break range,
                Err(error) => {
                    // The leader of a partition that is new, or that moved, is not known everywhere at once; nor, after a restart, what
                    // topics there are.
                    let error = from_kafka("read offsets", error);
                    let passes = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::NotFound);
                    if !passes || Instant::now() >= end {
                        return Err(error.with_context("topic", topic).with_context("partition", partition));
                    }
                    std::thread::sleep(SETTLING);
                }
            }
        };
        let at = |offset: i64| u64::try_from(offset).unwrap_or(0);
        Ok(PartitionInfo { earliest: at(low), end: NextOffset(at(high)) })
    }

    /// The first offset at this time or later, or the end.
    pub(crate) fn at_time(&self, topic: &Topic, partitions: u32, millis: i64) -> Result<Vec<u64>, Error> {
        let wrong = |error| from_kafka("find a time", error).with_context("topic", topic);
        let mut list = rdkafka::TopicPartitionList::new();
        for partition in 0..partitions {
            let number = i32::try_from(partition).unwrap_or(i32::MAX);
            // librdkafka takes negative times as names of places, such as the end.
            list.add_partition_offset(topic.as_str(), number, rdkafka::Offset::Offset(millis.max(0)))
                .map_err(wrong)?;
        }
        let found = self.handle.offsets_for_times(list, self.timeout()).map_err(wrong)?;
        (0..partitions)
            .map(|partition| {
                let number = i32::try_from(partition).unwrap_or(i32::MAX);
                let element = found.find_partition(topic.as_str(), number).ok_or_else(|| not_found(topic))?;
                element.error().map_err(wrong)?;
                match element.offset() {
                    rdkafka::Offset::Offset(offset) => Ok(u64::try_from(offset).unwrap_or(0)),
                    _ => self.range(topic, partition).map(|range| range.end.0),
                }
            })
            .collect()
    }
}

pub(crate) fn not_found(topic: &Topic) -> Error {
    Error::new(
        ErrorKind::NotFound,
        "there is no such topic; create it first or set a topic policy that creates it",
    )
    .with_context("topic", topic)
}
