//! A message on its way: given to the publisher, not acknowledged yet.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use async_nats::HeaderMap;
use ebus_core::{Error, LogMark, Message, Receipt, Topic};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// A topic that is published to, and its number among those of the connection.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) id: usize,
    pub(crate) topic: Topic,
    pub(crate) stream: String,
    /// The stream's own limit of a message's bytes as far as it is known; `usize::MAX` until then.
    pub(crate) max_message_bytes: AtomicUsize,
}

/// A message and who waits for it. Boxed on its way: it is large, and goes through four queues.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) route: Arc<Route>,
    /// Kept until it is acknowledged: it may have to be sent again.
    pub(crate) message: Message,
    /// Taken when it is sent, with what stands in front of an id of ours.
    pub(crate) headers: HeaderMap,
    pub(crate) own: String,
    /// The caller's own id, in the headers already: such a message goes by itself, because it may have an older offset. All
    /// others get one of ours when they are sent, as an id or, in a batch that can be fenced, as a tag.
    pub(crate) id: Option<Box<str>>,
    /// The batch that it is a member of without an id: known when it is sent.
    pub(crate) seat: Option<Seat>,
    /// The hash of the key; `None` without a key.
    pub(crate) hash: Option<u32>,
    /// Where it went; known when it is sent.
    pub(crate) partition: u32,
    /// The stream it went to; known when it is sent.
    pub(crate) mark: LogMark,
    /// What the gate counts of it.
    pub(crate) bytes: usize,
    /// Headers and payload on the wire, at most.
    pub(crate) wire_bytes: usize,
    pub(crate) deadline: Instant,
    /// Who waits; nobody when the time-out was told.
    pub(crate) reply: Option<oneshot::Sender<Result<Receipt, Error>>>,
}

/// Where a message without an id is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seat {
    pub(crate) batch: u64,
    /// An offset in front of the batch.
    pub(crate) floor: u64,
}

/// A message that is not sent yet.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) sequence: u64,
    pub(crate) flight: Box<Flight>,
}

/// What is sent, found by the number that its acknowledgement carries. O(1): acknowledgements come nearly in order.
///
/// Numbers are never used again. What had its time-out stays, until the server is seen to have got a later one: until then it
/// may still be on its way.
#[derive(Debug, Default)]
pub(crate) struct Window {
    base: u64,
    flights: VecDeque<Option<(u64, Box<Flight>)>>,
    /// All below had their time-out.
    expired: u64,
    /// How many had none.
    len: usize,
}

impl Window {
    /// The number of the next one.
    pub(crate) fn next_number(&self) -> u64 {
        self.base + self.flights.len() as u64
    }

    /// Takes the message called as `sequence` in, under the next number.
    pub(crate) fn push(&mut self, sequence: u64, flight: Box<Flight>) {
        self.flights.push_back(Some((sequence, flight)));
        self.len += 1;
    }

    /// The number of the oldest one, or of the next one.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    fn index(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.base)?).ok()
    }

    /// The message of this number, if it is not done.
    pub(crate) fn find(&self, number: u64) -> Option<&Flight> {
        self.flights.get(self.index(number)?)?.as_ref().map(|(_, flight)| &**flight)
    }

    /// The message of this number, if it is not done and had no time-out.
    pub(crate) fn get(&self, number: u64) -> Option<&Flight> {
        self.find(number).filter(|_| number >= self.expired)
    }

    /// The message of this number, once.
    pub(crate) fn take(&mut self, number: u64) -> Option<(u64, Box<Flight>)> {
        let index = self.index(number)?;
        let taken = self.flights.get_mut(index)?.take()?;
        self.len -= usize::from(number >= self.expired);
        self.trim();
        Some(taken)
    }

    fn trim(&mut self) {
        while let Some(None) = self.flights.front() {
            self.flights.pop_front();
            self.base += 1;
        }
    }

    /// The oldest one that had no time-out.
    pub(crate) fn front(&self) -> Option<&Flight> {
        let from = self.index(self.expired).unwrap_or(0);
        self.flights.range(from.min(self.flights.len())..).flatten().next().map(|(_, flight)| &**flight)
    }

    /// The oldest one that had no time-out, which it has now. It stays.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<(u64, &mut Flight)> {
        let from = self.index(self.expired).unwrap_or(0);
        let index = from + self.flights.range(from.min(self.flights.len())..).position(Option::is_some)?;
        let (sequence, flight) = self.flights[index].as_mut()?;
        if flight.deadline > now {
            return None;
        }
        self.expired = self.base + index as u64 + 1;
        self.len -= 1;
        Some((*sequence, flight))
    }

    /// Takes the oldest of those in front of this number, if it had its time-out.
    pub(crate) fn pop_expired(&mut self, number: u64) -> Option<Box<Flight>> {
        if self.base >= number.min(self.expired) {
            return None;
        }
        self.pop().map(|(_, _, flight)| flight)
    }

    /// Takes the oldest one: its number, its sequence and itself.
    pub(crate) fn pop(&mut self) -> Option<(u64, u64, Box<Flight>)> {
        let number = self.base;
        let (sequence, flight) = self.flights.front_mut()?.take()?;
        self.len -= usize::from(number >= self.expired);
        self.trim();
        Some((number, sequence, flight))
    }

    /// How many wait for their answer.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn flight() -> Box<Flight> {
        let topic = Topic::new("orders").expect("legal");
        let route =
            Route { id: 0, topic, stream: "orders".into(), max_message_bytes: AtomicUsize::new(usize::MAX) };
        Box::new(Flight {
            route: Arc::new(route),
            message: Message::new("x"),
            headers: HeaderMap::new(),
            own: String::new(),
            id: None,
            seat: None,
            hash: None,
            partition: 0,
            mark: LogMark::default(),
            bytes: 1,
            wire_bytes: 1,
            deadline: Instant::now(),
            reply: Some(oneshot::channel().0),
        })
    }

    #[tokio::test]
    async fn each_is_found_once_whatever_the_order_and_numbers_are_never_used_again() {
        let mut window = Window::default();
        let sequences = [5, 6, 9, 10];
        let numbers = sequences.map(|sequence| {
            let number = window.next_number();
            window.push(sequence, flight());
            number
        });
        assert_eq!(numbers, [0, 1, 2, 3]);
        assert_eq!(window.take(1).map(|(sequence, _)| sequence), Some(6));
        assert!(window.take(1).is_none() && window.take(4).is_none());
        assert_eq!(window.pop().map(|(number, sequence, _)| (number, sequence)), Some((0, 5)));
        assert_eq!(window.pop().map(|(number, sequence, _)| (number, sequence)), Some((2, 9)));
        assert_eq!(window.len(), 1);
        assert!(window.take(3).is_some() && window.pop().is_none());
        assert_eq!(window.next_number(), 4);
        window.push(20, flight());
        assert!(window.take(3).is_none(), "too late");
        assert_eq!(window.take(4).map(|(sequence, _)| sequence), Some(20));
    }

    #[tokio::test]
    async fn p7_what_had_its_time_out_stays_until_a_later_one_is_known_to_have_come() {
        let mut window = Window::default();
        for sequence in 0..4 {
            window.push(sequence, flight());
        }
        let now = Instant::now();
        assert!(window.take(1).is_some());
        assert_eq!(window.expire(now).map(|(sequence, _)| sequence), Some(0));
        assert_eq!(window.expire(now).map(|(sequence, _)| sequence), Some(2));
        assert_eq!((window.len(), window.front().is_some()), (1, true));
        assert!(window.get(2).is_none() && window.get(3).is_some());
        assert!(window.pop_expired(0).is_none(), "nothing is in front of it");
        assert!(window.take(3).is_some());
        assert!(window.pop_expired(3).is_some() && window.pop_expired(3).is_some());
        assert!(window.pop_expired(3).is_none());
        assert_eq!((window.len(), window.base(), window.next_number()), (0, 4, 4));
        window.push(9, flight());
        assert_eq!(window.expire(Instant::now()).map(|(sequence, _)| sequence), Some(9));
        assert!(window.pop_expired(4).is_none(), "its own answer is another thing");
        assert!(window.take(4).is_some() && window.pop().is_none());
    }
}
