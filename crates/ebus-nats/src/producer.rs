//! The publisher: a plain `tower::Service` (G1, G5, G7).

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use ebus_core::{Error, ErrorKind, LogMark, Message, Publish, Receipt, Topic};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tower_service::Service;

use crate::connection::Connection;
use crate::convert::{self, Encoded, OVERHEAD};
use crate::flight::{Flight, Route};
use crate::gate::Gate;
use crate::pump::{Command, Pump};
use crate::{hash, names};

/// What all publishers of a connection share.
pub(crate) struct Publishing {
    client: async_nats::Client,
    gate: Arc<Gate>,
    routes: Mutex<HashMap<Topic, Arc<Route>>>,
    commands: mpsc::UnboundedSender<Command>,
    timeout: Duration,
}

impl Publishing {
    /// Starts the task that publishes.
    ///
    /// # Errors
    /// `Unavailable` when the connection is gone already.
    pub(crate) async fn start(connection: Connection) -> Result<Arc<Self>, Error> {
        let config = connection.config.clone();
        let gate = Arc::new(Gate::new(config.max_in_flight, config.max_in_flight_bytes));
        // Unbounded for the call to be synchronous; the gate bounds what is in it.
        let (commands, intake) = mpsc::unbounded_channel();
        let client = connection.client.clone();
        let pump = Pump::new(connection, gate.clone(), intake).await?;
        tokio::spawn(tokio::task::unconstrained(pump));
        Ok(Arc::new(Self {
            client,
            gate,
            routes: Mutex::default(),
            commands,
            timeout: config.publish_timeout,
        }))
    }

    /// Takes no more, and waits for what was taken.
    ///
    /// # Errors
    /// `Timeout` when something was not acknowledged in time.
    pub(crate) async fn close(&self, deadline: Instant) -> Result<(), Error> {
        self.gate.close();
        let (reply, result) = oneshot::channel();
        if self.commands.send(Command::Close(deadline, reply)).is_err() {
            return Ok(()); // it has ended before
        }
        result.await.unwrap_or(Ok(()))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.gate.is_closed()
    }

    fn route(&self, topic: &Topic) -> Arc<Route> {
        let mut routes = self.routes.lock();
        if let Some(route) = routes.get(topic) {
            return route.clone();
        }
        let route = Arc::new(Route {
            id: routes.len(),
            topic: topic.clone(),
            stream: names::stream(topic),
            max_message_bytes: AtomicUsize::new(usize::MAX),
        });
        routes.insert(topic.clone(), route.clone());
        route
    }
}

/// The largest message of a server that takes `max_payload` bytes of headers and payload.
pub(crate) fn max_message_bytes(max_payload: usize) -> usize {
    max_payload.saturating_sub(OVERHEAD)
}

/// Publishes to JetStream. Cheap to clone; clones share the bounds of their connection.
///
/// # Contract
/// - `poll_ready` takes a place among the messages in flight, and is pending while bytes in flight exceed their bound.
///   A clone that is dropped gives its place back.
/// - `call` enqueues at once: the order of `call` is the order on the wire. One task hands messages on.
/// - What may come late, from a connection that ended, is void before anything later goes to its topic; only with an id of the
///   caller's own, or to a stream of other make, it is sent again instead, under its id. An error is [`Safe`](ebus_core::Retryability::Safe) to try again only if no later message of
///   its key had been called.
/// - Offsets are sequences of the stream that all partitions share: those of one partition grow, with gaps.
///
/// # Errors
/// `TooLarge` and `ConfigInvalid` (an id that is not plain text) at once; `NotFound` for a topic that does not exist;
/// `Timeout` when there was no acknowledgement in time (it may have been stored); `Unavailable` when the server was not
/// there in time (it was not stored); `Closed` after close.
pub struct NatsProducer {
    shared: Arc<Publishing>,
    /// A place in flight that was taken and not used.
    has_place: bool,
    ticket: Option<u64>,
    last: Option<Arc<Route>>,
}

impl NatsProducer {
    pub(crate) fn new(shared: Arc<Publishing>) -> Self {
        Self { shared, has_place: false, ticket: None, last: None }
    }

    fn route(&mut self, topic: &Topic) -> Arc<Route> {
        match &self.last {
            Some(last) if last.topic == *topic => last.clone(),
            _ => {
                let route = self.shared.route(topic);
                self.last = Some(route.clone());
                route
            }
        }
    }

    fn enqueue(&mut self, publish: Publish) -> Result<oneshot::Receiver<Result<Receipt, Error>>, Error> {
        let Publish { topic, message, id, .. } = publish;
        let route = self.route(&topic);
        self.enqueue_on(route, message, id.as_deref()).map_err(|error| error.with_context("topic", topic))
    }

    fn enqueue_on(
        &mut self,
        route: Arc<Route>,
        message: Message,
        id: Option<&str>,
    ) -> Result<oneshot::Receiver<Result<Receipt, Error>>, Error> {
        if let Some(id) = id.filter(|id| !convert::is_legal_id(id)) {
            return Err(Error::new(
                ErrorKind::ConfigInvalid,
                "an id must be text without control characters and without white space at its ends",
            )
            .with_context("id", format_args!("{id:?}")));
        }
        let Encoded { headers, own, len: header_bytes } = convert::encode(&message, id);
        let bytes = message.byte_len();
        let wire_bytes = header_bytes + message.payload.len();
        let max_payload = self.shared.client.max_payload();
        let limit = max_message_bytes(max_payload);
        if bytes > limit || wire_bytes > max_payload {
            return Err(Error::new(
                ErrorKind::TooLarge,
                "the message is larger than the server allows; raise its max_payload or split it",
            )
            .with_context("bytes", bytes)
            .with_context("limit", limit)
            .with_context("with_headers_as_sent", wire_bytes));
        }
        let stream_limit = route.max_message_bytes.load(Ordering::Relaxed);
        if wire_bytes > stream_limit {
            return Err(Error::new(
                ErrorKind::TooLarge,
                "the message is larger than the stream allows; raise its max_msg_size or split it",
            )
            .with_context("bytes", wire_bytes)
            .with_context("limit", stream_limit));
        }
        let (reply, receiver) = oneshot::channel();
        let flight = Box::new(Flight {
            route,
            hash: message.key.as_ref().map(|key| hash::murmur2(key.as_bytes())),
            message,
            headers,
            own,
            id: id.map(Box::from),
            seat: None,
            partition: 0,
            mark: LogMark::default(),
            bytes,
            wire_bytes,
            deadline: Instant::now() + self.shared.timeout,
            reply: Some(reply),
        });
        self.shared.gate.carry(bytes);
        self.shared.commands.send(Command::Publish(flight)).map_err(|_| {
            self.shared.gate.exit(0, bytes);
            Error::closed("publish")
        })?;
        Ok(receiver)
    }
}

impl Service<Publish> for NatsProducer {
    type Response = Receipt;
    type Error = Error;
    type Future = NatsPublish;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.has_place {
            return Poll::Ready(Ok(()));
        }
        let entered = self.shared.gate.poll_enter(&mut self.ticket, cx);
        self.has_place = matches!(entered, Poll::Ready(Ok(())));
        entered
    }

    fn call(&mut self, publish: Publish) -> NatsPublish {
        if !std::mem::take(&mut self.has_place) {
            return NatsPublish::failed(Error::new(
                ErrorKind::Overloaded,
                "publish was called without poll_ready; wait until the publisher is ready",
            ));
        }
        match self.enqueue(publish) {
            Ok(receiver) => NatsPublish(State::Waiting(receiver)),
            Err(error) => {
                self.shared.gate.exit(1, 0);
                NatsPublish::failed(error)
            }
        }
    }
}

impl Clone for NatsProducer {
    /// The clone is not ready: it takes a place of its own.
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), has_place: false, ticket: None, last: self.last.clone() }
    }
}

impl Drop for NatsProducer {
    fn drop(&mut self) {
        self.shared.gate.leave(self.ticket.take());
        if self.has_place {
            self.shared.gate.exit(1, 0);
        }
    }
}

impl fmt::Debug for NatsProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsProducer").field("has_place", &self.has_place).finish_non_exhaustive()
    }
}

/// Resolves with the server's acknowledgement.
///
/// # Cancel safety
/// Dropping it does not un-publish.
#[derive(Debug)]
#[must_use = "what became of the message is said here"]
pub struct NatsPublish(State);

#[derive(Debug)]
enum State {
    Failed(Option<Error>),
    Waiting(oneshot::Receiver<Result<Receipt, Error>>),
}

impl NatsPublish {
    fn failed(error: Error) -> Self {
        Self(State::Failed(Some(error.with_operation("publish"))))
    }
}

impl Future for NatsPublish {
    type Output = Result<Receipt, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Failed(error) => {
                Poll::Ready(Err(error.take().unwrap_or_else(|| Error::closed("publish"))))
            }
            State::Waiting(receiver) => Pin::new(receiver).poll(cx).map(|answer| {
                answer.unwrap_or_else(|_| {
                    Err(Error::new(
                        ErrorKind::Timeout,
                        "the publisher's task ended before the acknowledgement; the message may have been stored",
                    )
                    .with_operation("publish"))
                })
            }),
        }
    }
}
