//! The errors of this backend, each worded in one place: what happened, where, and what to do (G8).

use ebus_core::{Error, ErrorKind, Group, PartitionId, Retryability, Topic};

pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::ConfigInvalid, message)
}

pub(crate) fn no_such_topic(operation: &'static str, topic: &Topic) -> Error {
    Error::new(ErrorKind::NotFound, "no such topic; create it first, or use a topic policy that does")
        .with_operation(operation)
        .with_context("topic", topic)
}

pub(crate) fn no_such_partition(operation: &'static str, topic: &Topic, partition: u32, has: usize) -> Error {
    Error::new(ErrorKind::NotFound, format!("no such partition; the topic has {has}"))
        .with_operation(operation)
        .with_context("topic", topic)
        .with_context("partition", partition)
}

pub(crate) fn too_large(topic: &Topic, bytes: usize, limit: usize) -> Error {
    let message = format!(
        "the message has {bytes} bytes of key, headers and payload; at most {limit} are allowed; raise max_message_bytes"
    );
    Error::new(ErrorKind::TooLarge, message).with_operation("publish").with_context("topic", topic)
}

/// Nothing was stored, so the same call may be made again.
pub(crate) fn unavailable(topic: &Topic) -> Error {
    Error::new(ErrorKind::Unavailable, "the topic takes no messages at present; try again later")
        .with_retryability(Retryability::Safe)
        .with_operation("publish")
        .with_context("topic", topic)
}

/// A message that waited for room in a full log when its connection was closed or its topic removed.
pub(crate) fn not_stored(topic: &Topic, why: &str) -> Error {
    Error::new(ErrorKind::Closed, format!("the message was not stored: {why}; publish it again"))
        .with_operation("publish")
        .with_context("topic", topic)
}

pub(crate) fn not_ready() -> Error {
    Error::new(ErrorKind::Unexpected, "call without a place in flight; wait for poll_ready before each call")
        .with_operation("publish")
}

pub(crate) fn fenced(operation: &'static str, group: &Group, partition: &PartitionId) -> Error {
    Error::new(ErrorKind::Fenced, "the partition has another owner now; what was not committed runs there")
        .with_operation(operation)
        .with_context("group", group)
        .with_context("partition", partition)
}

pub(crate) fn commit_unavailable(group: &Group, partition: &PartitionId) -> Error {
    Error::new(ErrorKind::Unavailable, "the position was not stored; it is committed again")
        .with_retryability(Retryability::Safe)
        .with_operation("commit")
        .with_context("group", group)
        .with_context("partition", partition)
}
