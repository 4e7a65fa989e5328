//! What a connection that ended leaves of its batches is made certain without ids (G1, G7).
//!
//! A member of a batch that can be fenced has no id: the server does not have to know 256 of them to refuse what comes late, only
//! the batch. Its first message is sent on the condition that its *fence* is empty, a subject of the stream that nothing but
//! this is ever published to. When the connection has ended, on the next one, in front of all else of the topic and each step when
//! the one before is answered:
//!
//! 1. Something is published to the fence. From then on the batch cannot begin.
//! 2. The batch is ended, by its id. It was open, and is not any more, or the server knows no such batch. From then on a member that
//!    comes is one of a batch that the server does not know, and is refused.
//! 3. Something is published once more, for its offset: above it nothing of these batches will ever be.
//! 4. The stream is read up to there. Who is found has his place, who is not was not stored.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::task::Context;

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::message::OutboundMessage;
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use ebus_core::{Error, ErrorKind, Receipt};
use futures_util::Sink;
use tokio::time::Instant;

use super::uncertain::{LATE, unknown};
use super::{OPERATION, Pump};
use crate::ack::Ack;
use crate::batch::{self, Said};
use crate::flight::{Flight, Seat};
use crate::place::{self, Wanted};
use crate::{convert, error, names};

/// What the answers have in front: no id of a batch begins like it, which has no dot.
pub(super) const ANSWER: &str = "r.";

/// "Batch publish is disabled."
const DISABLED: u64 = 10_205;
/// "Batch publish ID unknown."
const UNKNOWN: u64 = 10_208;

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// That this batch does not begin.
    Fence(u64),
    /// That this batch ends.
    End(u64),
    /// For an offset behind all of them.
    Bound,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Loose,
    Fenced,
    Ended,
}

#[derive(Debug)]
struct Remain {
    batch: u64,
    /// An offset in front of it.
    floor: u64,
    /// When its connection was seen to have ended.
    since: Instant,
    step: Step,
    /// The next step was asked for in this round.
    asked: bool,
}

/// Those of a topic.
#[derive(Debug, Default)]
pub(super) struct Remains {
    batches: Vec<Remain>,
    /// Their members by number.
    members: BTreeMap<u64, (u64, Box<Flight>)>,
    /// The bound was asked for in this round.
    bound_asked: bool,
    /// The batches that the stream is read for.
    reading: Vec<u64>,
}

impl Remains {
    /// A member of a batch of a connection that was seen to have ended at that time.
    pub(super) fn push(
        &mut self,
        number: u64,
        sequence: u64,
        flight: Box<Flight>,
        seat: Seat,
        since: Instant,
    ) {
        let Seat { batch, floor } = seat;
        if !self.batches.iter().any(|one| one.batch == batch) {
            self.batches.push(Remain { batch, floor, since, step: Step::Loose, asked: false });
        }
        self.members.insert(number, (sequence, flight));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Asks for all of them from now on.
    pub(super) fn begin(&mut self) {
        self.bound_asked = false;
        for one in &mut self.batches {
            one.asked = false;
        }
    }

    /// What has to be asked next in this round.
    pub(super) fn next(&self) -> Option<Ask> {
        let next = self.batches.iter().find_map(|one| match one.step {
            Step::Loose if !one.asked => Some(Ask::Fence(one.batch)),
            Step::Fenced if !one.asked => Some(Ask::End(one.batch)),
            _ => None,
        });
        let are_ended = !self.is_empty() && self.batches.iter().all(|one| one.step == Step::Ended);
        next.or((are_ended && !self.bound_asked && self.reading.is_empty()).then_some(Ask::Bound))
    }

    fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Fence(batch) | Ask::End(batch) => {
                for one in self.batches.iter_mut().filter(|one| one.batch == batch) {
                    one.asked = true;
                }
            }
            Ask::Bound => self.bound_asked = true,
        }
    }

    /// This batch has made this step. False when it was not to make it.
    fn step(&mut self, batch: u64, from: Step, to: Step) -> bool {
        let Some(one) = self.batches.iter_mut().find(|one| one.batch == batch && one.step == from) else {
            return false;
        };
        (one.step, one.asked) = (to, false);
        true
    }

    /// Begins to look for the members of batches that have ended: an offset in front of them, and their numbers.
    fn read(&mut self) -> Option<(u64, Vec<u64>)> {
        if !self.reading.is_empty()
            || self.is_empty()
            || self.batches.iter().any(|one| one.step != Step::Ended)
        {
            return None;
        }
        self.reading = self.batches.iter().map(|one| one.batch).collect();
        let floor = self.batches.iter().map(|one| one.floor).min()?;
        Some((floor, self.members.keys().copied().collect()))
    }

    /// The members of these batches were looked for.
    fn were_read(&mut self, batches: &[u64]) {
        self.batches.retain(|one| !batches.contains(&one.batch));
        if self.reading == batches {
            self.reading.clear();
        }
    }

    /// Takes the members of batches of which nothing can come any more, known or not.
    pub(super) fn take_dead(&mut self, now: Instant) -> Vec<(u64, Box<Flight>)> {
        if self.batches.iter().all(|one| one.since + LATE > now) {
            return Vec::new();
        }
        let (dead, left) =
            std::mem::take(&mut self.batches).into_iter().partition(|one| one.since + LATE <= now);
        let dead: Vec<Remain> = dead;
        self.batches = left;
        let is_dead =
            |flight: &Flight| flight.seat.is_some_and(|seat| dead.iter().any(|one| one.batch == seat.batch));
        let (taken, left) =
            std::mem::take(&mut self.members).into_iter().partition(|(_, (_, flight))| is_dead(flight));
        let taken: BTreeMap<u64, (u64, Box<Flight>)> = taken;
        self.members = left;
        taken.into_values().collect()
    }

    /// What has to be done next at a time.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        // Every message has the same time.
        let untold = self.members.values().find(|(_, flight)| flight.reply.is_some());
        let untold = untold.map(|(_, flight)| flight.deadline);
        let dead = self.batches.iter().map(|one| one.since + LATE).min();
        untold.into_iter().chain(dead).min()
    }

    pub(super) fn is_waited_for(&self) -> bool {
        self.members.values().any(|(_, flight)| flight.reply.is_some())
    }

    pub(super) fn flights_mut(&mut self) -> impl Iterator<Item = (u64, &mut Box<Flight>)> {
        self.members.values_mut().map(|(sequence, flight)| (*sequence, flight))
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = (u64, Box<Flight>)> + use<> {
        std::mem::take(self).members.into_values()
    }
}

/// What an answer is to, by what stands behind [`ANSWER`] in its subject.
#[derive(Debug, PartialEq, Eq)]
enum Of {
    Fence(u64),
    End(u64),
    /// And on which connection it was asked.
    Bound(u64),
}

impl Of {
    fn read(tail: &str, prefix: &str) -> Option<Self> {
        let (what, of) = tail.split_once('.')?;
        match what {
            "f" => of.parse().ok().map(Self::Fence),
            "b" => of.parse().ok().map(Self::Bound),
            "e" => batch::read_reply(of, prefix).map(|(batch, _)| Self::End(batch)),
            _ => None,
        }
    }
}

impl Pump {
    /// Asks for what is next, if the client has room. `None` if it has none.
    pub(super) fn poll_remains(&mut self, id: usize, cx: &mut Context<'_>) -> Option<bool> {
        let mut progress = false;
        while let Some(state) = self.state(id)
            && let Some(ask) = state.uncertain.remains.next()
        {
            let Some(known) = &state.known else {
                if state.uncertain.needs_round() {
                    self.begin_round(id);
                    self.look(id);
                }
                break;
            };
            let mark = known.mark;
            if state.uncertain.remains.members.values().any(|(_, flight)| flight.mark != mark) {
                // What was for a stream that is gone is not for the one that has its name now.
                tracing::warn!(topic = %state.route.topic, "batches of a connection that ended cannot be made certain");
                for (sequence, flight) in state.uncertain.remains.drain() {
                    self.fail(sequence, flight, unknown());
                }
                self.go_on(id);
                break;
            }
            if !self.poll_room(cx) {
                return None;
            }
            self.ask(id, ask);
            progress = true;
        }
        Some(progress)
    }

    fn ask(&mut self, id: usize, ask: Ask) {
        let (inbox, prefix, generation) = (&self.inbox, &self.id_prefix, self.generation);
        let Some(state) = self.routes.get_mut(id).and_then(Option::as_mut) else { return };
        let Some(known) = &state.known else { return };
        let topic = &state.route.topic;
        let fence = |batch| Subject::from(names::fence(topic, format_args!("{prefix}{batch}")));
        let (subject, reply, headers) = match ask {
            Ask::Fence(batch) => {
                // Once is enough, however often it is asked.
                let mut headers = HeaderMap::new();
                headers.insert(NATS_MESSAGE_ID, format!("Ebus-Fence {prefix}{batch}"));
                (fence(batch), format!("{inbox}.{ANSWER}f.{batch}"), Some(headers))
            }
            Ask::End(batch) => {
                let reply = batch::end_reply(&format!("{inbox}.{ANSWER}e"), prefix, batch);
                (known.subjects[0].clone(), reply, None)
            }
            Ask::Bound => {
                let Some(one) = state.uncertain.remains.batches.first() else { return };
                (fence(one.batch), format!("{inbox}.{ANSWER}b.{generation}"), None)
            }
        };
        state.uncertain.remains.asked(ask);
        self.unwritten += super::FRAME;
        let message =
            OutboundMessage { subject, reply: Some(Subject::from(reply)), payload: Bytes::new(), headers };
        if let Err(why) = Pin::new(&mut self.sink).start_send(message) {
            tracing::debug!(%why, "a question for what is left of a batch was not sent");
        }
    }

    /// The answer to a question.
    pub(super) fn remains_answered(&mut self, tail: &str, message: &async_nats::Message) {
        let Some(of) = Of::read(tail, &self.id_prefix) else { return };
        let generation = self.generation;
        for id in 0..self.routes.len() {
            let Some(state) = self.routes[id].as_mut() else { continue };
            let remains = &mut state.uncertain.remains;
            let is_its = |batch: &u64| remains.batches.iter().any(|one| one.batch == *batch);
            let is_it = match &of {
                Of::Fence(batch) | Of::End(batch) => is_its(batch),
                Of::Bound(asked) => *asked == generation && remains.bound_asked,
            };
            if !is_it {
                continue;
            }
            match (&of, Ack::read_of(message, &state.route.stream)) {
                (Of::Fence(batch), Ok(Ack::Stored { .. })) => {
                    remains.step(*batch, Step::Loose, Step::Fenced);
                }
                (Of::Bound(_), Ok(Ack::Stored { sequence, .. })) => self.look_for_remains(id, sequence),
                (Of::End(batch), ack) => {
                    let has_ended = match Said::read(&message.payload) {
                        Said::Ended { .. } => true,
                        _ => matches!(ack, Ok(Ack::Refused { code: UNKNOWN | DISABLED, .. })),
                    };
                    match ack {
                        _ if has_ended => {
                            remains.step(*batch, Step::Fenced, Step::Ended);
                        }
                        Ok(Ack::NobodyListens) => self.forget(id),
                        Ok(Ack::Refused { code, status, description }) => {
                            state.uncertain.refused(error::refused(code, status, &description, OPERATION));
                        }
                        // It goes on, or it has a gap and its end is still to come.
                        _ => {}
                    }
                }
                // Nothing is known: the next round asks again.
                (_, Ok(Ack::NobodyListens) | Err(_)) => self.forget(id),
                (_, Ok(Ack::Refused { code, status, description })) => {
                    state.uncertain.refused(error::refused(code, status, &description, OPERATION));
                }
                (_, Ok(Ack::Unreadable(_))) => {}
            }
            return;
        }
    }

    /// Reads which members are stored, all in front of that offset.
    fn look_for_remains(&mut self, id: usize, bound: u64) {
        let (prefix, connection) = (&self.id_prefix, &self.connection);
        let Some(state) = self.routes.get_mut(id).and_then(Option::as_mut) else { return };
        let remains = &mut state.uncertain.remains;
        let Some((floor, numbers)) = remains.read() else { return };
        let own_id = |number: u64| {
            let (_, flight) = remains.members.get(&number)?;
            Some((convert::own_id(&flight.message, prefix, number), number))
        };
        let ids: HashMap<String, u64> = numbers.into_iter().filter_map(own_id).collect();
        let batches = remains.reading.clone();
        let wanted = Wanted {
            connection: connection.clone(),
            stream: state.route.stream.clone(),
            name: format!("{prefix}r{}", batches.first().copied().unwrap_or_default()),
            after: floor,
            last: bound,
            ids,
        };
        self.places.push(Box::pin(async move { (Some((id, batches)), place::find(wanted).await) }));
    }

    /// What is left of these batches of a route was looked for.
    pub(super) fn remains_placed(&mut self, id: usize, batches: &[u64], found: place::Found) {
        for (number, offset) in found.places {
            let Some(state) = self.state(id) else { return };
            let Some((sequence, flight)) = state.uncertain.remains.members.remove(&number) else { continue };
            match offset {
                Some(offset) => {
                    let receipt = Receipt::new(flight.route.topic.clone(), flight.partition, offset);
                    self.finish(sequence, flight, Ok(receipt));
                }
                None if found.is_complete => {
                    let why = "the connection ended before it came to the server; nothing was stored";
                    let error = Error::new(ErrorKind::Unavailable, why);
                    self.fail(sequence, flight, error.with_operation(OPERATION));
                }
                None => self.fail(sequence, flight, unknown()),
            }
        }
        if let Some(state) = self.state(id) {
            state.uncertain.remains.were_read(batches);
        }
        self.go_on(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flight::tests::flight;

    fn remains(batches: &[u64]) -> Remains {
        let mut remains = Remains::default();
        for (number, batch) in (10..).zip(batches) {
            let seat = Seat { batch: *batch, floor: 100 + batch };
            let mut flight = flight();
            flight.seat = Some(seat);
            remains.push(number, number, flight, seat, Instant::now());
        }
        remains
    }

    /// An end that is sent before its batch is fenced leaves it to begin behind that.
    #[tokio::test]
    async fn p7_a_batch_is_fenced_before_it_is_ended_and_ended_before_it_is_read() {
        let mut remains = remains(&[1, 1, 2]);
        let mut asked = Vec::new();
        while let Some(ask) = remains.next() {
            remains.asked(ask);
            asked.push(ask);
        }
        assert_eq!(asked, [Ask::Fence(1), Ask::Fence(2)]);
        assert!(remains.read().is_none() && !remains.step(1, Step::Fenced, Step::Ended));
        assert!(remains.step(1, Step::Loose, Step::Fenced));
        assert_eq!(remains.next(), Some(Ask::End(1)));
        remains.asked(Ask::End(1));
        assert!(remains.step(1, Step::Fenced, Step::Ended) && !remains.step(1, Step::Loose, Step::Fenced));
        assert_eq!(remains.next(), None, "the other one is not fenced");
        remains.begin();
        assert_eq!(remains.next(), Some(Ask::Fence(2)), "asked again");
        assert!(remains.step(2, Step::Loose, Step::Fenced) && remains.read().is_none());
        assert!(remains.step(2, Step::Fenced, Step::Ended));
        assert_eq!(remains.next(), Some(Ask::Bound));
        remains.asked(Ask::Bound);
        assert_eq!(remains.next(), None);
        assert_eq!(remains.read(), Some((101, vec![10, 11, 12])));
        assert_eq!(remains.next(), None, "it is read for them");
    }

    /// A connection that ends while the stream is read leaves more, which that does not look for.
    #[tokio::test]
    async fn p1_what_comes_while_the_stream_is_read_is_looked_for_by_itself() {
        let mut remains = remains(&[1]);
        assert!(remains.step(1, Step::Loose, Step::Fenced) && remains.step(1, Step::Fenced, Step::Ended));
        assert_eq!(remains.read(), Some((101, vec![10])));
        let seat = Seat { batch: 2, floor: 300 };
        remains.push(20, 20, flight(), seat, Instant::now());
        assert_eq!(remains.next(), Some(Ask::Fence(2)));
        assert!(remains.step(2, Step::Loose, Step::Fenced) && remains.step(2, Step::Fenced, Step::Ended));
        assert_eq!((remains.next(), remains.read()), (None, None), "one after the other");
        remains.members.remove(&10);
        remains.were_read(&[1]);
        remains.begin();
        assert_eq!(remains.next(), Some(Ask::Bound));
        assert_eq!(remains.read(), Some((300, vec![20])));
        remains.members.clear();
        remains.were_read(&[1]);
        assert!(!remains.is_empty(), "that was the one before");
        remains.were_read(&[2]);
        assert!(remains.is_empty() && remains.next().is_none());
    }

    #[tokio::test]
    async fn p9_what_cannot_come_any_more_is_given_up_by_batch() {
        let mut remains = remains(&[1, 2, 2]);
        let now = Instant::now();
        remains.batches[1].since = now + LATE;
        assert!(remains.take_dead(now).is_empty());
        let dead: Vec<u64> = remains.take_dead(now + LATE).iter().map(|(sequence, _)| *sequence).collect();
        assert_eq!(dead, [10]);
        assert!(!remains.is_empty() && remains.is_waited_for());
        assert_eq!(remains.drain().count(), 2);
        assert!(remains.is_empty() && !remains.is_waited_for());
    }

    #[test]
    fn answers_say_what_they_are_to() {
        let read = |tail: &str| Of::read(tail, "Ab");
        assert_eq!(read("f.7"), Some(Of::Fence(7)));
        assert_eq!(read("b.3"), Some(Of::Bound(3)));
        let end = batch::end_reply("e", "Ab", 7);
        assert_eq!(read(&end), Some(Of::End(7)));
        assert_eq!(Of::read(&end, "Cd"), None, "another's");
        assert_eq!(read("7"), None);
    }
}
