//! The settings of a Kafka connection: typed, with one set of defaults, validated before any connection (G8).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ebus_core::{Error, Topic};

use crate::properties;

/// What happens when a publish or a group names a topic that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum TopicPolicy {
    /// It is an error: `NotFound`. Nothing is created.
    #[default]
    MustExist,
    /// It is created by an explicit call, and that is logged. The broker's own auto-creation is never used.
    Create {
        /// How many partitions it gets.
        partitions: u32,
        /// On how many brokers each is kept.
        replicas: u16,
    },
}

/// How the group agrees on who owns what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum GroupProtocol {
    /// The protocol of all brokers, with the cooperative-sticky assignor.
    #[default]
    Classic,
    /// The protocol of KIP-848: the broker assigns. Needs Apache Kafka 4.0. Session and heartbeat times are the broker's
    /// (`group.consumer.session.timeout.ms`, `group.consumer.heartbeat.interval.ms`); set
    /// [`with_session_timeout`](KafkaConfig::with_session_timeout) to no more than the broker's.
    Consumer,
}

/// How batches are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip: small and slow.
    Gzip,
    /// snappy.
    Snappy,
    /// lz4: the default.
    #[default]
    Lz4,
    /// zstd; needs the cargo feature `zstd`.
    Zstd,
}

impl Compression {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// Settings of a [`KafkaBackend`](crate::KafkaBackend).
///
/// | Setting | Key in the URL | Default |
/// |---|---|---|
/// | `client_id` | the same | `ebus` |
/// | `request_timeout` | `request_timeout_ms` | 10 s |
/// | `topic_policy` | `topics=must_exist` or `topics=create`, `partitions`, `replicas` | must exist |
/// | `max_message_bytes` | the same | 1,114,112 (1 MiB and 64 KiB) |
/// | `linger` | `linger_ms` | 5 ms |
/// | `batch_bytes` | the same | 1,000,000 |
/// | `batches_in_flight` | the same | 1 per broker |
/// | `compression` | the same | lz4 |
/// | `in_flight_messages` | the same | 16,384 |
/// | `in_flight_bytes` | the same | 64 MiB |
/// | `delivery_timeout` | `delivery_timeout_ms` | 30 s |
/// | `group_protocol` | the same | classic |
/// | `instance_id` | the same | none |
/// | `parked_topic` | the same | `ebus-parked` |
/// | `session_timeout` | `session_timeout_ms` | 45 s |
/// | `max_poll_interval` | `max_poll_interval_ms` | 60 s |
/// | `prefetch_messages` | the same | 20,000 per partition |
/// | `prefetch_bytes` | the same | 8 MiB per partition |
///
/// Everything else that librdkafka knows is set by [`property`](Self::property). In a URL, a key with a dot is such a
/// property: `kafka://localhost:9092?socket.timeout.ms=3000`.
///
/// ```
/// use std::time::Duration;
/// use ebus_kafka::{Compression, KafkaConfig};
///
/// let config = KafkaConfig::new("localhost:9092")
///     .with_linger(Duration::from_millis(1))
///     .with_compression(Compression::Snappy)
///     .property("socket.timeout.ms", "3000");
/// config.validate()?;
/// # Ok::<(), ebus_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KafkaConfig {
    /// Addresses of brokers, `host:port`, separated by commas.
    pub bootstrap: String,
    /// The name that brokers log and meter this client under.
    pub client_id: String,
    /// How long a call of the control plane may take, such as creating a topic.
    pub request_timeout: Duration,
    /// What happens when a topic does not exist.
    pub topic_policy: TopicPolicy,
    /// The largest message: key, headers and payload. Topics that ebus creates accept it; others may accept less.
    pub max_message_bytes: usize,
    /// How long a message waits for others to be sent with.
    pub linger: Duration,
    /// The most bytes of a batch.
    pub batch_bytes: usize,
    /// Batches that are sent to one broker and not yet answered, 1 to 5.
    ///
    /// **More than 1 breaks the order of publishing** (G7) when brokers fail: a batch that a broker has stored and could not answer any
    /// more may be stored once more, behind later versions of its keys. With 1, the partitions that one broker leads take turns,
    /// each for a round trip; batches grow meanwhile.
    pub batches_in_flight: usize,
    /// How batches are compressed.
    pub compression: Compression,
    /// Messages that are reserved or not yet acknowledged; `poll_ready` waits above it.
    pub in_flight_messages: usize,
    /// Bytes that are not yet acknowledged; `poll_ready` waits above it.
    pub in_flight_bytes: usize,
    /// How long a publish may take before it is answered with `Timeout`.
    ///
    /// Such a message may have been stored, or be stored later: it keeps its place in flight and in the order of its key, and is
    /// sent until the broker has answered or the connection is closed. Giving it up could store what was published after it twice.
    /// While all of `in_flight_messages` or `in_flight_bytes` is held by such messages, publishing fails at once with
    /// `Unavailable`: not sent, and not stored.
    pub delivery_timeout: Duration,
    /// How the group agrees.
    pub group_protocol: GroupProtocol,
    /// A name that survives restarts, so that a restart within the session time-out moves no partition (KIP-345).
    pub instance_id: Option<String>,
    /// The compacted topic in which it is kept which keys of which group are parked; made at the first use.
    pub parked_topic: String,
    /// How long a member may be silent before its partitions go to others.
    pub session_timeout: Duration,
    /// How long [`Source::recv`](ebus_core::Source::recv) may rest before membership is given up.
    pub max_poll_interval: Duration,
    /// Messages fetched ahead of reading, per partition.
    pub prefetch_messages: usize,
    /// Bytes fetched ahead of reading, per partition.
    pub prefetch_bytes: usize,
    pub(crate) properties: BTreeMap<String, String>,
}

/// What a URL may say, as the error about an unknown key lists it.
pub(crate) const URL_KEYS: &str = "client_id, request_timeout_ms, topics, partitions, replicas, max_message_bytes, \
    linger_ms, batch_bytes, batches_in_flight, compression, in_flight_messages, in_flight_bytes, delivery_timeout_ms, group_protocol, \
    instance_id, parked_topic, session_timeout_ms, max_poll_interval_ms, prefetch_messages, prefetch_bytes, or a librdkafka property, \
    which has a dot";

impl KafkaConfig {
    /// The defaults, for the brokers at these addresses: `host:port`, separated by commas.
    pub fn new(bootstrap: impl Into<String>) -> Self {
        Self {
            bootstrap: bootstrap.into(),
            client_id: "ebus".into(),
            request_timeout: Duration::from_secs(10),
            topic_policy: TopicPolicy::MustExist,
            max_message_bytes: (1 << 20) + (64 << 10),
            linger: Duration::from_millis(5),
            batch_bytes: 1_000_000,
            batches_in_flight: 1,
            compression: Compression::Lz4,
            in_flight_messages: 16_384,
            in_flight_bytes: 64 << 20,
            delivery_timeout: Duration::from_secs(30),
            group_protocol: GroupProtocol::Classic,
            instance_id: None,
            parked_topic: "ebus-parked".into(),
            session_timeout: Duration::from_secs(45),
            max_poll_interval: Duration::from_secs(60),
            prefetch_messages: 20_000,
            prefetch_bytes: 8 << 20,
            properties: BTreeMap::new(),
        }
    }

    /// The name that brokers know this client by.
    #[must_use]
    pub fn with_client_id(mut self, id: impl Into<String>) -> Self {
        self.client_id = id.into();
        self
    }

    /// How long a call of the control plane may take.
    #[must_use]
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// What happens when a topic does not exist.
    #[must_use]
    pub fn with_topic_policy(mut self, policy: TopicPolicy) -> Self {
        self.topic_policy = policy;
        self
    }

    /// The largest message in bytes.
    #[must_use]
    pub fn with_max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// How long a message waits for others to be sent with.
    #[must_use]
    pub fn with_linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// The most bytes of a batch.
    #[must_use]
    pub fn with_batch_bytes(mut self, bytes: usize) -> Self {
        self.batch_bytes = bytes;
        self
    }

    /// Batches that are sent to one broker and not yet answered. More than 1 breaks the order of publishing; see
    /// [`batches_in_flight`](Self::batches_in_flight).
    #[must_use]
    pub fn with_batches_in_flight(mut self, batches: usize) -> Self {
        self.batches_in_flight = batches;
        self
    }

    /// How batches are compressed.
    #[must_use]
    pub fn with_compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Messages that may be reserved or unacknowledged.
    #[must_use]
    pub fn with_in_flight_messages(mut self, messages: usize) -> Self {
        self.in_flight_messages = messages;
        self
    }

    /// Bytes that may be unacknowledged.
    #[must_use]
    pub fn with_in_flight_bytes(mut self, bytes: usize) -> Self {
        self.in_flight_bytes = bytes;
        self
    }

    /// How long a publish may take before it is answered with `Timeout`; see [`delivery_timeout`](Self::delivery_timeout).
    #[must_use]
    pub fn with_delivery_timeout(mut self, timeout: Duration) -> Self {
        self.delivery_timeout = timeout;
        self
    }

    /// How the group agrees on who owns what.
    #[must_use]
    pub fn with_group_protocol(mut self, protocol: GroupProtocol) -> Self {
        self.group_protocol = protocol;
        self
    }

    /// A name of this member that survives restarts.
    #[must_use]
    pub fn with_instance_id(mut self, id: impl Into<String>) -> Self {
        self.instance_id = Some(id.into());
        self
    }

    /// The topic in which parked keys are kept.
    #[must_use]
    pub fn with_parked_topic(mut self, topic: impl Into<String>) -> Self {
        self.parked_topic = topic.into();
        self
    }

    pub(crate) fn parked_topic(&self) -> Result<Topic, Error> {
        Topic::new(&self.parked_topic).map_err(|error| error.with_context("setting", "parked_topic"))
    }

    /// How long a member may be silent.
    #[must_use]
    pub fn with_session_timeout(mut self, timeout: Duration) -> Self {
        self.session_timeout = timeout;
        self
    }

    /// How long `recv` may rest before membership is given up.
    #[must_use]
    pub fn with_max_poll_interval(mut self, interval: Duration) -> Self {
        self.max_poll_interval = interval;
        self
    }

    /// Messages fetched ahead of reading, per partition.
    #[must_use]
    pub fn with_prefetch_messages(mut self, messages: usize) -> Self {
        self.prefetch_messages = messages;
        self
    }

    /// Bytes fetched ahead of reading, per partition.
    #[must_use]
    pub fn with_prefetch_bytes(mut self, bytes: usize) -> Self {
        self.prefetch_bytes = bytes;
        self
    }

    /// A property of librdkafka by its name. What ebus sets itself, and what librdkafka does not know, is refused by
    /// [`validate`](Self::validate).
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.insert(name.into(), value.into());
        self
    }

    /// From a URL such as `kafka://one:9092,two:9092?linger_ms=1&topics=create&partitions=12`. A port may be left out: 9092.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming every key that is unknown and every value that is not legal.
    pub fn from_url(url: &str) -> Result<Self, Error> {
        crate::config_url::parse(url)
    }

    /// Checks every setting without a connection.
    ///
    /// # Errors
    /// `ConfigInvalid` with all problems at once; `Unsupported` when a setting needs a part of librdkafka that was not
    /// built, naming the cargo feature.
    pub fn validate(&self) -> Result<(), Error> {
        crate::config_check::check(self)
    }
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(name, value)| {
            let value: &String = value;
            let name: &String = name;
            (name.clone(), if properties::is_secret(name) { "[hidden]".to_owned() } else { value.clone() })
        };
        f.debug_struct("KafkaConfig")
            .field("bootstrap", &self.bootstrap)
            .field("client_id", &self.client_id)
            .field("request_timeout", &self.request_timeout)
            .field("topic_policy", &self.topic_policy)
            .field("max_message_bytes", &self.max_message_bytes)
            .field("linger", &self.linger)
            .field("batch_bytes", &self.batch_bytes)
            .field("batches_in_flight", &self.batches_in_flight)
            .field("compression", &self.compression)
            .field("in_flight_messages", &self.in_flight_messages)
            .field("in_flight_bytes", &self.in_flight_bytes)
            .field("delivery_timeout", &self.delivery_timeout)
            .field("group_protocol", &self.group_protocol)
            .field("instance_id", &self.instance_id)
            .field("parked_topic", &self.parked_topic)
            .field("session_timeout", &self.session_timeout)
            .field("max_poll_interval", &self.max_poll_interval)
            .field("prefetch_messages", &self.prefetch_messages)
            .field("prefetch_bytes", &self.prefetch_bytes)
            .field("properties", &self.properties.iter().map(shown).collect::<BTreeMap<_, _>>())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let config = KafkaConfig::new("localhost:9092")
            .property("sasl.password", "hunter2")
            .property("ssl.key.pem", "hunter2")
            .property("sasl.oauthbearer.client.secret", "hunter2");
        let text = format!("{config:?}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("[hidden]"));
    }

    #[test]
    fn the_defaults_are_valid() {
        KafkaConfig::new("localhost:9092").validate().expect("valid");
    }
}
