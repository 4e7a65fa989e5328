//! What the publishing task does with batches: begin, end, and answer for their messages (G1, G7).
//!
//! A batch begins behind a plain message, its anchor, while enough is on its way, and ends when it is full or its anchor is
//! acknowledged: so no message waits for its receipt longer than twice as long as by itself, and no timer is needed.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use ahash::RandomState;
use async_nats::message::OutboundMessage;
use async_nats::{StatusCode, Subject};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use ebus_core::{Error, ErrorKind, Receipt};
use futures_util::{Sink, StreamExt};

use super::{FENCED, OPERATION, Pump};
use crate::ack::Ack;
use crate::batch::{Batch, Outcome, Said};
use crate::convert;
use crate::digits;
use crate::flight::{Flight, Seat};
use crate::names;
use crate::place::{self, Wanted};
use crate::route::RouteState;

/// With fewer messages on their way, acknowledgements are not what takes the time.
const PIPELINED: usize = 64;
/// The most members of a batch: beyond it nothing is gained.
const MOST: usize = 256;
/// Of what may be in flight, a batch is this part at most, so that room comes back steadily.
const PART: usize = 8;

/// Of the number of a batch, at most.
const DIGITS: usize = 20;

/// "Batch publish is disabled."
const DISABLED: u64 = 10_205;

/// What the ids of batches begin with: as good as unique, because an inbox is, hashed by seeds of this process.
pub(super) fn prefix(inbox: &str) -> String {
    URL_SAFE_NO_PAD.encode(RandomState::new().hash_one(inbox).to_be_bytes())
}

/// How a message goes.
pub(super) struct Way {
    /// Where its answer goes: whether it is part of a batch.
    pub(super) reply: Subject,
    /// Its place in a batch that can be fenced.
    pub(super) seat: Option<Seat>,
    /// It begins the batch.
    pub(super) is_first: bool,
}

impl Pump {
    pub(super) fn state(&mut self, id: usize) -> Option<&mut RouteState> {
        self.routes.get_mut(id).and_then(Option::as_mut)
    }

    /// How the message goes that is sent next.
    pub(super) fn way(&mut self, id: usize, number: u64, flight: &Flight) -> Way {
        let is_pipelined = self.connection.config.batches && self.window.len() >= PIPELINED;
        if let Some(state) = self.routes.get_mut(id).and_then(Option::as_mut) {
            if let Some(open) = &mut state.open {
                let seat = open.is_fenced.then_some(Seat { batch: open.id, floor: open.floor });
                let is_first = open.members.is_empty();
                return Way { reply: Subject::from(open.add(number)), seat, is_first };
            }
            let known = state.known.as_ref().filter(|known| known.takes_batches);
            if let Some(known) = known
                && is_pipelined
                && flight.id.is_none()
                && state.alone.is_likely()
            {
                let floor = state.alone.last();
                let mut batch = Batch::new(&self.inbox, &self.id_prefix, self.next_batch, id, number, floor);
                self.next_batch += 1;
                batch.is_fenced = known.has_fences;
                state.open = Some(batch);
            }
        }
        let mut reply = String::with_capacity(self.inbox.len() + 1 + digits::count(number));
        reply.push_str(&self.inbox);
        reply.push('.');
        digits::push(&mut reply, number);
        Way { reply: Subject::from(reply), seat: None, is_first: false }
    }

    /// Whether a message is too large to have a fence beside it.
    fn is_too_large_to_begin(&self, flight: &Flight) -> bool {
        let fence = FENCED + names::fence(&flight.route.topic, self.id_prefix.as_str()).len() + DIGITS;
        let limit = flight.route.max_message_bytes.load(Ordering::Relaxed);
        flight.wire_bytes + fence > limit.min(self.connection.client.max_payload())
    }

    /// Whether the open batch of this route ends before the head of the queue.
    pub(super) fn must_end_batch(&mut self, id: usize) -> bool {
        let has_id = self.queue.front().is_some_and(|head| head.flight.id.is_some());
        let most = (self.connection.config.max_in_flight / PART).clamp(1, MOST);
        let Some(state) = self.routes.get(id).and_then(Option::as_ref) else { return false };
        let Some(open) = &state.open else { return false };
        // The stream takes batches no more: whoever joined it would fail too.
        let is_forbidden = state.known.as_ref().is_some_and(|known| !known.takes_batches);
        let is_full = open.members.len() >= most;
        let mut is_due = has_id || is_forbidden || is_full || self.window.get(open.anchor).is_none();
        if open.members.is_empty()
            && let Some(head) = self.queue.front()
        {
            is_due |= self.is_too_large_to_begin(&head.flight);
        }
        if is_due && open.members.is_empty() {
            self.abandon_batch(id);
            return false;
        }
        is_due
    }

    /// Ends what is due to end though nothing of its route is to be sent.
    pub(super) fn poll_ends(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        for id in 0..self.routes.len() {
            let Some(open) = self.routes[id].as_ref().and_then(|state| state.open.as_ref()) else { continue };
            if self.window.get(open.anchor).is_some() || !self.connection.is_up() {
                continue;
            }
            if open.members.is_empty() {
                self.abandon_batch(id);
                continue;
            }
            if !self.poll_room(cx) {
                return progress;
            }
            self.end_batch(id);
            progress = true;
        }
        progress
    }

    /// Sends the end of the open batch; the client has room for it.
    pub(super) fn end_batch(&mut self, id: usize) {
        let Some(state) = self.routes.get_mut(id).and_then(Option::as_mut) else { return };
        let Some(subject) = state.known.as_ref().map(|known| known.subjects[0].clone()) else { return };
        let Some(open) = state.open.take() else { return };
        self.unwritten += super::FRAME;
        let message = OutboundMessage {
            subject,
            reply: Some(Subject::from(open.end())),
            payload: Bytes::new(),
            headers: None,
        };
        if let Err(why) = Pin::new(&mut self.sink).start_send(message) {
            // Its members have their time-out.
            tracing::debug!(%why, "the end of a batch was not sent");
        }
        self.batches.push_back(open);
    }

    /// Adds nothing more to the open batch, and does not end it: what came of its messages is said by the server one by one,
    /// or by their time-out.
    pub(super) fn abandon_batch(&mut self, id: usize) {
        if let Some(open) = self.state(id).and_then(|state| state.open.take())
            && !open.members.is_empty()
        {
            self.batches.push_back(open);
        }
    }

    /// What was known of this stream holds no more.
    pub(super) fn forget(&mut self, id: usize) {
        self.abandon_batch(id);
        if let Some(state) = self.state(id) {
            state.forget();
        }
    }

    /// Drops batches of which every message is done.
    pub(super) fn prune_batches(&mut self) {
        let base = self.window.base();
        self.batches.retain(|batch| batch.members.last().is_some_and(|last| *last >= base));
    }

    /// A plain message of ours was stored there.
    pub(super) fn note_offset(&mut self, flight: &Flight, number: u64, offset: u64) {
        let id = flight.route.id;
        let Some(state) = self.routes.get_mut(id).and_then(Option::as_mut) else { return };
        // Some offsets of batches in front of it are not known yet: then it says nothing.
        if !self.batches.iter().any(|batch| batch.route == id && batch.anchor < number) {
            if offset <= state.alone.last() {
                // Made anew, perhaps with other partitions.
                self.forget(id);
                return;
            }
            state.alone.stored(offset);
        }
        let open = state.open.iter_mut();
        for batch in open.chain(&mut self.batches).filter(|batch| batch.route == id && batch.anchor == number)
        {
            batch.anchored = Some(offset);
        }
    }

    pub(super) fn batch_answered(&mut self, id: u64, position: u64, message: &async_nats::Message) {
        self.notice_reconnect();
        // It may have ended before: then nothing is left to say.
        let Some(route) = self.batch(id).map(|batch| batch.route) else { return };
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            self.member_answered(id, position, Ack::NobodyListens);
            return;
        }
        match Said::read(&message.payload) {
            Said::Alive | Said::Broken => {}
            Said::Refused { position, code, status, description } => {
                self.member_answered(id, position, Ack::Refused { code, status, description });
            }
            Said::Ended { stream, last, count } => {
                let Some(batch) = self.take_batch(id) else { return };
                self.batch_ended(batch, &stream, last, count);
            }
            Said::Single => {
                let ack = Ack::read(message);
                if matches!(ack, Ack::Refused { code: DISABLED, .. })
                    && let Some(known) = self.state(route).and_then(|state| state.known.as_mut())
                {
                    known.takes_batches = false;
                }
                self.member_answered(id, position, ack);
            }
        }
    }

    fn batch(&mut self, id: u64) -> Option<&mut Batch> {
        let open = self.routes.iter_mut().flatten().filter_map(|state| state.open.as_mut());
        self.batches.iter_mut().chain(open).find(|batch| batch.id == id)
    }

    fn take_batch(&mut self, id: u64) -> Option<Batch> {
        if let Some(at) = self.batches.iter().position(|batch| batch.id == id) {
            return self.batches.remove(at);
        }
        let is_it = |state: &&mut RouteState| state.open.as_ref().is_some_and(|open| open.id == id);
        self.routes.iter_mut().flatten().find(is_it).and_then(|state| state.open.take())
    }

    /// What the server says of one member by itself: never that it is stored.
    fn member_answered(&mut self, id: u64, position: u64, ack: Ack) {
        let Some(batch) = self.batch(id) else { return };
        let route = batch.route;
        let Some(number) = batch.member(position) else {
            // The server does not know the batch that ends here; its members have their time-out, if nothing was said before.
            return;
        };
        batch.refuse(position);
        if let Some(state) = self.state(route) {
            let last = state.alone.last();
            state.alone.disturbed(last);
        }
        if let Some((sequence, flight)) = self.take(number) {
            match ack {
                Ack::Stored { .. } => {
                    let why = "the server acknowledged a message by itself that is one of a batch".into();
                    self.acknowledged(sequence, flight, Ack::Unreadable(why));
                }
                ack => self.acknowledged(sequence, flight, ack),
            }
        }
    }

    fn batch_ended(&mut self, batch: Batch, stream: &str, last: u64, count: u64) {
        let Outcome { stored, missing, was_refused } = batch.outcome(last, count);
        for number in missing {
            if let Some((sequence, flight)) = self.take(number) {
                let error = if was_refused {
                    Error::new(
                        ErrorKind::Unavailable,
                        "a message in front of it was refused and ended their batch; nothing was stored",
                    )
                } else {
                    Error::new(
                        ErrorKind::Timeout,
                        "a message in front of it was lost and ended their batch; this one may have been stored",
                    )
                };
                self.fail(sequence, flight, error.with_operation(OPERATION));
            }
        }
        let Some(state) = self.routes.get_mut(batch.route).and_then(Option::as_mut) else { return };
        if state.route.stream != stream {
            for (number, _) in stored {
                if let Some((sequence, flight)) = self.take(number) {
                    self.stored_elsewhere(sequence, flight, stream.to_owned());
                }
            }
        } else if stored.iter().all(|(_, offset)| offset.is_some()) {
            state.alone.stored_batch(last, stored.len() as u64);
            for (number, offset) in stored {
                self.placed(number, offset);
            }
        } else {
            state.alone.disturbed(last);
            let numbers = stored.into_iter().map(|(number, _)| number);
            self.look_for_places(&batch, last, numbers);
        }
    }

    /// Somebody else's messages came in between: the stream says where ours are.
    fn look_for_places(&mut self, batch: &Batch, last: u64, numbers: impl Iterator<Item = u64>) {
        let Some(state) = self.routes.get(batch.route).and_then(Option::as_ref) else { return };
        let stream = state.route.stream.clone();
        tracing::debug!(stream, "another publisher's messages are among those of a batch");
        let wanted = Wanted {
            connection: self.connection.clone(),
            stream,
            name: format!("{}{}", self.id_prefix, batch.id),
            after: batch.anchored.unwrap_or(batch.floor),
            last,
            ids: numbers.filter_map(|number| Some((self.id_of(number)?, number))).collect(),
        };
        self.places.push(Box::pin(async move { (None, place::find(wanted).await) }));
    }

    /// The id of a message on its way that goes by an id of ours.
    fn id_of(&self, number: u64) -> Option<String> {
        let flight = self.window.find(number)?;
        Some(convert::own_id(&flight.message, &self.id_prefix, number))
    }

    pub(super) fn poll_places(&mut self, cx: &mut Context<'_>) -> bool {
        if self.places.is_empty() {
            return false;
        }
        let Poll::Ready(Some(found)) = self.places.poll_next_unpin(cx) else { return false };
        let (of, found) = found;
        match of {
            Some((id, batches)) => self.remains_placed(id, &batches, found),
            None => found.places.into_iter().for_each(|(number, offset)| self.placed(number, offset)),
        }
        true
    }

    /// A member is stored, and where, if that is known.
    fn placed(&mut self, number: u64, offset: Option<u64>) {
        let Some((sequence, flight)) = self.take(number) else { return };
        match offset {
            Some(offset) => {
                let receipt = Receipt::new(flight.route.topic.clone(), flight.partition, offset);
                self.finish(sequence, flight, Ok(receipt));
            }
            None => {
                let error = Error::new(
                    ErrorKind::Timeout,
                    "stored among messages of another publisher, and its offset could not be read in time",
                );
                self.fail(sequence, flight, error.with_operation(OPERATION));
            }
        }
    }
}
