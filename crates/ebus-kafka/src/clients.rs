//! The configuration of each librdkafka handle, and what all of them do with logs and errors.
//!
//! Here stand the settings that the promises rest on: durable and idempotent publishing (G1, G7), positions that only the
//! ledger commits (G1), and an offset that is out of range as an error that we answer, never a silent jump (G1).

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use ebus_core::{Error, Group};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::util::Timeout;

use crate::config::{GroupProtocol, KafkaConfig};
use crate::error::from_kafka;
use crate::properties::{Route, route};

/// Room around a message's own bytes: record and batch framing, header lengths.
pub(crate) const FRAMING: usize = 64 << 10;

/// The settings of every handle.
fn base(config: &KafkaConfig, wants: &[Route]) -> ClientConfig {
    let mut client = ClientConfig::new();
    // What `debug` asks for is said at this level only.
    let debug = config.properties.contains_key("debug");
    client.set_log_level(if debug { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
    client.set("bootstrap.servers", &config.bootstrap);
    client.set("client.id", &config.client_id);
    client.set("message.max.bytes", (config.max_message_bytes + FRAMING).to_string());
    // What is answered late is answered in vain; and connections that were cut come back soon.
    client.set("reconnect.backoff.max.ms", "1000");
    // No metrics to a broker that asks for them: they would name what this process does without its knowing.
    client.set("enable.metrics.push", "false");
    for (name, value) in &config.properties {
        let to = route(name);
        if to == Route::All || wants.contains(&to) {
            client.set(name, value);
        }
    }
    client
}

/// What asks and creates: a member of no group, no messages.
pub(crate) fn control(config: &KafkaConfig) -> ClientConfig {
    base(config, &[])
}

/// What asks for the positions of a group: its name, and never a member of it.
pub(crate) fn asker(config: &KafkaConfig, group: &Group) -> ClientConfig {
    let mut client = base(config, &[]);
    consume(&mut client, group.as_str());
    // A coordinator that has died is given up within a second.
    client.set("coordinator.query.interval.ms", "1000");
    client
}

/// What publishes.
pub(crate) fn producer(config: &KafkaConfig) -> ClientConfig {
    let mut client = base(config, &[Route::Producer]);
    client.set("acks", "all");
    client.set("enable.idempotence", "true");
    // With more than one, a batch that is refused for a moment (NOT_ENOUGH_REPLICAS) makes the broker refuse the next one of its partition
    // for its place, and that makes librdkafka number all partitions anew under another epoch: what was stored by a broker that
    // is gone before it could answer is then stored twice, behind later versions of its keys (G7).
    client.set("max.in.flight", config.batches_in_flight.to_string());
    client.set("partitioner", "murmur2_random");
    client.set("compression.codec", config.compression.as_str());
    client.set("linger.ms", config.linger.as_millis().to_string());
    client.set("batch.size", config.batch_bytes.to_string());
    // Nothing is ever given up, nor retried too often: that bumps the epoch, and what is then sent again the broker does not know
    // (G7). The deadline of a publish is `deadlines.rs`. This is the longest time there is, 24 days; 0 would be endless too, but
    // make nonsense of the latencies in librdkafka's statistics.
    client.set("message.timeout.ms", i32::MAX.to_string());
    client.set("message.send.max.retries", i32::MAX.to_string());
    if !config.properties.contains_key("topic.metadata.propagation.max.ms") {
        // A topic that does not exist is told before the deadline; one that was just made has its time to be known everywhere.
        let unknown =
            (config.delivery_timeout * 4 / 5).clamp(Duration::from_secs(5), Duration::from_secs(30));
        client.set("topic.metadata.propagation.max.ms", unknown.as_millis().to_string());
    }
    // The delivery report comes before the place in the queue is free: twice the permits are always enough.
    let messages = config.in_flight_messages.saturating_mul(2).clamp(1_000, i32::MAX as usize);
    client.set("queue.buffering.max.messages", messages.to_string());
    let kbytes = (config.in_flight_bytes + config.max_message_bytes).saturating_mul(2).div_ceil(1024);
    client.set("queue.buffering.max.kbytes", kbytes.clamp(1, i32::MAX as usize).to_string());
    if !config.properties.contains_key("batch.num.messages") {
        client.set("batch.num.messages", "100000");
    }
    client
}

/// What keeps parked keys: few records, each waited for.
pub(crate) fn keeper(config: &KafkaConfig) -> ClientConfig {
    let mut client = base(config, &[]);
    client.set("acks", "all");
    client.set("enable.idempotence", "true");
    client.set("linger.ms", "0");
    client.set("compression.codec", config.compression.as_str());
    // Nothing is given up: what is written later must not be overtaken by it.
    client.set("message.timeout.ms", i32::MAX.to_string());
    client.set("message.send.max.retries", i32::MAX.to_string());
    client
}

/// The member of a group: it subscribes, beats and commits, and reads nothing.
pub(crate) fn member(config: &KafkaConfig, group: &Group) -> ClientConfig {
    let mut client = base(config, &[Route::Member]);
    consume(&mut client, group.as_str());
    client.set("max.poll.interval.ms", config.max_poll_interval.as_millis().to_string());
    // Its partitions are paused, so that nothing is read where this leads; it only keeps "error" out of the log.
    client.set("auto.offset.reset", "latest");
    if let Some(id) = &config.instance_id {
        client.set("group.instance.id", id);
    }
    match config.group_protocol {
        GroupProtocol::Classic => {
            if config.instance_id.is_none() {
                client.set("group.instance.id", own_name());
            }
            client.set("partition.assignment.strategy", "cooperative-sticky");
            client.set("session.timeout.ms", config.session_timeout.as_millis().to_string());
            if !config.properties.contains_key("heartbeat.interval.ms") {
                client
                    .set("heartbeat.interval.ms", heartbeat(config.session_timeout).as_millis().to_string());
            }
        }
        GroupProtocol::Consumer => {
            client.set("group.protocol", "consumer");
        }
    }
    client
}

/// A name that no other member ever has.
///
/// librdkafka forgets its member id when it hears nothing from the coordinator for a session, and joins as somebody else when the
/// coordinator is back. That has the old members in its log, and a rebalance waits a whole session for them. Under a name the same
/// member comes back, gets what it had, and nobody waits (KIP-345). It is given back by leaving, unlike a name that the user gives.
fn own_name() -> String {
    let random = || RandomState::new().hash_one((std::process::id(), SystemTime::now()));
    format!("ebus-{:016x}{:016x}", random(), random())
}

/// A twelfth of the session, and half a second at most. Kafka's default is 3 s, which serves only to be known for alive; but with its
/// next heartbeat a member also hears that the group rebalances, and until the last one has, nobody's commits are accepted:
/// so much runs again when all of it fails then (G6), and so long a hand-over waits.
pub(crate) fn heartbeat(session: Duration) -> Duration {
    (session / 12).clamp(Duration::from_millis(1), Duration::from_millis(500))
}

/// What fetches for a group: assigned by us at positions that we decide.
pub(crate) fn fetch(config: &KafkaConfig, group: &Group) -> ClientConfig {
    let mut client = fetching(config);
    consume(&mut client, group.as_str());
    client
}

/// What fetches beside all groups.
pub(crate) fn reader(config: &KafkaConfig) -> ClientConfig {
    let mut client = fetching(config);
    // Assigning needs a group's name; nothing is ever committed under it.
    consume(&mut client, "ebus-reader");
    client.set("enable.partition.eof", "true");
    client
}

fn fetching(config: &KafkaConfig) -> ClientConfig {
    let mut client = base(config, &[Route::Fetch]);
    client.set("auto.offset.reset", "error");
    client.set("queued.min.messages", config.prefetch_messages.to_string());
    client.set("queued.max.messages.kbytes", config.prefetch_bytes.div_ceil(1024).to_string());
    let default = |client: &mut ClientConfig, name: &str, value: &str| {
        if !config.properties.contains_key(name) {
            client.set(name, value);
        }
    };
    // A full queue stops fetching for a whole second by default: a fifth of the throughput.
    default(&mut client, "fetch.queue.backoff.ms", "5");
    default(&mut client, "fetch.error.backoff.ms", "100");
    default(&mut client, "fetch.wait.max.ms", "500");
    default(&mut client, "isolation.level", "read_committed");
    client
}

fn consume(client: &mut ClientConfig, group: &str) {
    client.set("group.id", group);
    client.set("enable.auto.commit", "false");
    client.set("enable.auto.offset.store", "false");
}

/// A consumer handle of this configuration.
pub(crate) fn consumer<C: ConsumerContext>(
    config: &ClientConfig,
    context: C,
    operation: &'static str,
) -> Result<BaseConsumer<C>, Error> {
    config.create_with_context(context).map_err(|error| from_kafka(operation, error))
}

/// Takes librdkafka's log into `tracing`, and remembers the last error of the connection.
#[derive(Default)]
pub(crate) struct Log {
    last: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

impl Log {
    /// The last error of the connection and what librdkafka said with it.
    pub(crate) fn last_error(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.last.lock().clone()
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

impl ClientContext for Log {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", facility, "{message}"),
            _ => tracing::debug!(target: "librdkafka", facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
        if let Some(code) = error.rdkafka_error_code() {
            *self.last.lock() = Some((code, reason.to_owned()));
        }
    }

    fn stats(&self, _: Statistics) {}

    fn stats_raw(&self, statistics: &[u8]) {
        tracing::debug!(target: "librdkafka", statistics = %String::from_utf8_lossy(statistics), "statistics");
    }
}

impl ConsumerContext for Log {
    fn main_queue_min_poll_interval(&self) -> Timeout {
        Timeout::After(Duration::from_millis(100))
    }
}
