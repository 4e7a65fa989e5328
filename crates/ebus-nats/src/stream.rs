//! A topic as a stream: found, created, or what somebody else made of it.
//!
//! A stream of ours has P subjects, `<topic>.0` to `<topic>.<P-1>`, and says P and the hash in its metadata, which every
//! publisher reads (G2). Two more are read by nobody: on `<topic>.void` publishers spend ids (G7, `pump/uncertain.rs`), on
//! `<topic>.void=.*` they fence batches (`pump/remains.rs`). It keeps what it gets: `limits` retention, no limits. A stream that
//! somebody else made is one partition.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType};
use ebus_core::{Error, ErrorKind, LogMark, Topic, TopicSpec};

use crate::config::MissingTopic;
use crate::connection::Connection;
use crate::{error, names};

/// Metadata: how many partitions.
const PARTITIONS: &str = "ebus.partitions";
/// Metadata: how a key becomes a partition.
const HASH: &str = "ebus.hash";
/// The one hash that there is.
const MURMUR2: &str = "murmur2";

/// The age limit that keeps a fence for as long as bytes of a connection that ended may come.
const KEEPS_FENCES: Duration = Duration::from_secs(180);

/// Any one token of a subject.
const ANY: char = '*';

/// More subjects than this make a stream slow to set up and to look at.
const MAX_PARTITIONS: u32 = 4_096;

/// What there is of a topic's stream.
#[derive(Debug, Clone)]
pub(crate) struct TopicStream {
    pub(crate) topic: Topic,
    /// The stream's name.
    pub(crate) name: String,
    pub(crate) partitions: u32,
    /// Where to publish, by partition; `None` where only somebody else's publishers know.
    pub(crate) subjects: Option<Vec<String>>,
    /// What to read, by partition; `None` for all of the stream.
    pub(crate) filters: Option<Vec<String>>,
    /// When the stream was made: changes when it is made anew.
    pub(crate) mark: LogMark,
    /// The first offset that is still there, of all partitions.
    pub(crate) first: u64,
    /// The offset of the last message, of all partitions; 0 when there was none.
    pub(crate) last: u64,
    /// The stream's own limit of a message's bytes.
    pub(crate) max_message_bytes: Option<usize>,
    pub(crate) replicas: usize,
    /// Whether it takes batches.
    pub(crate) takes_batches: bool,
    /// Where a publisher spends the ids of messages that must not come any more.
    pub(crate) void: Option<String>,
    /// Whether publishers can fence batches: on a stream with replicas the end of a batch is known to its leader only, and a
    /// fence must be there while bytes can be late.
    pub(crate) has_fences: bool,
    /// How long it knows an id.
    pub(crate) id_window: Duration,
}

impl TopicStream {
    /// The subject to read of a partition; empty for all of the stream.
    pub(crate) fn filter(&self, partition: u32) -> String {
        self.filters.as_ref().and_then(|filters| filters.get(partition as usize).cloned()).unwrap_or_default()
    }

    /// # Errors
    /// `NotFound` for a partition that there is not.
    pub(crate) fn check_partition(&self, partition: u32, operation: &'static str) -> Result<(), Error> {
        if partition < self.partitions {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NotFound, "the topic has no such partition")
            .with_operation(operation)
            .with_context("topic", &self.topic)
            .with_context("partition", partition)
            .with_context("partitions", self.partitions))
    }

    fn read(topic: &Topic, info: &Info) -> Result<Self, Error> {
        let config = &info.config;
        let refused = |kind, message: String| {
            Err(Error::new(kind, message).with_context("topic", topic).with_context("stream", &config.name))
        };
        if config.retention != RetentionPolicy::Limits {
            return refused(
                ErrorKind::Unsupported,
                format!(
                    "the stream has {:?} retention; only limits keeps messages for every group",
                    config.retention
                ),
            );
        }
        let ours = config.metadata.get(PARTITIONS);
        let partitions = match ours {
            None => 1,
            Some(text) => match text.parse::<u32>() {
                Ok(partitions) if (1..=MAX_PARTITIONS).contains(&partitions) => partitions,
                _ => {
                    let message = format!(
                        "the stream's metadata {PARTITIONS}={text:?} is not a number from 1 to {MAX_PARTITIONS}"
                    );
                    return refused(ErrorKind::ConfigInvalid, message);
                }
            },
        };
        if let Some(hash) = config.metadata.get(HASH).filter(|hash| *hash != MURMUR2) {
            let message = format!("the stream's metadata {HASH}={hash:?} is not known; known is {MURMUR2}");
            return refused(ErrorKind::Unsupported, message);
        }
        let (subjects, filters) = if ours.is_some() {
            let subjects: Vec<_> = (0..partitions).map(|p| names::subject(topic, p)).collect();
            if subjects.iter().any(|subject| !config.subjects.contains(subject)) {
                let message =
                    "the stream lacks the subject of a partition; its subjects were changed".to_owned();
                return refused(ErrorKind::ConfigInvalid, message);
            }
            (Some(subjects.clone()), Some(subjects))
        } else {
            let one = match config.subjects.as_slice() {
                [one] if !one.split('.').any(|token| token == "*" || token == ">") => Some(vec![one.clone()]),
                _ => None,
            };
            (one, None)
        };
        let mark = LogMark(u128::try_from(info.created.unix_timestamp_nanos()).unwrap_or_default());
        Ok(Self {
            topic: topic.clone(),
            name: config.name.clone(),
            partitions,
            subjects,
            filters,
            mark,
            first: info.state.first_sequence.max(1),
            last: info.state.last_sequence,
            max_message_bytes: usize::try_from(config.max_message_size).ok().filter(|bytes| *bytes > 0),
            replicas: config.num_replicas,
            takes_batches: config.allow_batch_publish,
            void: Some(names::void(topic)).filter(|void| config.subjects.contains(void)),
            has_fences: config.num_replicas <= 1
                && config.discard == DiscardPolicy::New
                && (config.max_age.is_zero() || config.max_age >= KEEPS_FENCES)
                && config.subjects.contains(&names::fence(topic, ANY)),
            id_window: config.duplicate_window,
        })
    }
}

/// Looks a topic up.
///
/// # Errors
/// `NotFound` when there is no stream of it, `Unsupported` for one that cannot be read by partition.
pub(crate) async fn find(
    connection: &Connection,
    topic: &Topic,
    operation: &'static str,
) -> Result<TopicStream, Error> {
    let name = names::stream(topic);
    match connection.api::<Info>(format!("STREAM.INFO.{name}"), &(), operation).await {
        Ok(Ok(info)) => TopicStream::read(topic, &info).map_err(|error| error.with_operation(operation)),
        Ok(Err(why)) if error::is_no_stream(why.error_code()) => Err(error::no_topic(topic, operation)),
        Ok(Err(why)) => Err(error::api(&why, operation).with_context("topic", topic)),
        Err(error) => Err(error.with_context("topic", topic)),
    }
}

/// Looks a topic up, and creates it if the policy says so.
///
/// # Errors
/// Those of [`find`] and of [`create`].
pub(crate) async fn find_or_create(
    connection: &Connection,
    topic: &Topic,
    operation: &'static str,
) -> Result<TopicStream, Error> {
    match find(connection, topic, operation).await {
        Err(error) if error.kind() == ErrorKind::NotFound => match connection.config.missing_topic {
            MissingTopic::Refuse => Err(error),
            MissingTopic::Create { partitions, replicas } => {
                tracing::info!(%topic, partitions, replicas, "creating a topic that did not exist, as the policy says");
                let spec = TopicSpec::new(topic.clone(), partitions).with_replicas(replicas);
                create(connection, &spec).await.map_err(|error| error.with_operation(operation))
            }
        },
        other => other,
    }
}

/// Creates a topic, or finds it as it should be. Nothing that exists is changed.
///
/// # Errors
/// `ConfigInvalid` when it exists otherwise, or its name or number of partitions is not possible.
pub(crate) async fn create(connection: &Connection, spec: &TopicSpec) -> Result<TopicStream, Error> {
    const OPERATION: &str = "create_topic";
    let topic = &spec.topic;
    let invalid = |message: String| {
        Error::new(ErrorKind::ConfigInvalid, message).with_operation(OPERATION).with_context("topic", topic)
    };
    if names::is_reserved(topic) {
        return Err(invalid("a topic must not begin with KV_ or OBJ_: streams of buckets do".into()));
    }
    if !(1..=MAX_PARTITIONS).contains(&spec.partitions) {
        return Err(invalid(format!(
            "a topic has 1 to {MAX_PARTITIONS} partitions, not {}",
            spec.partitions
        )));
    }
    if !(1..=5).contains(&spec.replicas) {
        return Err(invalid(format!("a topic has 1 to 5 replicas, not {}", spec.replicas)));
    }
    match find(connection, topic, OPERATION).await {
        Ok(found) => return as_it_should_be(found, spec),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if spec.partitions > 1 {
        connection.require(2, 10, "a topic of several partitions")?;
    }
    let config = Config {
        name: names::stream(topic),
        description: Some(format!("ebus topic {topic}")),
        subjects: (0..spec.partitions)
            .map(|p| names::subject(topic, p))
            .chain([names::void(topic), names::fence(topic, ANY)])
            .collect(),
        retention: RetentionPolicy::Limits,
        // Without limits nothing is discarded; if an operator sets one, refuse rather than evict unread messages.
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        num_replicas: usize::from(spec.replicas),
        allow_direct: true,
        allow_batch_publish: connection.config.batches && connection.is_at_least(2, 14),
        metadata: if connection.is_at_least(2, 10) {
            HashMap::from([
                (PARTITIONS.to_owned(), spec.partitions.to_string()),
                (HASH.to_owned(), MURMUR2.to_owned()),
            ])
        } else {
            HashMap::new()
        },
        ..Config::default()
    };
    match connection.api::<Info>(format!("STREAM.CREATE.{}", config.name), &config, OPERATION).await? {
        Ok(info) => TopicStream::read(topic, &info).map_err(|error| error.with_operation(OPERATION)),
        // Somebody was faster: what he made must be the same.
        Err(why) if why.error_code().0 == 10058 => {
            as_it_should_be(find(connection, topic, OPERATION).await?, spec)
        }
        Err(why) => Err(error::api(&why, OPERATION).with_context("topic", topic)),
    }
}

fn as_it_should_be(found: TopicStream, spec: &TopicSpec) -> Result<TopicStream, Error> {
    let other = |what, is, asked| {
        Err(Error::new(
            ErrorKind::ConfigInvalid,
            format!("the topic exists with {is} {what}, not {asked}; it was left as it is"),
        )
        .with_operation("create_topic")
        .with_context("topic", &spec.topic))
    };
    if found.partitions != spec.partitions {
        return other("partitions", u64::from(found.partitions), u64::from(spec.partitions));
    }
    if found.replicas < usize::from(spec.replicas) {
        return other("replicas", found.replicas as u64, u64::from(spec.replicas));
    }
    Ok(found)
}
