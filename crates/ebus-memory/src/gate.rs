//! The bound of messages and bytes in flight of one connection (G5): what `poll_ready` waits at.

use std::collections::VecDeque;
#[cfg(not(ebus_loom))]
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

#[cfg(ebus_loom)]
use ebus_core::model::{AtomicUsize, Mutex, Ordering};
#[cfg(not(ebus_loom))]
use parking_lot::Mutex;

/// Counts places for messages, and bytes of what is in flight.
///
/// The counters and `queued` are a Dekker pair: who gives back first counts down and then looks for waiters, who waits
/// first queues itself and then looks at the counters. Hence `SeqCst` (model-checked below).
#[derive(Debug)]
pub(crate) struct Gate {
    max_messages: usize,
    max_bytes: usize,
    messages: AtomicUsize,
    bytes: AtomicUsize,
    queued: AtomicUsize,
    waiters: Mutex<Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    next_ticket: u64,
    queue: VecDeque<(u64, Waker)>,
}

/// A waiter's place in the queue of a gate, kept between polls.
#[derive(Debug, Default)]
pub(crate) struct Ticket(Option<u64>);

impl Gate {
    pub(crate) fn new(max_messages: usize, max_bytes: usize) -> Self {
        Self {
            max_messages,
            max_bytes,
            messages: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            waiters: Mutex::default(),
        }
    }

    fn try_enter(&self) -> bool {
        self.bytes.load(Ordering::SeqCst) <= self.max_bytes
            && self
                .messages
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
                    (n < self.max_messages).then_some(n + 1)
                })
                .is_ok()
    }

    /// Takes one place, or queues the caller.
    pub(crate) fn poll_enter(&self, ticket: &mut Ticket, cx: &mut Context<'_>) -> Poll<()> {
        if self.try_enter() {
            self.unqueue(ticket);
            return Poll::Ready(());
        }
        let mut waiters = self.waiters.lock();
        let known = ticket.0.and_then(|id| waiters.queue.iter_mut().find(|waiter| waiter.0 == id));
        match known {
            Some(waiter) => waiter.1.clone_from(cx.waker()),
            None => {
                waiters.next_ticket += 1;
                let id = waiters.next_ticket;
                waiters.queue.push_back((id, cx.waker().clone()));
                ticket.0 = Some(id);
            }
        }
        self.queued.store(waiters.queue.len(), Ordering::SeqCst);
        drop(waiters);
        if self.try_enter() {
            self.unqueue(ticket);
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Counts bytes of a message that stays in flight.
    pub(crate) fn add_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Gives places and bytes back, and wakes as many waiters as there are free places.
    pub(crate) fn leave(&self, messages: usize, bytes: usize) {
        if bytes > 0 {
            self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        }
        self.messages.fetch_sub(messages, Ordering::SeqCst);
        if self.queued.load(Ordering::SeqCst) > 0 {
            self.wake();
        }
    }

    fn wake(&self) {
        if self.bytes.load(Ordering::SeqCst) > self.max_bytes {
            return;
        }
        let free = self.max_messages.saturating_sub(self.messages.load(Ordering::SeqCst));
        self.wake_some(free);
    }

    /// Wakes all who wait, such as to see that the connection is closed.
    pub(crate) fn wake_all(&self) {
        self.wake_some(usize::MAX);
    }

    fn wake_some(&self, most: usize) {
        let mut waiters = self.waiters.lock();
        let most = most.min(waiters.queue.len());
        let woken: Vec<_> = waiters.queue.drain(..most).collect();
        self.queued.store(waiters.queue.len(), Ordering::SeqCst);
        drop(waiters);
        woken.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Takes a waiter out of the queue. True when it was there, false when it had been woken.
    fn unqueue(&self, ticket: &mut Ticket) -> bool {
        let Some(id) = ticket.0.take() else { return true };
        let mut waiters = self.waiters.lock();
        let before = waiters.queue.len();
        waiters.queue.retain(|waiter| waiter.0 != id);
        self.queued.store(waiters.queue.len(), Ordering::SeqCst);
        waiters.queue.len() < before
    }

    /// A waiter that goes away: if it had been woken, another one is woken in its place.
    pub(crate) fn give_up(&self, ticket: &mut Ticket) {
        if !self.unqueue(ticket) {
            self.wake();
        }
    }

    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> (usize, usize) {
        (self.messages.load(Ordering::SeqCst), self.bytes.load(Ordering::SeqCst))
    }
}

#[cfg(all(test, not(ebus_loom)))]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll(gate: &Gate, ticket: &mut Ticket, woken: &Arc<Woken>) -> bool {
        gate.poll_enter(ticket, &mut Context::from_waker(&Waker::from(woken.clone()))).is_ready()
    }

    #[test]
    fn p5_the_bound_holds_and_one_place_wakes_one() {
        let gate = Gate::new(1, 10);
        let (one, two) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
        let (mut first, mut second, mut third) = <(Ticket, Ticket, Ticket)>::default();
        assert!(poll(&gate, &mut first, &one));
        assert!(!poll(&gate, &mut second, &one));
        assert!(!poll(&gate, &mut second, &one), "queued once");
        assert!(!poll(&gate, &mut third, &two));
        gate.leave(1, 0);
        assert_eq!((one.0.load(Ordering::SeqCst), two.0.load(Ordering::SeqCst)), (1, 0));
        gate.give_up(&mut second);
        assert_eq!(two.0.load(Ordering::SeqCst), 1, "the wake that one did not use goes on");
        assert!(poll(&gate, &mut third, &two));
    }

    #[test]
    fn p5_bytes_above_their_bound_hold_the_next_back() {
        let gate = Gate::new(10, 10);
        let woken = Arc::new(Woken::default());
        let mut ticket = Ticket::default();
        assert!(poll(&gate, &mut ticket, &woken));
        gate.add_bytes(11);
        assert!(!poll(&gate, &mut ticket, &woken));
        gate.leave(1, 11);
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert!(poll(&gate, &mut ticket, &woken));
        assert_eq!(gate.in_flight(), (1, 0));
    }
}

#[cfg(all(test, ebus_loom))]
mod model {
    use ebus_core::model::Arc;
    use loom::future::block_on;
    use loom::thread;

    use super::*;

    /// Publishers share the places: whoever finds none gets one when it comes back, in every interleaving, and none is lost.
    fn share(publishers: usize, bytes: usize, preemptions: usize) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(preemptions);
        model.check(move || {
            let gate = Arc::new(Gate::new(1, 10));
            let threads: Vec<_> = (1..publishers)
                .map(|_| {
                    let gate = gate.clone();
                    thread::spawn(move || publish(&gate, bytes))
                })
                .collect();
            publish(&gate, bytes);
            for thread in threads {
                thread.join().expect("it got its place and gave it back");
            }
            assert_eq!((gate.messages.load(Ordering::SeqCst), gate.bytes.load(Ordering::SeqCst)), (0, 0));
            assert_eq!(gate.queued.load(Ordering::SeqCst), 0);
        });
    }

    /// Waits for a place, publishes, and is answered.
    fn publish(gate: &Gate, bytes: usize) {
        let mut ticket = Ticket::default();
        block_on(std::future::poll_fn(|cx| gate.poll_enter(&mut ticket, cx)));
        gate.add_bytes(bytes);
        gate.leave(1, bytes);
        gate.give_up(&mut ticket);
    }

    #[test]
    fn p9_no_wake_up_is_lost() {
        share(2, 1, 3);
    }

    #[test]
    fn p9_no_wake_up_is_lost_among_three() {
        share(3, 1, 2);
    }

    /// There are places, and one message holds all the bytes.
    #[test]
    fn p9_no_wake_up_is_lost_for_want_of_bytes() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let gate = Arc::new(Gate::new(3, 10));
            assert!(gate.try_enter());
            gate.add_bytes(11);
            let threads = [(); 2].map(|()| {
                let gate = gate.clone();
                thread::spawn(move || {
                    let mut ticket = Ticket::default();
                    // The place is kept: nobody else is woken by its return.
                    block_on(std::future::poll_fn(|cx| gate.poll_enter(&mut ticket, cx)));
                })
            });
            gate.leave(1, 11);
            threads.into_iter().for_each(|thread| thread.join().expect("it got its place"));
        });
    }

    /// One that was woken goes away: its turn is the next one's.
    #[test]
    fn p9_a_waiter_that_is_dropped_hands_its_turn_on() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let gate = Arc::new(Gate::new(1, 10));
            assert!(gate.try_enter());
            let waiting = {
                let gate = gate.clone();
                thread::spawn(move || publish(&gate, 1))
            };
            let dropped = {
                let gate = gate.clone();
                thread::spawn(move || {
                    let mut ticket = Ticket::default();
                    let entered =
                        block_on(std::future::poll_fn(|cx| Poll::Ready(gate.poll_enter(&mut ticket, cx))));
                    if entered.is_ready() {
                        gate.leave(1, 0);
                    }
                    gate.give_up(&mut ticket);
                })
            };
            gate.leave(1, 0);
            waiting.join().expect("it got its place");
            dropped.join().expect("it went away");
        });
    }
}
