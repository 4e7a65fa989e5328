//! What a consumer has, asked for in time and read as it comes (G1, G5).
//!
//! Not by the stream of async-nats: that clones its JetStream context for each message, two allocations and a dozen of shared
//! counters, and has a task and three channels a partition; both sides of `xtask bench` show what that costs.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use ebus_core::{Error, Timestamp};
use futures_util::{Sink, StreamExt};
use tokio::time::{Instant, Sleep};

use crate::connection::Connection;
use crate::consumer::{End, Fed};
use crate::denials::Denials;
use crate::{convert, error};

/// Messages per request: 8 partitions of one stream gave 650,000 messages/s with it. When half of them have come, so many
/// more are asked for: one and a half times as many wait in the client at most.
const BATCH: usize = 500;
/// How often the server says that a request without messages is alive.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a request waits for messages.
const EXPIRES: Duration = Duration::from_secs(10);
/// How long at least nothing is heard of a consumer that is no good any more.
const SILENCE: Duration = Duration::from_secs(2);

const OPERATION: &str = "read the topic";

/// How many messages of a request did not come, where it ends early.
const PENDING: &str = "Nats-Pending-Messages";

/// The messages of one consumer.
pub(crate) struct Pull {
    /// As a sink, which keeps a place in the client's queue while it waits.
    client: Client,
    /// Where requests go.
    subject: Subject,
    /// What this connection may not do, and how many such there were at first.
    denials: Arc<Denials>,
    denied_before: u64,
    /// Where messages come.
    inbox: Subject,
    messages: Subscriber,
    request: Bytes,
    /// Asked for, and not come.
    asked: usize,
    /// The sequence that the consumer gives its next message.
    next: u64,
    /// Something was heard since the timer was set.
    heard: bool,
    silence: Pin<Box<Sleep>>,
}

impl Pull {
    /// Makes ready to read a consumer from its first message; asks for nothing before it is polled.
    ///
    /// # Errors
    /// `Unavailable` when the connection has ended.
    pub(crate) async fn start(connection: &Connection, stream: &str, consumer: &str) -> Result<Self, Error> {
        let client = connection.client.clone();
        let inbox = Subject::from(client.new_inbox());
        let messages = client
            .subscribe(inbox.clone())
            .await
            .map_err(|why| error::unavailable(OPERATION, "no messages are sent").with_source(why))?;
        let (expires, heartbeat) = (EXPIRES.as_nanos(), HEARTBEAT.as_nanos());
        let request = format!(r#"{{"batch":{BATCH},"expires":{expires},"idle_heartbeat":{heartbeat}}}"#);
        Ok(Self {
            client,
            subject: Subject::from(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}")),
            denied_before: connection.denials.count(),
            denials: connection.denials.clone(),
            inbox,
            messages,
            request: request.into(),
            asked: 0,
            next: 1,
            heard: true,
            silence: Box::pin(tokio::time::sleep(SILENCE)),
        })
    }

    /// The next message, or why this consumer is no good any more.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Fed, End>> {
        loop {
            if self.asked <= BATCH / 2 {
                self.ask(cx).map_err(End::Consumer)?;
            }
            match self.messages.poll_next_unpin(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => {
                    return Poll::Ready(Err(End::Consumer("the connection has ended".into())));
                }
                Poll::Ready(Some(message)) => {
                    self.heard = true;
                    if let Some(place) = message.reply.as_deref().and_then(Place::read) {
                        return Poll::Ready(self.take(place, message).map_err(End::Consumer));
                    }
                    self.told(&message).map_err(End::Consumer)?;
                }
            }
        }
        while self.silence.as_mut().poll(cx).is_ready() {
            if !std::mem::take(&mut self.heard) {
                return Poll::Ready(Err(self.silent()));
            }
            self.silence.as_mut().reset(Instant::now() + SILENCE);
        }
        Poll::Pending
    }

    fn silent(&self) -> End {
        if self.denials.has_since(self.denied_before, |denied| denied == self.subject.as_str()) {
            return End::Failed(error::denied(OPERATION));
        }
        End::Consumer("the consumer is silent".into())
    }

    /// Asks for more, if the client takes that now.
    fn ask(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        let ended = |why| format!("the connection has ended: {why}");
        let Poll::Ready(room) = Pin::new(&mut self.client).poll_ready(cx) else { return Ok(()) };
        room.map_err(ended)?;
        let request = OutboundMessage {
            subject: self.subject.clone(),
            reply: Some(self.inbox.clone()),
            payload: self.request.clone(),
            headers: None,
        };
        Pin::new(&mut self.client).start_send(request).map_err(ended)?;
        self.asked += BATCH;
        Ok(())
    }

    fn take(&mut self, place: Place, message: async_nats::Message) -> Result<Fed, String> {
        let Place { offset, sequence, stored, pending } = place;
        if sequence != self.next {
            return Err(format!("the consumer's sequence jumped from {} to {sequence}", self.next));
        }
        self.next += 1;
        self.asked = self.asked.saturating_sub(1);
        let async_nats::Message { headers, payload, .. } = message;
        let message = convert::decode(headers.as_ref(), payload, || stored);
        Ok(Fed { offset, message, headers, pending })
    }

    /// What the server says instead of a message.
    fn told(&mut self, message: &async_nats::Message) -> Result<(), String> {
        let why = message.description.as_deref().unwrap_or_default();
        match message.status {
            Some(StatusCode::IDLE_HEARTBEAT) => {}
            Some(StatusCode::TIMEOUT) => self.ended_early(message.headers.as_ref()),
            Some(StatusCode::REQUEST_TERMINATED) if !is_final(why) => {
                self.ended_early(message.headers.as_ref());
            }
            Some(status) => return Err(format!("the server says {status} {why}")),
            None => return Err("a message without its place".into()),
        }
        Ok(())
    }

    /// A request has ended before all of its messages came.
    fn ended_early(&mut self, headers: Option<&HeaderMap>) {
        let missing = headers.and_then(|headers| headers.get(PENDING));
        let missing = missing.and_then(|missing| missing.as_str().parse().ok()).unwrap_or(BATCH);
        self.asked = self.asked.saturating_sub(missing);
    }
}

/// Whether a request that was ended for this reason would always be.
fn is_final(why: &str) -> bool {
    why == "Consumer Deleted" || why == "Consumer is push based" || why.starts_with("Exceeded MaxRequest")
}

/// Where a message stands; the server says so in the subject of the acknowledgement that it does not need.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    offset: u64,
    /// Among those of the consumer.
    sequence: u64,
    stored: Timestamp,
    /// How many there were behind it.
    pending: u64,
}

impl Place {
    /// `$JS.ACK.`, since 2.10 or with a domain `<domain>.<account>.`, then `<stream>.<consumer>.<delivered>.<offset>.<sequence>.<nanos>.<pending>`, and
    /// what later servers add.
    fn read(reply: &str) -> Option<Self> {
        const PREFIX: &str = "$JS.ACK.";
        let tail = reply.strip_prefix(PREFIX)?;
        let dots = tail.bytes().filter(|byte| *byte == b'.').count();
        let ahead = match dots + 1 {
            7 => 3,
            9.. => 5,
            _ => return None,
        };
        let mut tokens = tail.split('.').skip(ahead);
        let mut number = || tokens.next()?.parse::<u64>().ok();
        let (offset, sequence, nanos, pending) = (number()?, number()?, number()?, number()?);
        let stored = Timestamp::from_millis(i64::try_from(nanos / 1_000_000).ok()?);
        Some(Self { offset, sequence, stored, pending })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_read_from_all_forms_of_the_reply() {
        let place = |pending| Place {
            offset: 9_041,
            sequence: 512,
            stored: Timestamp::from_millis(1_700_000_000_123),
            pending,
        };
        let tail = "orders.g_0_1_1.1.9041.512.1700000000123456789.77";
        let read = |head: &str, more: &str| Place::read(&format!("$JS.ACK.{head}{tail}{more}"));
        assert_eq!(read("", ""), Some(place(77)));
        assert_eq!(read("_.AbCd.", ""), Some(place(77)));
        assert_eq!(read("hub.AbCd.", ".token"), Some(place(77)));
        assert_eq!(read("hub.AbCd.", ".token.and.more"), Some(place(77)));
    }

    #[test]
    fn what_is_no_place_is_none() {
        for reply in [
            "",
            "_INBOX.a.b",
            "$JS.ACK.",
            "$JS.ACK.orders.c.1.9041.512.1700000000123456789",
            "$JS.ACK.hub.orders.c.1.9041.512.1700000000123456789.77",
            "$JS.ACK.orders.c.1.x.512.1700000000123456789.77",
            "$JS.ACK.orders.c.1.9041.-1.1700000000123456789.77",
            "$JS.ACK.orders.c.1.9041.512.99999999999999999999.77",
        ] {
            assert_eq!(Place::read(reply), None, "{reply}");
        }
    }
}
