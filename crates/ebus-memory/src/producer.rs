//! Publishing: a place in flight, then a synchronous append in the order of `call` (G1, G5, G7).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ebus_core::{Error, Publish, Receipt};
use tokio::sync::oneshot;
use tokio::time::Sleep;
use tower_service::Service;

use crate::broker::MemoryBroker;
use crate::connection::Connection;
use crate::error;
use crate::gate::Ticket;
use crate::log::Appended;
use crate::topic::{TopicLog, Trouble};

/// What a publisher is told.
pub(crate) type Answer = Result<Receipt, Error>;

/// Publishes into a [`MemoryBroker`]; all clones share the bounds of their connection.
///
/// # Contract
/// - `poll_ready` reserves one place in flight; a clone that is dropped gives it back, and a new clone has none.
/// - `call` appends before it returns. When the partition is full, the message waits in the order of `call` and its future
///   is pending until a commit has made room.
/// - Dropping the future does not un-publish.
///
/// # Errors
/// `TooLarge`, `NotFound` (with [`TopicPolicy::MustExist`](crate::TopicPolicy::MustExist)), `Closed`. Of every error
/// nothing was stored.
pub struct MemoryProducer {
    broker: MemoryBroker,
    connection: Arc<Connection>,
    ticket: Ticket,
    has_place: bool,
    /// The topic of the last message: most publishers name one topic again and again.
    last: Option<Arc<TopicLog>>,
}

impl MemoryProducer {
    pub(crate) fn new(broker: MemoryBroker, connection: Arc<Connection>) -> Self {
        Self { broker, connection, ticket: Ticket::default(), has_place: false, last: None }
    }

    fn publish(&mut self, publish: Publish) -> Result<MemoryPublishFuture, Error> {
        let bytes = publish.message.byte_len();
        let limit = self.broker.config().max_message_bytes;
        if bytes > limit {
            return Err(error::too_large(&publish.topic, bytes, limit));
        }
        let known = self.last.take().filter(|topic| topic.topic == publish.topic && !topic.is_removed());
        let topic = match known {
            Some(topic) => topic,
            None => self.broker.topic_or_create(&publish.topic, "publish")?,
        };
        let trouble = topic.trouble();
        if trouble.unavailable {
            return Err(error::unavailable(&publish.topic));
        }
        let log = topic.log_for(publish.message.key.as_ref());
        let copies = if trouble.twice > 0 { 2 } else { 1 };
        let partition = log.id.partition;
        let state = match log.append(publish.message, bytes, &self.connection, copies) {
            Appended::Stored(offset) => {
                self.give_back();
                State::Done(Some(Ok(Receipt::new(publish.topic, partition, offset))))
            }
            Appended::Waiting(receiver) => {
                self.has_place = false;
                State::Waiting(receiver)
            }
            Appended::Closed => return Err(Error::closed("publish")),
            Appended::Removed => return Err(error::not_stored(&publish.topic, "its topic was removed")),
        };
        self.last = Some(topic);
        Ok(MemoryPublishFuture { state, delay: later(trouble) })
    }

    fn give_back(&mut self) {
        if std::mem::take(&mut self.has_place) {
            self.connection.gate.leave(1, 0);
        }
    }
}

fn later(trouble: Trouble) -> Option<Pin<Box<Sleep>>> {
    (!trouble.delay.is_zero()).then(|| Box::pin(tokio::time::sleep(trouble.delay)))
}

impl Service<Publish> for MemoryProducer {
    type Response = Receipt;
    type Error = Error;
    type Future = MemoryPublishFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.connection.is_closed() {
            self.give_back();
            return Poll::Ready(Err(Error::closed("publish")));
        }
        if !self.has_place {
            ready!(self.connection.gate.poll_enter(&mut self.ticket, cx));
            self.has_place = true;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, publish: Publish) -> MemoryPublishFuture {
        if !self.has_place {
            return MemoryPublishFuture::failed(error::not_ready());
        }
        self.publish(publish).unwrap_or_else(|error| {
            self.give_back();
            MemoryPublishFuture::failed(error)
        })
    }
}

impl Clone for MemoryProducer {
    /// The clone has no place in flight: readiness is not copied.
    fn clone(&self) -> Self {
        let mut clone = Self::new(self.broker.clone(), self.connection.clone());
        clone.last.clone_from(&self.last);
        clone
    }
}

impl Drop for MemoryProducer {
    fn drop(&mut self) {
        self.give_back();
        self.connection.gate.give_up(&mut self.ticket);
    }
}

impl std::fmt::Debug for MemoryProducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryProducer").field("has_place", &self.has_place).finish_non_exhaustive()
    }
}

/// Resolves when the message is stored; at once, unless its partition is full.
///
/// # Cancel safety
/// Dropping it does not un-publish.
#[derive(Debug)]
pub struct MemoryPublishFuture {
    state: State,
    delay: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
enum State {
    Done(Option<Answer>),
    Waiting(oneshot::Receiver<Answer>),
}

impl MemoryPublishFuture {
    fn failed(error: Error) -> Self {
        Self { state: State::Done(Some(Err(error))), delay: None }
    }
}

impl Future for MemoryPublishFuture {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        if let Some(delay) = &mut self.delay {
            ready!(delay.as_mut().poll(cx));
            self.delay = None;
        }
        match &mut self.state {
            State::Done(answer) => {
                Poll::Ready(answer.take().unwrap_or_else(|| Err(Error::closed("publish"))))
            }
            State::Waiting(receiver) => {
                let answer = ready!(Pin::new(receiver).poll(cx));
                // Its log drops no message without an answer while the broker lives.
                Poll::Ready(answer.unwrap_or_else(|_| Err(Error::closed("publish"))))
            }
        }
    }
}
