//! Where a group begins that has no position yet.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use ebus_core::{Error, ErrorKind, NextOffset, StartPosition, Timestamp};

use crate::connection::Connection;
use crate::stream::TopicStream;
use crate::{consumer, error};

/// The offset of a start position. Partitions share the stream's sequence, so they share it too.
///
/// # Errors
/// `Unavailable` or `Timeout`.
pub(crate) async fn resolve(
    connection: &Connection,
    stream: &TopicStream,
    from: StartPosition,
) -> Result<NextOffset, Error> {
    match from {
        StartPosition::Earliest => Ok(NextOffset(stream.first)),
        StartPosition::Latest => Ok(NextOffset(stream.last + 1)),
        StartPosition::Time(time) => at_time(connection, stream, time).await,
        _ => Err(Error::new(ErrorKind::Unsupported, "this start position is not known to the NATS backend")),
    }
}

/// The first message that the server stored at this time or later, else the end.
///
/// A consumer that begins there says where that is when it is made. No message is sent: one with headers that are not legal
/// would end the connection.
async fn at_time(
    connection: &Connection,
    stream: &TopicStream,
    time: Timestamp,
) -> Result<NextOffset, Error> {
    const OPERATION: &str = "source";
    let nanos = i128::from(time.as_millis()) * 1_000_000;
    let start_time = async_nats::datetime::from_nanos(nanos).map_err(|why| {
        Error::new(ErrorKind::ConfigInvalid, "the start time is out of range")
            .with_operation(OPERATION)
            .with_source(why)
    })?;
    let config = pull::Config {
        deliver_policy: DeliverPolicy::ByStartTime { start_time },
        ack_policy: AckPolicy::None,
        memory_storage: true,
        num_replicas: 1,
        inactive_threshold: Duration::from_secs(10),
        ..pull::Config::default()
    };
    let making = consumer::create(connection, config, &stream.name, OPERATION);
    let made = tokio::time::timeout(connection.request_timeout, making).await;
    let consumer = made.map_err(|_| error::timeout(OPERATION))??;
    let info = consumer.cached_info();
    consumer::remove(connection, &stream.name, info.name.clone());
    Ok(NextOffset(info.delivered.stream_sequence + 1))
}
