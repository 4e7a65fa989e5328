//! The messages of one partition, in order and without a gap (G1, G2).
//!
//! A pull consumer without acknowledgements, in memory, from a start sequence. A cut connection can lose messages without
//! any error, and a consumer that comes back on another node starts again: so the sequence that it gives its messages is
//! checked ([`crate::pull`]), and any jump, error or end is answered by a new instance that continues after the last message
//! taken. Where two of them got nowhere, messages are read one by one for a while ([`crate::raw`]).

use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy, ReplayPolicy, pull};
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind};
use ebus_core::{Error, Message};
use futures_util::stream::BoxStream;

use crate::connection::Connection;
use crate::pull::Pull;
use crate::{error, raw};

/// The server removes a consumer that nobody pulls from, such as that of a member that crashed, after this.
const INACTIVE: Duration = Duration::from_secs(300);

/// So many instances without a message, and the next one reads message by message.
pub(crate) const STUCK: u32 = 2;

/// What to read.
#[derive(Debug, Clone)]
pub(crate) struct ConsumerSpec {
    pub(crate) stream: String,
    /// The name of the consumer; any if there is none.
    pub(crate) name: Option<String>,
    /// The subject of the partition; empty for all of the stream.
    pub(crate) filter: String,
    /// The first offset.
    pub(crate) from: u64,
}

/// A partition that is being read.
pub(crate) struct Feed {
    way: Way,
    /// How many messages there were to read when it was made, as far as that is known.
    pub(crate) pending: u64,
}

enum Way {
    /// Boxed: it is large, and most of what holds a feed holds none.
    Consumer(Box<Pull>),
    /// Message by message.
    Raw(BoxStream<'static, Result<Fed, Error>>),
}

/// Why there are no more messages of an instance.
#[derive(Debug)]
pub(crate) enum End {
    /// A consumer can read on.
    Passed,
    /// They cannot be read message by message.
    Failed(Error),
    /// The consumer is no good any more.
    Consumer(String),
}

/// A message of a feed.
pub(crate) struct Fed {
    pub(crate) offset: u64,
    pub(crate) message: Message,
    /// As they came, with the id.
    pub(crate) headers: Option<HeaderMap>,
    /// How many there were behind it when the server sent it.
    pub(crate) pending: u64,
}

impl Feed {
    /// Makes the consumer and begins to read.
    ///
    /// # Errors
    /// `NotFound` when the stream is gone; `Unavailable` or `Timeout`.
    pub(crate) async fn open(connection: &Connection, spec: ConsumerSpec) -> Result<Self, Error> {
        const OPERATION: &str = "read the topic";
        connection.up(connection.request_timeout, OPERATION).await?;
        let config = pull::Config {
            name: spec.name,
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: spec.from.max(1) },
            ack_policy: AckPolicy::None,
            filter_subject: spec.filter,
            replay_policy: ReplayPolicy::Instant,
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let opening = async {
            let consumer = create(connection, config, &spec.stream, OPERATION).await?;
            let pending = consumer.cached_info().num_pending;
            let name = &consumer.cached_info().name;
            let pull = Pull::start(connection, &spec.stream, name).await?;
            Ok(Self { way: Way::Consumer(Box::new(pull)), pending })
        };
        tokio::time::timeout(connection.request_timeout, opening)
            .await
            .unwrap_or_else(|_| Err(error::timeout(OPERATION)))
            .map_err(|error| error.with_context("stream", &spec.stream))
    }

    /// Reads message by message what consumers got stuck at, and somewhat more.
    pub(crate) fn raw(connection: &Connection, spec: ConsumerSpec, linger: Duration) -> Self {
        let messages = raw::read(connection.clone(), spec.stream, spec.filter, spec.from, linger);
        Self { way: Way::Raw(Box::pin(messages)), pending: u64::MAX }
    }

    /// Whether the server has a consumer for it.
    pub(crate) fn has_consumer(&self) -> bool {
        matches!(self.way, Way::Consumer(..))
    }

    /// The next message, or why there are no more of this instance.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Fed, End>> {
        match &mut self.way {
            Way::Consumer(pull) => pull.poll_next(cx),
            Way::Raw(messages) => messages.as_mut().poll_next(cx).map(|fed| match fed {
                Some(fed) => fed.map_err(End::Failed),
                None => Err(End::Passed),
            }),
        }
    }
}

/// Makes a consumer, with a name that no other one has if it has none.
///
/// # Errors
/// `NotFound` when the stream is gone; `Denied`, `Unavailable` or `Timeout`.
pub(crate) async fn create(
    connection: &Connection,
    mut config: pull::Config,
    stream: &str,
    operation: &'static str,
) -> Result<Consumer<pull::Config>, Error> {
    // Without a name it would be another request, which needs another permission.
    config.name.get_or_insert_with(|| {
        let inbox = connection.client.new_inbox();
        inbox.rsplit('.').next().unwrap_or_default().to_owned()
    });
    let subject = format!("$JS.API.CONSUMER.CREATE.{stream}.");
    let making = connection.context.create_consumer_on_stream(config, stream);
    let made = connection.allowed(|denied| denied.starts_with(&subject), operation, making).await?;
    made.map_err(|why| refused(why, operation))
}

fn refused(why: ConsumerError, operation: &'static str) -> Error {
    match why.kind() {
        ConsumerErrorKind::JetStream(api) => error::api(&api, operation),
        ConsumerErrorKind::TimedOut => error::timeout(operation).with_source(why),
        _ => error::unavailable(operation, "no consumer was made").with_source(why),
    }
}

/// Removes a consumer. That it is gone already, or cannot be removed now, harms nobody: the server does it later.
pub(crate) fn remove(connection: &Connection, stream: &str, name: String) {
    let connection = connection.clone();
    let stream = stream.to_owned();
    tokio::spawn(async move {
        if connection.is_up()
            && let Err(why) = connection.context.delete_consumer_from_stream(&name, &stream).await
        {
            tracing::debug!(stream, name, %why, "a consumer was not removed; the server will");
        }
    });
}
