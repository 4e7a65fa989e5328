//! Where a group begins that has no position yet.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use ebus_core::{BoxError, Error, ErrorKind, NextOffset, StartPosition, Timestamp};
use futures_util::StreamExt;

use crate::connection::Connection;
use crate::error;
use crate::stream::TopicStream;

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

/// The first message that the server stored at this time or later, else the end as it was before looking.
async fn at_time(
    connection: &Connection,
    stream: &TopicStream,
    time: Timestamp,
) -> Result<NextOffset, Error> {
    let unexpected = |why: BoxError| {
        Error::new(ErrorKind::Unexpected, "the first message of a time was not found")
            .with_operation("source")
            .with_source(why)
    };
    let nanos = i128::from(time.as_millis()) * 1_000_000;
    let start_time = async_nats::datetime::from_nanos(nanos).map_err(|why| {
        Error::new(ErrorKind::ConfigInvalid, "the start time is out of range")
            .with_operation("source")
            .with_source(why)
    })?;
    let config = pull::Config {
        deliver_policy: DeliverPolicy::ByStartTime { start_time },
        ack_policy: AckPolicy::None,
        memory_storage: true,
        num_replicas: 1,
        headers_only: true,
        inactive_threshold: Duration::from_secs(10),
        ..pull::Config::default()
    };
    let consumer = connection
        .context
        .create_consumer_on_stream(config, &stream.name)
        .await
        .map_err(|why| unexpected(Box::new(why)))?;
    let found = async {
        // An empty answer at once instead of waiting: without a heartbeat this call is sound.
        let mut batch =
            consumer.fetch().max_messages(1).messages().await.map_err(|why| unexpected(Box::new(why)))?;
        match batch.next().await {
            None => Ok(NextOffset(stream.last + 1)),
            Some(Ok(message)) => {
                message.info().map(|info| NextOffset(info.stream_sequence)).map_err(unexpected)
            }
            Some(Err(why)) => Err(unexpected(why)),
        }
    };
    tokio::time::timeout(connection.request_timeout, found)
        .await
        .map_err(|_| error::timeout("source").with_context("topic", &stream.topic))?
}
