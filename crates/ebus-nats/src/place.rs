//! Where messages are of which the server said only that they are stored (G1).
//!
//! A batch among messages of other publishers, or one of a connection that ended: the stream is read over its span, and each
//! message is found again by its id or tag, which no other one has.

use std::collections::HashMap;
use std::future::poll_fn;
use std::time::Duration;

use ebus_core::Error;

use crate::connection::Connection;
use crate::consumer::{self, ConsumerSpec, End, Feed};
use crate::convert;

/// Messages that are, or may be, stored somewhere.
pub(crate) struct Wanted {
    /// That of the publisher. It is not read on: a message whose headers cannot be read ends the connection that brings it.
    pub(crate) connection: Connection,
    pub(crate) stream: String,
    /// What the consumer that reads it is called: no other reader is called so.
    pub(crate) name: String,
    /// An offset in front of all of them.
    pub(crate) after: u64,
    /// The offset of the last one, or of one behind it.
    pub(crate) last: u64,
    /// Their numbers by their ids.
    pub(crate) ids: HashMap<String, u64>,
}

/// What was found.
pub(crate) struct Found {
    /// By number: the offset, if it was found.
    pub(crate) places: Vec<(u64, Option<u64>)>,
    /// All of the span was read: what was not found is not stored there.
    pub(crate) is_complete: bool,
}

/// Reads where they are, for as long as a request may take.
pub(crate) async fn find(wanted: Wanted) -> Found {
    let Wanted { connection, stream, name, after, last, mut ids } = wanted;
    let mut places = Vec::new();
    // One consumer for all partitions: a round trip or two for each of them would take longer than the span.
    let spec =
        ConsumerSpec { stream: stream.clone(), name: Some(name), filter: String::new(), from: after + 1 };
    let within = connection.request_timeout;
    let read = tokio::time::timeout(within, read(connection, spec, last, &mut ids, &mut places)).await;
    let is_complete = matches!(read, Ok(Ok(())));
    match read {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "the offsets of messages that are stored cannot be read");
        }
        Err(_) => tracing::warn!(stream, "the offsets of messages that are stored were not read in time"),
    }
    places.extend(ids.into_values().map(|number| (number, None)));
    places.sort_unstable();
    Found { places, is_complete }
}

async fn read(
    publishers: Connection,
    mut spec: ConsumerSpec,
    last: u64,
    ids: &mut HashMap<String, u64>,
    places: &mut Vec<(u64, Option<u64>)>,
) -> Result<(), Error> {
    const ROLE: &str = "offsets";
    let mut connection = Connection::open(publishers.config.clone(), ROLE).await?;
    let mut feed = Feed::open(&connection, spec.clone()).await?;
    while !ids.is_empty() {
        match poll_fn(|cx| feed.poll_next(cx)).await {
            Ok(fed) if fed.offset > last => break,
            Ok(fed) => {
                spec.from = fed.offset + 1;
                let id = fed.headers.as_ref().and_then(convert::id_of);
                if let Some(number) = id.and_then(|id| ids.remove(id)) {
                    places.push((number, Some(fed.offset)));
                }
                if fed.offset == last {
                    break;
                }
            }
            Err(End::Consumer(why)) => {
                tracing::debug!(why, "offsets are read message by message");
                if connection.has_ended() {
                    connection = Connection::open(publishers.config.clone(), ROLE).await?;
                }
                feed = Feed::raw(&connection, spec.clone(), Duration::ZERO);
            }
            Err(End::Failed(error)) => return Err(error),
            Err(End::Passed) => feed = Feed::open(&connection, spec.clone()).await?,
        }
    }
    if let Some(name) = spec.name {
        consumer::remove(&publishers, &spec.stream, name);
    }
    Ok(())
}
