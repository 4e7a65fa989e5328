//! What a connection that ended leaves uncertain is made certain before anything else goes to its topic (G7).
//!
//! A message without an answer may have come to the server, or be lost, or be held: by the kernel, by a proxy, until the
//! network heals. Then it comes late, behind what the next connection published. So its id is spent first: a message without
//! content is stored under the same id, on a subject that nobody reads (`void`). Either the server says that it had the id
//! before, and where: then the message is stored. Or it takes the void: then the message was not stored, and if it comes yet,
//! it is a duplicate. Nothing is published again, so nothing can get behind a later one, whatever the server stored of those
//! that were sent after it. Until each is certain, the topic's other messages wait.
//!
//! Members of batches that can be fenced have no id: see [`remains`](super::remains).
//!
//! An id of the caller's own must not be spent: he may use it again. And a stream of other make has no such subject. There the
//! message itself is sent again, in order, while the server knows its ids.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::message::OutboundMessage;
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use ebus_core::{Error, ErrorKind, Receipt};
use futures_util::Sink;
use tokio::time::Instant;

use super::remains::Remains;
use super::{OPERATION, Pump};
use crate::ack::Ack;
use crate::convert::Encoded;
use crate::flight::Flight;
use crate::route::RouteState;
use crate::{convert, error};

/// When what was not answered is asked again: the stream may have no leader.
const ROUND: Duration = Duration::from_secs(1);

/// How long bytes of a connection that ended may come: Linux gives up what a closed socket has left after 8 attempts, 102 s.
pub(super) const LATE: Duration = Duration::from_secs(120);

/// The server forgets ids in steps, and its clock is not ours.
const MARGIN: Duration = Duration::from_secs(10);

/// "Duplicate message id is in process."
const IN_PROCESS: u64 = 10_158;

/// What the answers to questions have in front of the number: no id of a batch begins like it, which has no dot.
pub(super) const ASKED: &str = "u.";

/// A message of a connection that ended, without an answer.
pub(crate) struct Uncertain {
    pub(super) number: u64,
    pub(super) sequence: u64,
    pub(super) flight: Box<Flight>,
    /// When its connection was seen to have ended.
    since: Instant,
    /// How often it was asked for.
    asked: u32,
    /// Whether its id was spent, or may have been: then its message is never sent again.
    spent: bool,
}

/// Those of a topic, in the order in which they were sent.
#[derive(Default)]
pub(crate) struct Uncertainty {
    list: std::collections::VecDeque<Uncertain>,
    /// So many of them, from the first, were asked for in this round.
    asked: usize,
    /// When the next round begins.
    round: Option<Instant>,
    /// Why the last question was not answered, as far as the server says.
    refusal: Option<Error>,
    /// What of it has no id.
    pub(super) remains: Remains,
}

impl Uncertainty {
    /// Why those that wait for these were not sent.
    pub(super) fn reason(&self) -> Option<Error> {
        let is_asked = self.list.front().map_or(!self.remains.is_empty(), |first| first.asked > 0);
        let silent = || {
            let message = "what a connection that ended left is not certain yet: the stream does not answer; it has no \
                 leader, or publishing to <topic>.void and <topic>.void=.* is not permitted; nothing was stored";
            Error::new(ErrorKind::Unavailable, message).with_operation(OPERATION)
        };
        self.refusal.clone().or_else(|| is_asked.then(silent))
    }

    /// Asks for all of them from now on.
    pub(super) fn begin(&mut self) {
        self.asked = 0;
        self.round = None;
        self.remains.begin();
    }

    /// No round is running.
    pub(super) fn needs_round(&self) -> bool {
        self.round.is_none()
    }

    pub(super) fn refused(&mut self, why: Error) {
        self.refusal = Some(why);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty() && self.remains.is_empty()
    }

    fn find(&self, number: u64) -> Option<usize> {
        self.list.binary_search_by_key(&number, |one| one.number).ok()
    }

    fn take(&mut self, number: u64) -> Option<Uncertain> {
        let at = self.find(number)?;
        if at < self.asked {
            self.asked -= 1;
        }
        self.list.remove(at)
    }

    /// Takes the message of this number if this answer to itself says what became of it. A duplicate whose id is spent may be
    /// that of the void, at the void's offset.
    fn take_answered(&mut self, number: u64, ack: &Ack) -> Option<Uncertain> {
        let spent = self.list[self.find(number)?].spent;
        match ack {
            Ack::Stored { duplicate, .. } if !(spent && *duplicate) => self.take(number),
            // The same id twice, and one of them on its way: it may be either.
            Ack::Refused { code: IN_PROCESS, .. } => None,
            Ack::Refused { .. } if !spent => self.take(number),
            _ => None,
        }
    }

    /// What has to be done next at a time.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let untold = self.list.iter().find(|one| one.flight.reply.is_some()).map(|one| one.flight.deadline);
        let dead = self.list.front().map(|one| one.since + LATE);
        untold.into_iter().chain(dead).chain(self.round).chain(self.remains.next_deadline()).min()
    }

    /// Whether somebody waits for one of them.
    pub(super) fn is_waited_for(&self) -> bool {
        self.list.iter().any(|one| one.flight.reply.is_some()) || self.remains.is_waited_for()
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = (u64, Box<Flight>)> + '_ {
        self.begin();
        let members = self.remains.drain();
        self.list.drain(..).map(|one| (one.sequence, one.flight)).chain(members)
    }
}

impl Pump {
    /// Nothing that was sent on a connection that has ended is answered there: from now on it is uncertain.
    pub(super) fn notice_reconnect(&mut self) {
        let generation = self.connection.generation();
        if std::mem::replace(&mut self.generation, generation) == generation {
            return;
        }
        self.wrote_all();
        // A batch does not outlive its connection: part of it may be lost.
        self.batches.clear();
        let since = self.down_since.take().unwrap_or_else(Instant::now);
        for state in self.routes.iter_mut().flatten() {
            state.open = None;
            state.uncertain.begin();
        }
        let mut disturbed = Vec::new();
        while let Some((number, sequence, flight)) = self.window.pop() {
            disturbed.push(flight.route.id);
            let Some(state) = self.routes.get_mut(flight.route.id).and_then(Option::as_mut) else { continue };
            if let Some(seat) = flight.seat {
                state.uncertain.remains.push(number, sequence, flight, seat, since);
                continue;
            }
            let uncertain = Uncertain { number, sequence, flight, since, asked: 0, spent: false };
            state.uncertain.list.push_back(uncertain);
        }
        disturbed.sort_unstable();
        disturbed.dedup();
        for id in disturbed {
            // The stream may have been made anew meanwhile: what is uncertain of another one must not go to it.
            self.forget(id);
        }
        self.timer_armed = false;
    }

    /// Asks for what is uncertain, and lets the others go on when nothing is.
    pub(super) fn poll_uncertain(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.connection.is_up() {
            self.down_since.get_or_insert_with(Instant::now);
            return false;
        }
        self.notice_reconnect();
        self.down_since = None;
        let mut progress = false;
        for id in 0..self.routes.len() {
            while let Some(state) = self.routes[id].as_ref()
                && state.uncertain.asked < state.uncertain.list.len()
            {
                if state.known.is_none() {
                    if state.uncertain.round.is_none() {
                        self.begin_round(id);
                        self.look(id);
                    }
                    break;
                }
                if !self.poll_room(cx) {
                    return progress;
                }
                self.ask_next(id);
                progress = true;
            }
            match self.poll_remains(id, cx) {
                Some(asked) => progress |= asked,
                None => return progress,
            }
            let is_asked = |all: &Uncertainty| {
                !all.is_empty() && all.asked == all.list.len() && all.remains.next().is_none()
            };
            if self
                .state(id)
                .is_some_and(|state| is_asked(&state.uncertain) && state.uncertain.round.is_none())
            {
                self.begin_round(id);
            }
        }
        progress
    }

    pub(super) fn begin_round(&mut self, id: usize) {
        if let Some(state) = self.state(id) {
            state.uncertain.round = Some(Instant::now() + ROUND);
        }
        self.timer_armed = false;
    }

    /// Spends the next id, or sends its message again; the client has room for it.
    fn ask_next(&mut self, id: usize) {
        let now = Instant::now();
        let reply = self.inbox.clone();
        let (prefix, timeout) = (&self.id_prefix, self.connection.config.publish_timeout);
        let Some(state) = self.routes.get_mut(id).and_then(Option::as_mut) else { return };
        let (Some(known), at) = (&state.known, state.uncertain.asked) else { return };
        let Some(one) = state.uncertain.list.get_mut(at) else { return };
        let void = known.void.as_ref().filter(|_| one.flight.id.is_none());
        // What was for a stream that is gone is not for the one that has its name now.
        let is_same = one.flight.mark == known.mark;
        let is_known = !one.spent && is_known_yet(&one.flight, known.id_window, timeout, now);
        if !is_same || (void.is_none() && !is_known) {
            // Nobody can say any more what became of it, and its bytes are as old.
            tracing::warn!(topic = %state.route.topic, "a message of a connection that ended cannot be made certain");
            if let Some(Uncertain { sequence, flight, .. }) = state.uncertain.list.remove(at) {
                self.fail(sequence, flight, unknown());
            }
            self.go_on(id);
            return;
        }
        let is_spent = void.is_some();
        let own;
        let id_text = match &one.flight.id {
            Some(id) => &**id,
            None => {
                own = convert::own_id(&one.flight.message, prefix, one.number);
                &own
            }
        };
        let message = match void {
            Some(void) => {
                let mut headers = HeaderMap::new();
                headers.insert(NATS_MESSAGE_ID, id_text);
                OutboundMessage {
                    subject: void.clone(),
                    reply: None,
                    payload: Bytes::new(),
                    headers: Some(headers),
                }
            }
            None => {
                let Encoded { mut headers, .. } =
                    convert::encode(&one.flight.message, one.flight.id.as_deref());
                headers.insert(NATS_MESSAGE_ID, id_text);
                OutboundMessage {
                    subject: known.subjects[one.flight.partition as usize].clone(),
                    reply: None,
                    payload: one.flight.message.payload.clone(),
                    headers: Some(headers),
                }
            }
        };
        let reply = Subject::from(format!("{reply}.{ASKED}{}", one.number));
        one.asked += 1;
        one.spent |= is_spent;
        state.uncertain.asked += 1;
        self.unwritten += super::FRAME + if is_spent { 0 } else { one.flight.bytes };
        if let Err(why) =
            Pin::new(&mut self.sink).start_send(OutboundMessage { reply: Some(reply), ..message })
        {
            tracing::debug!(%why, "a question for what is uncertain was not sent");
        }
    }

    /// The answer to a question.
    pub(super) fn told(&mut self, number: u64, message: &async_nats::Message) {
        let found = |state: &&mut RouteState| state.uncertain.find(number).is_some();
        let Some(state) = self.routes.iter_mut().flatten().find(found) else { return };
        let id = state.route.id;
        let (stored, duplicate) = match Ack::read_of(message, &state.route.stream) {
            Ok(Ack::Stored { sequence, duplicate }) => (Ok(sequence), duplicate),
            Err(stream) => (Err(stream), false),
            // Nothing is known: the next round asks again.
            Ok(Ack::NobodyListens) => return self.forget(id),
            Ok(Ack::Refused { code, status, description }) => {
                return state.uncertain.refused(error::refused(code, status, &description, OPERATION));
            }
            Ok(Ack::Unreadable(_)) => return,
        };
        let window = state.known.as_ref().map(|known| known.id_window).unwrap_or_default();
        let Some(Uncertain { sequence, flight, asked, spent, .. }) = state.uncertain.take(number) else {
            return;
        };
        match stored {
            Err(stream) => self.stored_elsewhere(sequence, flight, stream),
            // Of several questions one may have been stored, its answer lost, and now be the duplicate.
            Ok(_) if spent && duplicate && asked > 1 => self.fail(sequence, flight, unknown()),
            Ok(_) if spent && !duplicate => {
                let timeout = self.connection.config.publish_timeout;
                let error = if is_known_yet(&flight, window, timeout, Instant::now()) {
                    Error::new(
                        ErrorKind::Unavailable,
                        "the connection ended before it came to the server; nothing was stored",
                    )
                } else {
                    unknown()
                };
                self.fail(sequence, flight, error.with_operation(OPERATION));
            }
            Ok(offset) => {
                let topic = flight.route.topic.clone();
                let receipt = Receipt::new(topic, flight.partition, offset)
                    .with_duplicate(duplicate && flight.id.is_some());
                self.finish(sequence, flight, Ok(receipt));
            }
        }
        self.go_on(id);
    }

    /// The answer to an uncertain message itself, which came after its connection had ended.
    pub(super) fn answered_late(&mut self, number: u64, message: &async_nats::Message) {
        let found = |state: &&mut RouteState| state.uncertain.find(number).is_some();
        let Some(state) = self.routes.iter_mut().flatten().find(found) else { return };
        let id = state.route.id;
        match Ack::read_of(message, &state.route.stream) {
            Ok(ack) => {
                let Some(Uncertain { sequence, flight, .. }) = state.uncertain.take_answered(number, &ack)
                else {
                    return;
                };
                self.acknowledged(sequence, flight, ack);
            }
            Err(stream) => {
                let Some(Uncertain { sequence, flight, .. }) = state.uncertain.take(number) else { return };
                self.stored_elsewhere(sequence, flight, stream);
            }
        }
        self.go_on(id);
    }

    /// When nothing of a topic is uncertain any more, what waited for that goes first.
    pub(super) fn go_on(&mut self, id: usize) {
        let Some(state) = self.routes.get_mut(id).and_then(Option::as_mut) else { return };
        if state.uncertain.is_empty() {
            state.uncertain.round = None;
            state.uncertain.refusal = None;
            if state.known.is_some() {
                for queued in state.waiting.drain(..).rev() {
                    self.queue.push_front(queued);
                }
            } else if !state.waiting.is_empty() {
                self.look(id);
            }
        }
    }

    /// Tells who waited too long, drops what cannot come any more, and begins the next round.
    pub(super) fn expire_uncertain(&mut self, now: Instant) {
        for id in 0..self.routes.len() {
            let Some(state) = self.routes[id].as_mut() else { continue };
            if state.uncertain.round.is_some_and(|round| round <= now) {
                state.uncertain.begin();
            }
            let Uncertainty { list, remains, .. } = &mut state.uncertain;
            let all = list.iter_mut().map(|one| (one.sequence, &mut one.flight)).chain(remains.flights_mut());
            for (sequence, flight) in all {
                if flight.reply.is_some() && flight.deadline <= now {
                    super::keep(&mut self.kept, flight);
                    let result = Err(unknown().with_context("topic", &flight.route.topic));
                    super::tell(&self.keys, &mut self.freed, sequence, flight, result);
                }
            }
            let mut dead = remains.take_dead(now);
            while let Some(one) = state.uncertain.list.front()
                && one.since + LATE <= now
                && let Some(one) = state.uncertain.take(one.number)
            {
                dead.push((one.sequence, one.flight));
            }
            if !dead.is_empty() {
                for (sequence, flight) in dead {
                    self.fail(sequence, flight, unknown());
                }
                self.go_on(id);
            }
        }
    }
}

/// Whether the server still knows the id of a message if it was stored.
fn is_known_yet(flight: &Flight, window: Duration, timeout: Duration, now: Instant) -> bool {
    // It was called so long before its deadline, and sent after that.
    flight.deadline + window > now + timeout + MARGIN
}

pub(super) fn unknown() -> Error {
    Error::new(
        ErrorKind::Timeout,
        "the connection ended before the acknowledgement; the message may have been stored",
    )
    .with_operation(OPERATION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flight::tests::flight;

    fn uncertain(spent: [bool; 4]) -> Uncertainty {
        let one = |(number, spent)| {
            let (flight, since) = (flight(), Instant::now());
            Uncertain { number, sequence: 10 + number, flight, since, asked: 1, spent }
        };
        Uncertainty { list: (5..).zip(spent).map(one).collect(), asked: 4, ..Uncertainty::default() }
    }

    #[tokio::test]
    async fn p1_a_late_duplicate_of_a_spent_id_is_no_receipt() {
        let mut list = uncertain([true, false, true, false]);
        let duplicate = Ack::Stored { sequence: 77, duplicate: true };
        let stored = Ack::Stored { sequence: 77, duplicate: false };
        let refused = Ack::Refused { code: 1, status: 400, description: String::new() };
        assert!(list.take_answered(5, &duplicate).is_none(), "77 may be the void's");
        assert!(
            list.take_answered(5, &refused).is_none() && list.take_answered(5, &Ack::NobodyListens).is_none()
        );
        assert_eq!(list.take_answered(5, &stored).map(|one| one.sequence), Some(15));
        assert_eq!(list.take_answered(6, &duplicate).map(|one| one.sequence), Some(16));
        assert_eq!(list.take_answered(8, &refused).map(|one| one.sequence), Some(18));
        assert!(list.take_answered(8, &stored).is_none(), "once");
        assert_eq!((list.list.len(), list.asked), (1, 1), "of those left, one was asked for");
    }

    #[tokio::test]
    async fn p7_what_is_as_old_as_the_window_is_not_known_any_more() {
        let (flight, now, timeout) = (flight(), Instant::now(), Duration::ZERO);
        let window = Duration::from_secs(120);
        assert!(is_known_yet(&flight, window, timeout, now + Duration::from_secs(100)));
        assert!(!is_known_yet(&flight, window, timeout, now + Duration::from_secs(111)));
        assert!(!is_known_yet(&flight, Duration::from_secs(5), timeout, now), "a window of seconds");
    }
}
