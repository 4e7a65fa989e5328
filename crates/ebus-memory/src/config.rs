//! The settings of the in-process broker, from code or from a URL, validated before anything is made of them (G8).

use std::time::Duration;

use ebus_core::Error;
use url::Url;

use crate::error::invalid;

/// The most partitions of a topic: each costs memory, and each change of a group looks at all.
pub(crate) const MAX_PARTITIONS: u32 = 4_096;

/// What happens when a publish or a group names a topic that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicPolicy {
    /// It is an error: `NotFound`.
    MustExist,
    /// It is created, and that is logged.
    Create {
        /// How many partitions it gets.
        partitions: u32,
    },
}

/// Settings of a [`MemoryBroker`](crate::MemoryBroker).
///
/// | Setting | Key in the URL | Default |
/// |---|---|---|
/// | `topic_policy` | `topics=create` or `topics=must_exist`, `partitions` | create with 8 partitions |
/// | `max_message_bytes` | the same | 4 MiB |
/// | `retain_messages` | the same | 1,048,576 per partition |
/// | `retain_bytes` | the same | 1 GiB per partition |
/// | `max_in_flight` | the same | 16,384 per connection |
/// | `max_in_flight_bytes` | the same | 64 MiB per connection |
/// | `max_idle` | `max_idle_ms` | 30 s |
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryConfig {
    /// What happens when a topic does not exist.
    pub topic_policy: TopicPolicy,
    /// The largest message: key, headers and payload.
    pub max_message_bytes: usize,
    /// The most messages that a partition holds. When it is full, what every group of the topic has committed makes room;
    /// if that is not enough, publishes wait in order. A topic that no group reads gives nothing up: it fills, then waits.
    pub retain_messages: u64,
    /// The most bytes that a partition holds, by the same rule. One message always fits.
    pub retain_bytes: u64,
    /// Messages of a connection that are reserved or wait to be stored.
    pub max_in_flight: usize,
    /// Bytes of a connection's messages that wait to be stored.
    pub max_in_flight_bytes: usize,
    /// How long a source may leave `recv` uncalled before it is put out of its group.
    pub max_idle: Duration,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            topic_policy: TopicPolicy::Create { partitions: 8 },
            max_message_bytes: 4 << 20,
            retain_messages: 1 << 20,
            retain_bytes: 1 << 30,
            max_in_flight: 16_384,
            max_in_flight_bytes: 64 << 20,
            max_idle: Duration::from_secs(30),
        }
    }
}

impl MemoryConfig {
    /// What the keys of a URL are, as its error says them.
    const KEYS: &str = "topics, partitions, max_message_bytes, retain_messages, retain_bytes, max_in_flight, \
                        max_in_flight_bytes, max_idle_ms";

    /// From a URL such as `memory://?partitions=16&retain_messages=100000`; `memory://` alone is the default.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the key and its rule; an unknown key is refused.
    pub fn from_url(url: &str) -> Result<Self, Error> {
        Self::parse(url).map_err(|error| error.with_operation("connect"))
    }

    fn parse(url: &str) -> Result<Self, Error> {
        let parsed = Url::parse(url)
            .map_err(|error| invalid("not a URL; write memory://?key=value").with_source(error))?;
        if parsed.scheme() != "memory" {
            return Err(
                invalid("not a URL of this backend; write memory://").with_context("scheme", parsed.scheme())
            );
        }
        let has_more = parsed.has_host() || !matches!(parsed.path(), "" | "/") || parsed.fragment().is_some();
        if has_more || !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(invalid("a broker in this process has no address; write memory://?key=value"));
        }
        let (mut config, mut must_exist, mut partitions) = (Self::default(), None, None);
        let mut seen: Vec<String> = Vec::new();
        for (key, value) in parsed.query_pairs() {
            if seen.iter().any(|other| *other == key) {
                return Err(invalid(format!("the key {key:?} stands there twice")));
            }
            match &*key {
                "topics" => {
                    must_exist = Some(match &*value {
                        "create" => false,
                        "must_exist" => true,
                        _ => {
                            return Err(
                                invalid("topics must be create or must_exist").with_context("topics", value)
                            );
                        }
                    });
                }
                "partitions" => partitions = Some(number(&key, &value)?),
                "max_message_bytes" => config.max_message_bytes = number(&key, &value)?,
                "retain_messages" => config.retain_messages = number(&key, &value)?,
                "retain_bytes" => config.retain_bytes = number(&key, &value)?,
                "max_in_flight" => config.max_in_flight = number(&key, &value)?,
                "max_in_flight_bytes" => config.max_in_flight_bytes = number(&key, &value)?,
                "max_idle_ms" => config.max_idle = Duration::from_millis(number(&key, &value)?),
                _ => return Err(invalid(format!("unknown key {key:?}; known are {}", Self::KEYS))),
            }
            seen.push(key.into_owned());
        }
        match (must_exist, partitions) {
            (Some(true), Some(_)) => {
                return Err(invalid(
                    "partitions has no effect with topics=must_exist; leave one of them out",
                ));
            }
            (Some(true), None) => config.topic_policy = TopicPolicy::MustExist,
            (_, Some(partitions)) => config.topic_policy = TopicPolicy::Create { partitions },
            (_, None) => {}
        }
        config.validate()?;
        Ok(config)
    }

    /// Whether every setting is within its bounds.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the first setting that is not.
    pub fn validate(&self) -> Result<(), Error> {
        if let TopicPolicy::Create { partitions } = self.topic_policy {
            validate_partitions(partitions)?;
        }
        let least_one = [
            ("max_message_bytes", self.max_message_bytes as u64),
            ("retain_messages", self.retain_messages),
            ("retain_bytes", self.retain_bytes),
            ("max_in_flight", self.max_in_flight as u64),
            ("max_in_flight_bytes", self.max_in_flight_bytes as u64),
        ];
        if let Some((name, _)) = least_one.iter().find(|setting| setting.1 == 0) {
            return Err(invalid(format!("{name} must be at least 1")));
        }
        if self.max_idle < Duration::from_millis(10) {
            return Err(invalid("max_idle must be at least 10 ms")
                .with_context("max_idle", format!("{:?}", self.max_idle)));
        }
        Ok(())
    }

    /// What happens when a topic does not exist.
    #[must_use]
    pub fn with_topic_policy(mut self, policy: TopicPolicy) -> Self {
        self.topic_policy = policy;
        self
    }

    /// The largest message.
    #[must_use]
    pub fn with_max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// The most messages and bytes that a partition holds.
    #[must_use]
    pub fn with_retention(mut self, messages: u64, bytes: u64) -> Self {
        self.retain_messages = messages;
        self.retain_bytes = bytes;
        self
    }

    /// Messages and bytes in flight of a connection.
    #[must_use]
    pub fn with_max_in_flight(mut self, messages: usize, bytes: usize) -> Self {
        self.max_in_flight = messages;
        self.max_in_flight_bytes = bytes;
        self
    }

    /// How long a source may leave `recv` uncalled.
    #[must_use]
    pub fn with_max_idle(mut self, idle: Duration) -> Self {
        self.max_idle = idle;
        self
    }
}

pub(crate) fn validate_partitions(partitions: u32) -> Result<(), Error> {
    match partitions {
        1..=MAX_PARTITIONS => Ok(()),
        _ => Err(invalid(format!("partitions must be 1 to {MAX_PARTITIONS}"))
            .with_context("partitions", partitions)),
    }
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, Error> {
    value.parse().map_err(|_| {
        invalid(format!("{key} must be a whole number in range, without a unit")).with_context("value", value)
    })
}

#[cfg(test)]
mod tests {
    use ebus_core::ErrorKind;

    use super::*;

    #[test]
    fn i06_a_bare_url_is_the_default() {
        assert_eq!(MemoryConfig::from_url("memory://").expect("legal"), MemoryConfig::default());
        assert_eq!(MemoryConfig::from_url("memory:").expect("legal"), MemoryConfig::default());
    }

    #[test]
    fn i06_every_known_key_has_an_effect() {
        for pair in [
            "topics=must_exist",
            "partitions=3",
            "max_message_bytes=9",
            "retain_messages=9",
            "retain_bytes=9",
            "max_in_flight=9",
            "max_in_flight_bytes=9",
            "max_idle_ms=90",
        ] {
            let config = MemoryConfig::from_url(&format!("memory://?{pair}")).expect(pair);
            assert_ne!(config, MemoryConfig::default(), "{pair}");
            let key = pair.split('=').next().expect("a key");
            assert!(MemoryConfig::KEYS.split(", ").any(|known| known.trim() == key), "{key}");
        }
    }

    #[test]
    fn i06_what_is_wrong_is_named() {
        for (url, says) in [
            ("memory://?partition=3", "\"partition\""),
            ("memory://?partition=3", "max_idle_ms"),
            ("memory://?partitions=0", "partitions must be 1"),
            ("memory://?partitions=x", "partitions must be a whole number"),
            ("memory://?partitions=1&partitions=2", "twice"),
            ("memory://?topics=maybe", "must_exist"),
            ("memory://?topics=must_exist&partitions=2", "no effect"),
            ("memory://?max_in_flight=0", "max_in_flight must be"),
            ("memory://?max_idle_ms=1", "max_idle"),
            ("memory://host", "no address"),
            ("kafka://host", "memory://"),
            ("nonsense", "not a URL"),
        ] {
            let error = MemoryConfig::from_url(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{url}");
            assert!(error.to_string().contains(says), "{url}: {error}");
        }
    }
}
