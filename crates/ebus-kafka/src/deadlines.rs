//! When each publish is answered at the latest (G9), without librdkafka giving anything up (G7).
//!
//! An idempotent producer that gives one message up renumbers what comes after it, and sends again under a new epoch what may
//! have been stored: the broker cannot tell that it has it. So librdkafka expires nothing. The caller is answered here, and the
//! message keeps its place in the order and in the bound of what is in flight until its delivery report comes.
//!
//! All have the same time-out, so deadlines come in the order of `call`: one queue for a connection, no timer for a message.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebus_core::{Error, ErrorKind};
use parking_lot::Mutex;

use crate::flight::Flight;
use crate::in_flight::InFlight;

/// How many are looked at before those who publish get the lock again.
const CHUNK: usize = 256;
/// So many entries may be those of messages that have landed behind one that has not.
const SLACK: usize = 1_024;

/// The messages on their way, in the order of their deadlines.
#[derive(Debug)]
pub(crate) struct Deadlines {
    timeout: Duration,
    in_flight: Arc<InFlight>,
    queue: Mutex<VecDeque<(Instant, Arc<Flight>)>>,
}

impl Deadlines {
    pub(crate) fn new(timeout: Duration, in_flight: Arc<InFlight>) -> Self {
        Self { timeout, in_flight, queue: Mutex::default() }
    }

    /// From `now` on its time runs.
    pub(crate) fn watch(&self, flight: &Arc<Flight>, now: Instant) {
        let mut queue = self.queue.lock();
        queue.push_back((now + self.timeout, flight.clone()));
        self.in_flight.called();
    }

    /// Answers what is overdue, and forgets what has landed.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut gone = Vec::new();
        loop {
            let more = {
                let mut queue = self.queue.lock();
                while gone.len() < CHUNK
                    && queue.front().is_some_and(|(at, flight)| *at <= now || flight.has_landed())
                {
                    gone.extend(queue.pop_front().map(|(_, flight)| flight));
                }
                gone.len() == CHUNK
            };
            for flight in gone.drain(..) {
                if flight.answer(|| overdue(self.timeout)) {
                    self.in_flight.is_overdue();
                }
            }
            if !more {
                break;
            }
        }
        let mut queue = self.queue.lock();
        if queue.len() > 2 * self.in_flight.messages() + SLACK {
            queue.retain(|(_, flight)| !flight.has_landed());
        }
        if queue.is_empty() {
            // Under the lock: no call comes between.
            self.in_flight.none_is_in_time();
        }
    }

    /// Answers all that are left: no report will come.
    pub(crate) fn end(&self) {
        let left = std::mem::take(&mut *self.queue.lock());
        for (_, flight) in left {
            flight.answer(|| {
                Error::new(
                    ErrorKind::Timeout,
                    "the connection ended before the broker acknowledged the message; it may have been stored",
                )
                .with_operation("publish")
            });
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.queue.lock().len()
    }
}

fn overdue(timeout: Duration) -> Error {
    Error::new(
        ErrorKind::Timeout,
        "the broker did not acknowledge the message within the delivery timeout; it may have been stored, or be stored \
         later, in its order",
    )
    .with_operation("publish")
    .with_context("delivery_timeout", format!("{timeout:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_flight::{NoPlace, Waiter};
    use std::task::{Context, Poll, Waker};

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn setup(places: usize) -> (Arc<InFlight>, Deadlines) {
        let in_flight = Arc::new(InFlight::new(places, 1_000));
        (in_flight.clone(), Deadlines::new(TIMEOUT, in_flight))
    }

    fn call(in_flight: &InFlight, deadlines: &Deadlines, now: Instant) -> Arc<Flight> {
        assert!(in_flight.try_reserve(), "a place");
        in_flight.add_bytes(1);
        let flight = Arc::new(Flight::new(1));
        deadlines.watch(&flight, now);
        flight
    }

    fn poll(in_flight: &InFlight) -> Poll<Result<(), NoPlace>> {
        let mut waiter = Waiter::default();
        let polled = in_flight.poll_reserve(&mut waiter, &mut Context::from_waker(Waker::noop()));
        in_flight.leave(&mut waiter);
        polled
    }

    #[test]
    fn g9_what_is_overdue_is_answered_in_the_order_of_call_and_keeps_its_place() {
        let (in_flight, deadlines) = setup(10);
        let start = Instant::now();
        let first = call(&in_flight, &deadlines, start);
        let second = call(&in_flight, &deadlines, start + Duration::from_secs(1));
        deadlines.sweep(start + TIMEOUT - Duration::from_millis(1));
        assert!(!first.has_landed());
        deadlines.sweep(start + TIMEOUT);
        assert!(first.has_landed() && !second.has_landed());
        assert_eq!(in_flight.messages(), 2, "librdkafka has both");
        in_flight.land(&first, Ok((0, 0)));
        assert_eq!(in_flight.messages(), 1, "the report gives the place back");
    }

    #[test]
    fn g9_a_bound_that_is_full_of_overdue_messages_refuses_and_one_that_is_not_waits() {
        let (in_flight, deadlines) = setup(2);
        let start = Instant::now();
        let first = call(&in_flight, &deadlines, start);
        let second = call(&in_flight, &deadlines, start + Duration::from_secs(1));
        deadlines.sweep(start + TIMEOUT);
        assert_eq!(poll(&in_flight), Poll::Pending, "the second may be acknowledged in time");
        deadlines.sweep(start + TIMEOUT + Duration::from_secs(1));
        assert_eq!(poll(&in_flight), Poll::Ready(Err(NoPlace::Stalled)));
        // The broker is back.
        in_flight.land(&first, Ok((0, 0)));
        assert_eq!(poll(&in_flight), Poll::Ready(Ok(())));
        assert_eq!(poll(&in_flight), Poll::Pending, "no longer stalled: it waits for its place");
        in_flight.give_back(0);
        let third = call(&in_flight, &deadlines, start + 2 * TIMEOUT);
        deadlines.sweep(start + 2 * TIMEOUT);
        assert_eq!(poll(&in_flight), Poll::Pending, "the third may be acknowledged in time");
        in_flight.land(&second, Ok((0, 1)));
        in_flight.land(&third, Ok((0, 2)));
        deadlines.sweep(start + 2 * TIMEOUT);
        assert_eq!((in_flight.messages(), deadlines.len()), (0, 0));
    }

    #[test]
    fn g9_who_waits_while_the_last_becomes_overdue_is_woken() {
        #[derive(Default)]
        struct Woken(std::sync::atomic::AtomicBool);
        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, std::sync::atomic::Ordering::SeqCst);
            }
        }
        let (in_flight, deadlines) = setup(1);
        let start = Instant::now();
        let _flight = call(&in_flight, &deadlines, start);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let (mut waiter, mut cx) = (Waiter::default(), Context::from_waker(&waker));
        assert_eq!(in_flight.poll_reserve(&mut waiter, &mut cx), Poll::Pending);
        deadlines.sweep(start + TIMEOUT);
        assert!(woken.0.load(std::sync::atomic::Ordering::SeqCst));
        assert_eq!(in_flight.poll_reserve(&mut waiter, &mut cx), Poll::Ready(Err(NoPlace::Stalled)));
    }

    #[test]
    fn g5_one_that_does_not_land_keeps_no_others_in_memory() {
        let (in_flight, deadlines) = setup(10);
        let start = Instant::now();
        let _stuck = call(&in_flight, &deadlines, start);
        for _ in 0..100 * SLACK {
            let flight = call(&in_flight, &deadlines, start);
            in_flight.land(&flight, Ok((0, 0)));
            deadlines.sweep(start);
        }
        assert!(deadlines.len() <= SLACK + 20, "{}", deadlines.len());
    }

    #[test]
    fn g9_at_the_end_all_are_answered() {
        let (in_flight, deadlines) = setup(10);
        let flight = call(&in_flight, &deadlines, Instant::now());
        deadlines.end();
        assert!(flight.has_landed());
    }
}
