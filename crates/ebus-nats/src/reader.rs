//! Reads a bounded range of a partition beside all groups.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{Error, Message, ReadRange, Reader};
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::connection::Connection;
use crate::consumer::{ConsumerSpec, End, Feed, STUCK};
use crate::error;
use crate::stream::TopicStream;

/// A reader with a consumer of its own, on a connection of its own: what ends that ends no publisher's.
pub(crate) struct NatsReader {
    connection: Connection,
    stream: TopicStream,
    partition: u32,
    /// The next offset.
    next: u64,
    /// The offset to stop before.
    to: u64,
    state: State,
    generation: u64,
    /// Consumers in a row that ended before a message came.
    stuck: u32,
    /// Since when nothing came although something should.
    waiting_since: Option<Instant>,
}

enum State {
    Closed,
    /// With its connection, which may be another one.
    Opening(BoxFuture<'static, Result<(Connection, Feed), Error>>),
    Open(Feed),
    End,
}

impl NatsReader {
    pub(crate) fn new(connection: Connection, stream: TopicStream, range: &ReadRange) -> Self {
        // What comes after the end as it is now is not part of the range: a bounded read ends.
        let to = range.to.0.min(stream.last + 1);
        let state = if range.from < to { State::Closed } else { State::End };
        Self {
            generation: connection.generation(),
            connection,
            partition: range.partition,
            next: range.from.max(stream.first),
            to,
            stream,
            state,
            stuck: 0,
            waiting_since: None,
        }
    }

    /// A consumer ended.
    fn stuck(&mut self) {
        self.stuck += 1;
        self.state = State::Closed;
    }

    fn poll_more(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        found: &mut Vec<(u64, Message)>,
    ) -> Poll<Result<(), Error>> {
        let generation = self.connection.generation();
        if generation != self.generation {
            self.generation = generation;
            match &self.state {
                State::End | State::Closed => {}
                State::Open(feed) if !feed.has_consumer() => self.state = State::Closed,
                State::Open(_) | State::Opening(_) => self.stuck(),
            }
        }
        while found.len() < most {
            match &mut self.state {
                State::End => break,
                State::Closed => {
                    let spec = ConsumerSpec {
                        stream: self.stream.name.clone(),
                        name: None,
                        filter: self.stream.filter(self.partition),
                        from: self.next,
                    };
                    let mut connection = self.connection.clone();
                    let is_stuck = self.stuck >= STUCK || connection.has_ended();
                    self.state = State::Opening(Box::pin(async move {
                        if connection.has_ended() {
                            connection = Connection::open(connection.config, "reader").await?;
                        }
                        let feed = if is_stuck {
                            Feed::raw(&connection, spec, Duration::ZERO)
                        } else {
                            let opened = Feed::open(&connection, spec).await;
                            if opened.is_err() {
                                connection.has_settled().await;
                            }
                            opened?
                        };
                        Ok((connection, feed))
                    }));
                }
                State::Opening(opening) => match opening.as_mut().poll(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok((_, feed))) if feed.pending == 0 => self.state = State::End,
                    Poll::Ready(Ok((connection, feed))) => {
                        if self.connection.has_ended() {
                            self.generation = connection.generation();
                            self.connection = connection;
                        }
                        self.state = State::Open(feed);
                    }
                    // The message that ends a connection was there before the consumer was.
                    Poll::Ready(Err(_)) if self.connection.has_ended() && self.stuck < STUCK => {
                        self.stuck = STUCK;
                        self.state = State::Closed;
                    }
                    Poll::Ready(Err(error)) => {
                        self.state = State::Closed;
                        return Poll::Ready(Err(error));
                    }
                },
                State::Open(feed) => match feed.poll_next(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(fed)) => {
                        self.waiting_since = None;
                        if feed.has_consumer() {
                            self.stuck = 0;
                        }
                        self.next = fed.offset + 1;
                        let last = fed.pending == 0 || self.next >= self.to;
                        if fed.offset < self.to {
                            found.push((fed.offset, fed.message));
                        }
                        if last {
                            self.state = State::End;
                        }
                    }
                    Poll::Ready(Err(End::Passed)) => {
                        self.stuck = 0;
                        self.state = State::Closed;
                    }
                    Poll::Ready(Err(End::Failed(error))) => {
                        self.stuck = 0;
                        self.state = State::Closed;
                        return Poll::Ready(Err(error));
                    }
                    Poll::Ready(Err(End::Consumer(why))) => {
                        tracing::debug!(why, "a reader's consumer is made anew");
                        let since = *self.waiting_since.get_or_insert_with(Instant::now);
                        self.stuck();
                        if since.elapsed() > self.connection.request_timeout {
                            self.waiting_since = None;
                            return Poll::Ready(Err(error::unavailable("read", why)));
                        }
                    }
                },
            }
        }
        if found.is_empty() && !matches!(self.state, State::End) {
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }
}

#[async_trait]
impl Reader for NatsReader {
    async fn next(&mut self, most: usize, out: &mut Vec<(u64, Message)>) -> Result<usize, Error> {
        if most == 0 {
            return Ok(0);
        }
        let mut found = Vec::new();
        let polled = poll_fn(|cx| self.poll_more(cx, most, &mut found)).await;
        // What came before an error is not read again.
        let count = found.len();
        out.append(&mut found);
        if count == 0 {
            polled?;
        }
        Ok(count)
    }
}
