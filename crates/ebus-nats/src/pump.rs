//! The one task of a connection that publishes (G1, G5, G7).
//!
//! It hands messages to the client in the order of `call` and takes acknowledgements apart, so that publishing is
//! pipelined and still ordered. While the connection is down nothing is handed on: what waits here fails at its deadline
//! and was surely not stored. What a connection that ended leaves uncertain is made certain first of all on the next one
//! (`uncertain`).
//!
//! Where the server has batches and this connection is likely to be the stream's only publisher, what is sent while others
//! are on their way goes as batches (`batches`).

mod answers;
mod batches;
mod deadlines;
mod lookups;
mod remains;
mod room;
mod uncertain;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID};
use async_nats::message::OutboundMessage;
use async_nats::{HeaderName, PublishErrorKind, Subscriber};
use ebus_core::{Error, ErrorKind, Receipt, Retryability};
use futures_util::Sink;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep};

use crate::batch::Batch;
use crate::connection::Connection;
use crate::flight::{Flight, Queued, Seat, Window};
use crate::gate::Gate;
use crate::keys::LastOfKey;
use crate::place;
use crate::route::RouteState;
use crate::stream::TopicStream;
use crate::{convert, error, names};
use batches::Way;
pub(crate) use uncertain::Uncertainty;

/// How much is done before other tasks get their turn.
const BATCH: usize = 64;
/// How many batches are done in one turn.
const ROUNDS: usize = 8;

/// Of what may be in flight, so many times as much may have had its time-out and be on its way yet.
const KEPT: usize = 4;

/// What a message takes on the wire besides what is counted of it.
const FRAME: usize = 256;

/// The subject of which the sequence is expected.
const FENCE: HeaderName = HeaderName::from_static("Nats-Expected-Last-Subject-Sequence-Subject");
/// What the two headers of a fence take on the wire besides its subject: names, separators, `0`.
const FENCED: usize = 35 + 43 + 2 * ": \r\n".len() + 1;

const OPERATION: &str = "publish";

/// What the task is told.
pub(crate) enum Command {
    Publish(Box<Flight>),
    /// Finish what was told before, until the deadline.
    Close(Instant, oneshot::Sender<Result<(), Error>>),
}

struct Closing {
    deadline: Instant,
    reply: oneshot::Sender<Result<(), Error>>,
}

type Lookup = BoxFuture<'static, (usize, Result<TopicStream, Error>)>;
/// Of members of batches: of which route and batches, if their connection has ended.
type Places = BoxFuture<'static, (Option<(usize, Vec<u64>)>, place::Found)>;

pub(crate) struct Pump {
    connection: Connection,
    /// The client as a sink, which keeps a place in its queue while it waits.
    sink: async_nats::Client,
    gate: Arc<Gate>,
    intake: mpsc::UnboundedReceiver<Command>,
    buffer: Vec<Command>,
    intake_ended: bool,
    inbox: String,
    acks: Subscriber,
    queue: VecDeque<Queued>,
    routes: Vec<Option<RouteState>>,
    lookups: FuturesUnordered<Lookup>,
    /// Batches whose end is not known, by age; the open one of a route is in its state.
    batches: VecDeque<Batch>,
    /// What the ids of this connection's messages and batches begin with: unique among all publishers.
    id_prefix: String,
    next_batch: u64,
    places: FuturesUnordered<Places>,
    /// How often the connection was made when the last message was sent.
    generation: u64,
    /// Since when the connection is down.
    down_since: Option<Instant>,
    window: Window,
    /// What had its time-out and may be on its way yet: messages and bytes.
    kept: (usize, usize),
    keys: LastOfKey,
    next_sequence: u64,
    timer: Pin<Box<Sleep>>,
    timer_armed: bool,
    link: BoxFuture<'static, Connection>,
    /// Handed to the client since it was asked to write all.
    unwritten: usize,
    /// It was asked, and has not answered: the bytes of which it was.
    flushing: Option<BoxFuture<'static, ()>>,
    asked: usize,
    /// The client's task has ended: nothing goes out any more.
    has_ended: bool,
    closing: Option<Closing>,
    /// What the gate gets back at the end of the turn.
    freed: (usize, usize),
}

impl Pump {
    /// # Errors
    /// `Unavailable` when the connection is gone already.
    pub(crate) async fn new(
        connection: Connection,
        gate: Arc<Gate>,
        intake: mpsc::UnboundedReceiver<Command>,
    ) -> Result<Self, Error> {
        let inbox = connection.client.new_inbox();
        let acks = connection.client.subscribe(format!("{inbox}.>")).await.map_err(|why| {
            error::unavailable("connect", "no subscription for acknowledgements").with_source(why)
        })?;
        Ok(Self {
            sink: connection.client.clone(),
            link: link(connection.clone()),
            connection,
            gate,
            intake,
            buffer: Vec::with_capacity(BATCH),
            intake_ended: false,
            id_prefix: batches::prefix(&inbox),
            inbox,
            acks,
            queue: VecDeque::new(),
            routes: Vec::new(),
            lookups: FuturesUnordered::new(),
            batches: VecDeque::new(),
            next_batch: 0,
            places: FuturesUnordered::new(),
            generation: 0,
            down_since: None,
            window: Window::default(),
            kept: (0, 0),
            keys: LastOfKey::default(),
            next_sequence: 0,
            timer: Box::pin(tokio::time::sleep_until(Instant::now())),
            timer_armed: false,
            unwritten: 0,
            flushing: None,
            asked: 0,
            has_ended: false,
            closing: None,
            freed: (0, 0),
        })
    }

    /// Takes in what was called. True when there was something.
    fn poll_intake(&mut self, cx: &mut Context<'_>) -> bool {
        if self.intake_ended {
            return false;
        }
        match self.intake.poll_recv_many(cx, &mut self.buffer, BATCH) {
            Poll::Pending => false,
            Poll::Ready(0) => {
                self.intake_ended = true;
                true
            }
            Poll::Ready(_) => {
                let mut buffer = std::mem::take(&mut self.buffer);
                for command in buffer.drain(..) {
                    self.take_in(command);
                }
                self.buffer = buffer;
                true
            }
        }
    }

    fn take_in(&mut self, command: Command) {
        match command {
            Command::Publish(flight) => {
                let sequence = self.next_sequence;
                self.next_sequence += 1;
                if let Some(key) = key(&flight) {
                    self.keys.enter(key, sequence);
                }
                if self.closing.is_some() {
                    self.fail(sequence, flight, Error::closed(OPERATION));
                    return;
                }
                self.queue.push_back(Queued { sequence, flight });
            }
            Command::Close(deadline, reply) => {
                self.intake.close();
                self.closing = Some(Closing { deadline, reply });
                self.timer_armed = false;
            }
        }
    }

    /// Hands on what can be handed on, in order.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> bool {
        if self.has_ended {
            return self.fail_ended();
        }
        if !self.connection.is_up() {
            return false;
        }
        self.notice_reconnect();
        let config = &self.connection.config;
        let is_full = self.kept.0 >= KEPT * config.max_in_flight || self.kept.1 >= config.max_in_flight_bytes;
        for done in 0..BATCH {
            let Some(head) = self.queue.front() else { return done > 0 };
            let route = head.flight.route.clone();
            if self.routes.len() <= route.id {
                self.routes.resize_with(route.id + 1, || None);
            }
            let state = self.routes[route.id].get_or_insert_with(|| RouteState::new(route.clone()));
            if state.known.is_none() {
                state.waiting.extend(self.queue.pop_front());
                self.look(route.id);
                continue;
            }
            if !state.uncertain.is_empty() {
                state.waiting.extend(self.queue.pop_front());
                continue;
            }
            if is_full && self.window.len() > 0 {
                return done > 0;
            }
            if !self.poll_room(cx) {
                return done > 0;
            }
            if self.must_end_batch(route.id) {
                self.end_batch(route.id);
                continue;
            }
            self.send_head(route.id);
        }
        true
    }

    /// Nothing goes out any more. True when somebody was told.
    fn fail_ended(&mut self) -> bool {
        const ENDED: &str = "the connection's task has ended and does not come back; open a new backend";
        let sent = Error::new(ErrorKind::Timeout, format!("{ENDED}; the message may have been stored"));
        let unsent = Error::new(ErrorKind::Unavailable, format!("{ENDED}; nothing was stored"));
        let fail = |error: Error| error.with_operation(OPERATION);
        self.fail_all(&fail(sent), &fail(unsent)) > 0
    }

    /// Sends the head of the queue; the client has room for it, and its route is known.
    fn send_head(&mut self, id: usize) {
        let Some(Queued { sequence, mut flight }) = self.queue.pop_front() else { return };
        let number = self.window.next_number();
        let Way { reply, seat, is_first } = self.way(id, number, &flight);
        let Some(known) = self.routes[id].as_mut().and_then(|state| state.known.as_mut()) else { return };
        flight.partition = known.partition(flight.hash);
        flight.mark = known.mark;
        flight.seat = seat;
        self.unwritten += flight.bytes + FRAME;
        let mut headers = std::mem::take(&mut flight.headers);
        if flight.id.is_none() {
            let own = std::mem::take(&mut flight.own);
            let name = if seat.is_some() { convert::TAG } else { NATS_MESSAGE_ID };
            headers.insert(name, convert::complete_id(own, &self.id_prefix, number));
        }
        if let Some(Seat { batch, .. }) = seat.filter(|_| is_first) {
            let fence = names::fence(&flight.route.topic, format_args!("{}{batch}", self.id_prefix));
            self.unwritten += FENCED + fence.len();
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
            headers.insert(FENCE, fence);
        }
        let message = OutboundMessage {
            subject: known.subjects[flight.partition as usize].clone(),
            reply: Some(reply),
            payload: flight.message.payload.clone(),
            headers: Some(headers),
        };
        match Pin::new(&mut self.sink).start_send(message) {
            Ok(()) => self.window.push(sequence, flight),
            Err(why) => {
                let error = match why.kind() {
                    PublishErrorKind::MaxPayloadExceeded => {
                        Error::new(ErrorKind::TooLarge, "the message is larger than the server allows")
                    }
                    _ => Error::new(ErrorKind::Unavailable, "the connection has ended; nothing was stored"),
                };
                self.abandon_batch(id);
                self.fail(sequence, flight, error.with_operation(OPERATION).with_source(why));
            }
        }
    }

    /// Tells everybody: who may have come to the server, and who surely has not. Says how many were told.
    fn fail_all(&mut self, sent: &Error, unsent: &Error) -> usize {
        let mut all: Vec<_> = std::iter::from_fn(|| self.window.pop())
            .map(|(_, sequence, flight)| (sequence, flight))
            .collect();
        let mut queued: Vec<_> = self.queue.drain(..).collect();
        self.batches.clear();
        for state in self.routes.iter_mut().flatten() {
            state.open = None;
            queued.extend(state.waiting.drain(..));
            all.append(&mut state.autopsy);
            all.extend(state.uncertain.drain());
        }
        let count = all.iter().filter(|(_, flight)| flight.reply.is_some()).count() + queued.len();
        for (sequence, flight) in all {
            self.fail(sequence, flight, sent.clone());
        }
        for Queued { sequence, flight } in queued {
            self.fail(sequence, flight, unsent.clone());
        }
        count
    }

    fn fail(&mut self, sequence: u64, flight: Box<Flight>, error: Error) {
        let error = error.with_context("topic", &flight.route.topic);
        self.finish(sequence, flight, Err(error));
    }

    /// Tells the publisher, if he was not told before.
    fn finish(&mut self, sequence: u64, mut flight: Box<Flight>, result: Result<Receipt, Error>) {
        if flight.reply.is_none() {
            forget(&mut self.kept, &flight);
        } else {
            tell(&self.keys, &mut self.freed, sequence, &mut flight, result);
        }
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty()
            && self.window.len() == 0
            && self.routes.iter().flatten().all(|state| {
                state.waiting.is_empty() && state.autopsy.is_empty() && !state.uncertain.is_waited_for()
            })
    }

    fn give_back(&mut self) {
        let (messages, bytes) = std::mem::take(&mut self.freed);
        if messages > 0 {
            self.gate.exit(messages, bytes);
        }
    }
}

impl Drop for Pump {
    /// However it ends, nobody waits for a place that no one gives back; dropped replies say that the task has ended.
    fn drop(&mut self) {
        self.gate.close();
    }
}

impl Future for Pump {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        for _ in 0..ROUNDS {
            let mut progress = this.poll_intake(cx);
            progress |= this.poll_acks(cx);
            progress |= this.poll_lookups(cx);
            progress |= this.poll_places(cx);
            progress |= this.poll_uncertain(cx);
            progress |= this.poll_send(cx);
            progress |= this.poll_ends(cx);
            this.give_back();
            if !progress {
                while let Poll::Ready(connection) = this.link.as_mut().poll(cx) {
                    this.link = link(connection);
                    progress = true;
                }
                if progress {
                    continue;
                }
                if this.poll_deadlines(cx) {
                    this.give_back();
                    continue;
                }
                if this.intake_ended && this.is_idle() {
                    if let Some(closing) = this.closing.take() {
                        closing.reply.send(Ok(())).ok();
                    }
                    return Poll::Ready(());
                }
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Tells the publisher. A failure may be published again only if no later message of its key was called.
fn tell(
    keys: &LastOfKey,
    freed: &mut (usize, usize),
    sequence: u64,
    flight: &mut Flight,
    result: Result<Receipt, Error>,
) {
    let result = result.map_err(|error| match error.kind() {
        ErrorKind::Timeout | ErrorKind::Unavailable | ErrorKind::Overloaded
            if key(flight).is_none_or(|key| keys.is_last(key, sequence)) =>
        {
            error.with_retryability(Retryability::Safe)
        }
        _ => error.with_retryability(Retryability::Never),
    });
    freed.0 += 1;
    freed.1 += flight.bytes;
    // Who dropped the future does not want to know.
    if let Some(reply) = flight.reply.take() {
        reply.send(result).ok();
    }
}

/// Counts a message whose time-out is told, and which may be on its way yet.
fn keep(kept: &mut (usize, usize), flight: &Flight) {
    kept.0 += 1;
    kept.1 += flight.bytes;
}

fn forget(kept: &mut (usize, usize), flight: &Flight) {
    kept.0 -= 1;
    kept.1 -= flight.bytes;
}

/// The key of a message among all topics: equal keys are equal, and a collision only makes an answer more careful.
fn key(flight: &Flight) -> Option<u64> {
    flight.hash.map(|hash| (flight.route.id as u64) << 32 | u64::from(hash))
}

fn link(mut connection: Connection) -> BoxFuture<'static, Connection> {
    Box::pin(async move {
        connection.changed().await;
        connection
    })
}
