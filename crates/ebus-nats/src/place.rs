//! Where messages are of which the server said only that they are stored (G1).
//!
//! A batch among messages of other publishers: the stream is read over its span, and each message is found again by what it
//! is, in order. Two messages that are equal byte by byte, with their times, cannot be told apart, by nobody.

use std::future::poll_fn;

use async_nats::Subject;
use ebus_core::Message;

use crate::connection::Connection;
use crate::consumer::{self, ConsumerSpec, Feed};

/// Messages that are stored somewhere.
pub(crate) struct Wanted {
    /// That of the publisher. It is not read on: a message whose headers cannot be read ends the connection that brings it.
    pub(crate) connection: Connection,
    pub(crate) stream: String,
    /// What consumers that read it are called: no other reader is called so.
    pub(crate) name: String,
    /// By partition.
    pub(crate) subjects: Vec<Subject>,
    /// An offset in front of all of them.
    pub(crate) after: u64,
    /// The offset of the last one.
    pub(crate) last: u64,
    /// Number, partition and message, in order.
    pub(crate) messages: Vec<(u64, u32, Message)>,
}

/// By number: the offset, if it was found.
pub(crate) type Found = Vec<(u64, Option<u64>)>;

/// Reads where they are. What is not found within the time of a request is left out of it.
pub(crate) async fn find(mut wanted: Wanted) -> Found {
    let mut found: Found = Vec::with_capacity(wanted.messages.len());
    // Stable: the order within a partition stays.
    wanted.messages.sort_by_key(|(_, partition, _)| *partition);
    let within = wanted.connection.request_timeout;
    let reading = async {
        let connection = match Connection::open(wanted.connection.config.clone(), "offsets").await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "the offsets of messages that are stored cannot be read");
                return;
            }
        };
        for messages in wanted.messages.chunk_by(|one, other| one.1 == other.1) {
            find_in_partition(&connection, &wanted, messages, &mut found).await;
        }
    };
    if tokio::time::timeout(within, reading).await.is_err() {
        tracing::warn!(stream = %wanted.stream, "the offsets of messages that are stored were not read in time");
    }
    let known: Vec<u64> = found.iter().map(|(number, _)| *number).collect();
    let unknown = wanted.messages.iter().map(|(number, ..)| *number).filter(|number| !known.contains(number));
    found.extend(unknown.map(|number| (number, None)));
    found
}

async fn find_in_partition(
    connection: &Connection,
    wanted: &Wanted,
    messages: &[(u64, u32, Message)],
    found: &mut Found,
) {
    let first = messages.first().and_then(|(_, partition, _)| wanted.subjects.get(*partition as usize));
    let Some(subject) = first else { return };
    let name = format!("{}_{}", wanted.name, messages[0].1);
    let spec = ConsumerSpec {
        stream: wanted.stream.clone(),
        name: Some(name.clone()),
        filter: subject.to_string(),
        from: wanted.after + 1,
    };
    let mut feed = match Feed::open(connection, spec).await {
        Ok(feed) => feed,
        Err(error) => {
            tracing::warn!(%error, "the offsets of messages that are stored cannot be read");
            return;
        }
    };
    let mut messages = messages.iter().peekable();
    while let Some((number, _, message)) = messages.peek() {
        match poll_fn(|cx| feed.poll_next(cx)).await {
            Ok(fed) if fed.offset > wanted.last => break,
            Ok(fed) => {
                if fed.message == *message {
                    found.push((*number, Some(fed.offset)));
                    messages.next();
                }
            }
            Err(why) => {
                tracing::debug!(?why, "reading offsets ended early");
                break;
            }
        }
    }
    drop(feed);
    consumer::remove(&wanted.connection, &wanted.stream, name);
}
