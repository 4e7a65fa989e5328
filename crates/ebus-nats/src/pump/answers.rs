//! What the server answers to what the publishing task has sent: the receipt of a message, or why there is none (G1).

use std::task::{Context, Poll};

use ebus_core::{Error, ErrorKind, Receipt};
use futures_util::StreamExt;

use super::{BATCH, OPERATION, Pump, forget, remains, uncertain};
use crate::ack::Ack;
use crate::batch::read_reply;
use crate::error;
use crate::flight::Flight;

/// What an answer is to.
#[derive(Debug, PartialEq, Eq)]
enum Of<'a> {
    /// A message by itself.
    Message(u64),
    /// A question for an uncertain message.
    Question(u64),
    /// A question for what is left of a batch.
    Remains(&'a str),
    /// A member of a batch, or its end: the batch and the position in it.
    Member(u64, u64),
}

impl<'a> Of<'a> {
    /// What stands behind the inbox in the reply subject.
    fn read(tail: &'a str, prefix: &str) -> Option<Self> {
        if let Some(number) = tail.strip_prefix(uncertain::ASKED) {
            return number.parse().ok().map(Self::Question);
        }
        if let Some(tail) = tail.strip_prefix(remains::ANSWER) {
            return Some(Self::Remains(tail));
        }
        if let Ok(number) = tail.parse() {
            return Some(Self::Message(number));
        }
        read_reply(tail, prefix).map(|(batch, position)| Self::Member(batch, position))
    }
}

impl Pump {
    pub(super) fn poll_acks(&mut self, cx: &mut Context<'_>) -> bool {
        for done in 0..BATCH {
            match self.acks.poll_next_unpin(cx) {
                Poll::Ready(Some(message)) => self.answered(&message),
                Poll::Ready(None) => {
                    self.has_ended = true;
                    return done > 0;
                }
                Poll::Pending => return done > 0,
            }
        }
        true
    }

    fn answered(&mut self, message: &async_nats::Message) {
        let tail = message.subject.get(self.inbox.len() + 1..).unwrap_or_default();
        let number = match Of::read(tail, &self.id_prefix) {
            Some(Of::Message(number)) => number,
            Some(Of::Question(number)) => return self.told(number, message),
            Some(Of::Remains(tail)) => return self.remains_answered(tail, message),
            Some(Of::Member(batch, position)) => return self.batch_answered(batch, position, message),
            None => return,
        };
        let Some((sequence, flight)) = self.take(number) else {
            return self.answered_late(number, message);
        };
        match Ack::read_of(message, &flight.route.stream) {
            Ok(ack) => {
                if let Ack::Stored { sequence: offset, duplicate: false } = ack {
                    self.note_offset(&flight, number, offset);
                }
                self.acknowledged(sequence, flight, ack);
            }
            Err(stream) => self.stored_elsewhere(sequence, flight, stream),
        }
    }

    /// The message of this number, which the server has answered: so what was sent before it has come there too.
    pub(super) fn take(&mut self, number: u64) -> Option<(u64, Box<Flight>)> {
        while let Some(flight) = self.window.pop_expired(number) {
            forget(&mut self.kept, &flight);
        }
        self.window.take(number)
    }

    pub(super) fn acknowledged(&mut self, sequence: u64, flight: Box<Flight>, ack: Ack) {
        match ack {
            Ack::Stored { sequence: offset, duplicate } => {
                let topic = flight.route.topic.clone();
                let receipt = Receipt::new(topic, flight.partition, offset)
                    .with_duplicate(duplicate && flight.id.is_some());
                self.finish(sequence, flight, Ok(receipt));
            }
            Ack::Refused { code, status, description } => {
                let error = error::refused(code, status, &description, OPERATION);
                self.fail(sequence, flight, error);
            }
            Ack::NobodyListens => {
                let id = flight.route.id;
                self.forget(id);
                let Some(state) = self.routes.get_mut(id).and_then(Option::as_mut) else { return };
                state.autopsy.push((sequence, flight));
                self.look(id);
            }
            Ack::Unreadable(why) => {
                let error =
                    Error::new(ErrorKind::Unexpected, format!("the acknowledgement cannot be read: {why}"))
                        .with_operation(OPERATION);
                self.fail(sequence, flight, error);
            }
        }
    }

    /// The topic's stream has gone or lost its subjects: nothing more goes there unseen.
    pub(super) fn stored_elsewhere(&mut self, sequence: u64, flight: Box<Flight>, stream: String) {
        self.forget(flight.route.id);
        let error = Error::new(
            ErrorKind::Unexpected,
            "the message was stored in another stream than the topic's, which takes its subject now",
        )
        .with_operation(OPERATION)
        .with_context("stream", stream);
        self.fail(sequence, flight, error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch whose id began as a question's answer was never answered: one connection of 64.
    #[test]
    fn p1_the_answer_to_a_batch_is_no_other_whatever_its_id_begins_with() {
        for first in "ABCZabcruz0189-_".chars() {
            let prefix = format!("{first}bCdEfGhIjK");
            for (tail, of) in [
                (format!("{prefix}12.500.fail.257.3.$FI"), Some(Of::Member(12, 257))),
                (format!("{}7", uncertain::ASKED), Some(Of::Question(7))),
                (format!("{}f.7", remains::ANSWER), Some(Of::Remains("f.7"))),
                ("7".to_owned(), Some(Of::Message(7))),
                ("other".to_owned(), None),
            ] {
                assert_eq!(Of::read(&tail, &prefix), of, "{tail}");
            }
        }
    }
}
