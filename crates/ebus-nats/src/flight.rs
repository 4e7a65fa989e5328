//! A message on its way: given to the publisher, not acknowledged yet.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use async_nats::HeaderMap;
use ebus_core::{Error, Message, Receipt, Topic};
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
    /// Kept until it is acknowledged, to find it again in the stream.
    pub(crate) message: Message,
    /// Taken when it is sent.
    pub(crate) headers: HeaderMap,
    /// Whether the server looks at an id: such a message goes by itself, because it may have an older offset.
    pub(crate) has_id: bool,
    /// The hash of the key; `None` without a key.
    pub(crate) hash: Option<u32>,
    /// Where it went; known when it is sent.
    pub(crate) partition: u32,
    /// What the gate counts of it.
    pub(crate) bytes: usize,
    pub(crate) deadline: Instant,
    pub(crate) reply: oneshot::Sender<Result<Receipt, Error>>,
}

/// A message that is not sent yet.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) sequence: u64,
    pub(crate) flight: Box<Flight>,
}

/// What is sent, found by the number that its acknowledgement carries. O(1): acknowledgements come nearly in order.
///
/// Numbers are never used again, so that an acknowledgement that comes after its time-out is nobody's.
#[derive(Debug, Default)]
pub(crate) struct Window {
    base: u64,
    flights: VecDeque<Option<(u64, Box<Flight>)>>,
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

    /// The number of the oldest one that is not done, or of the next one.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// The message of this number, if it is not done.
    pub(crate) fn get(&self, number: u64) -> Option<&Flight> {
        let index = usize::try_from(number.checked_sub(self.base)?).ok()?;
        self.flights.get(index)?.as_ref().map(|(_, flight)| &**flight)
    }

    /// The message of this number, once.
    pub(crate) fn take(&mut self, number: u64) -> Option<(u64, Box<Flight>)> {
        let index = usize::try_from(number.checked_sub(self.base)?).ok()?;
        let taken = self.flights.get_mut(index)?.take()?;
        self.len -= 1;
        self.trim();
        Some(taken)
    }

    fn trim(&mut self) {
        while let Some(None) = self.flights.front() {
            self.flights.pop_front();
            self.base += 1;
        }
    }

    /// The oldest one.
    pub(crate) fn front(&self) -> Option<&Flight> {
        self.flights.front().and_then(Option::as_ref).map(|(_, flight)| &**flight)
    }

    /// Takes the oldest one.
    pub(crate) fn pop(&mut self) -> Option<(u64, Box<Flight>)> {
        let popped = self.flights.front_mut()?.take()?;
        self.len -= 1;
        self.trim();
        Some(popped)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight() -> Box<Flight> {
        let topic = Topic::new("orders").expect("legal");
        let route =
            Route { id: 0, topic, stream: "orders".into(), max_message_bytes: AtomicUsize::new(usize::MAX) };
        Box::new(Flight {
            route: Arc::new(route),
            message: Message::new("x"),
            headers: HeaderMap::new(),
            has_id: false,
            hash: None,
            partition: 0,
            bytes: 1,
            deadline: Instant::now(),
            reply: oneshot::channel().0,
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
        assert_eq!(window.pop().map(|(sequence, _)| sequence), Some(5));
        assert_eq!(window.pop().map(|(sequence, _)| sequence), Some(9));
        assert_eq!(window.len(), 1);
        assert!(window.take(3).is_some() && window.pop().is_none());
        assert_eq!(window.next_number(), 4);
        window.push(20, flight());
        assert!(window.take(3).is_none(), "too late");
        assert_eq!(window.take(4).map(|(sequence, _)| sequence), Some(20));
    }
}
