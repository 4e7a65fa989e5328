//! The topic of parked keys: compacted, one partition, made at the first use.

use std::time::Instant;

use ebus_core::{Error, ErrorKind, Topic};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::clients::FRAMING;
use crate::config::KafkaConfig;
use crate::error::invalid;
use crate::sys::admin;
use crate::takes::Takes;
use crate::topics::Control;

/// As Kafka keeps its own state: on three brokers.
const REPLICAS: u16 = 3;
/// A segment is compacted once it is closed: whoever starts reads what was not.
const SEGMENT_BYTES: usize = 16 << 20;
/// How often it is looked up until it has a leader.
const SETTLING: std::time::Duration = std::time::Duration::from_millis(20);

/// Finds it, or creates it if `make`; blocks. What it takes, as far as its brokers tell.
pub(super) fn find(
    control: &Control,
    config: &KafkaConfig,
    topic: &Topic,
    make: bool,
) -> Result<Takes, Error> {
    match control.describe(topic)? {
        Some(described) if described.partitions > 1 => {
            tracing::warn!(%topic, partitions = described.partitions, "of the topic of parked keys only the first partition is used");
        }
        Some(_) => {}
        None if make => create(control, config, topic)?,
        None => {
            let message = "the topic of parked keys does not exist";
            return Err(Error::new(ErrorKind::NotFound, message).with_context("topic", topic));
        }
    }
    // What may not be described is as its owner made it.
    let takes = control.takes(topic).unwrap_or_default();
    if takes.most_bytes.is_some() && !takes.needs_key {
        let message = "the topic of parked keys is not compacted, so that it would forget them; set cleanup.policy=compact, or name \
                       another parked_topic";
        return Err(invalid(message).with_context("topic", topic));
    }
    Ok(takes)
}

fn create(control: &Control, config: &KafkaConfig, topic: &Topic) -> Result<(), Error> {
    let end = Instant::now() + control.timeout();
    let settings = [
        ("cleanup.policy", "compact".to_owned()),
        ("segment.bytes", SEGMENT_BYTES.to_string()),
        ("min.cleanable.dirty.ratio", "0.1".to_owned()),
        ("max.message.bytes", (config.max_message_bytes + FRAMING).to_string()),
    ];
    let make = |replicas| {
        admin::create_topic(control.client(), topic.as_str(), 1, replicas, &settings, control.timeout())
    };
    match make(REPLICAS) {
        Err(error) if is_too_few_brokers(&error) => {
            tracing::warn!(%topic, "the cluster has fewer than three brokers: parked keys are kept on one of them");
            make(1)?;
        }
        // False: somebody else was quicker, which is as good.
        made => drop(made?),
    }
    loop {
        match control.describe(topic)? {
            Some(described) if described.led => return Ok(()),
            _ if Instant::now() >= end => {
                let message = "the topic of parked keys was created and has no leader yet; check the brokers";
                return Err(Error::new(ErrorKind::Timeout, message).with_context("topic", topic));
            }
            _ => std::thread::sleep(SETTLING),
        }
    }
}

fn is_too_few_brokers(error: &Error) -> bool {
    error.sources().any(|source| {
        matches!(
            source.downcast_ref::<KafkaError>().and_then(KafkaError::rdkafka_error_code),
            Some(RDKafkaErrorCode::InvalidReplicationFactor)
        )
    })
}
