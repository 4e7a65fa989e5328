//! The bound of what is published and not yet acknowledged, in messages and in bytes (G5).
//!
//! A place is reserved by `poll_ready`, and given back by the delivery report or by a clone that is dropped. Bytes are counted
//! from `call` on. Atomics on the path of a message; the list of those who wait is locked only when somebody waits.
//!
//! A message that was answered by its deadline keeps its place until its report comes, so that the bound holds while a broker
//! is away. When no other is left, the bound is stalled: who finds it full is not kept waiting, but refused (G9).

use std::collections::VecDeque;
#[cfg(not(ebus_loom))]
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use ebus_core::Error;
#[cfg(ebus_loom)]
use ebus_core::model::{AtomicBool, AtomicIsize, AtomicUsize, Mutex, Ordering};
#[cfg(not(ebus_loom))]
use parking_lot::Mutex;

use crate::flight::Flight;

/// Why there is no place, and waiting for one is in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// No place is given any more.
    Closed,
    /// It is full, and all that is in flight is overdue.
    Stalled,
}

#[derive(Debug)]
pub(crate) struct InFlight {
    max_messages: usize,
    max_bytes: usize,
    messages: AtomicUsize,
    bytes: AtomicUsize,
    closed: AtomicBool,
    /// Messages that were answered by their deadline and have no report yet. Below zero while a report overtakes the sweep.
    overdue: AtomicIsize,
    /// All that is in flight is overdue, as was last seen.
    stalled: AtomicBool,
    /// How many are in `waiters`: read without the lock.
    waiting: AtomicUsize,
    waiters: Mutex<Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    next_ticket: u64,
    queue: VecDeque<(u64, Waker)>,
}

/// Who waits, as `poll` knows it again.
#[derive(Debug, Default)]
pub(crate) struct Waiter(Option<u64>);

impl InFlight {
    pub(crate) fn new(max_messages: usize, max_bytes: usize) -> Self {
        Self {
            max_messages,
            max_bytes,
            messages: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            overdue: AtomicIsize::new(0),
            stalled: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            waiters: Mutex::default(),
        }
    }

    /// Takes a place if there is one.
    pub(crate) fn try_reserve(&self) -> bool {
        if self.bytes.load(Ordering::SeqCst) >= self.max_bytes {
            return false;
        }
        let step = |held| (held < self.max_messages).then_some(held + 1);
        self.messages.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step).is_ok()
    }

    /// Takes a place, or is woken when there may be one.
    pub(crate) fn poll_reserve(
        &self,
        waiter: &mut Waiter,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), NoPlace>> {
        if self.is_closed() {
            self.forget(waiter);
            return Poll::Ready(Err(NoPlace::Closed));
        }
        if self.try_reserve() {
            self.forget(waiter);
            self.wake_next();
            return Poll::Ready(Ok(()));
        }
        {
            let mut waiters = self.waiters.lock();
            let at = waiter.0.and_then(|ticket| waiters.queue.iter().position(|(other, _)| *other == ticket));
            match at {
                Some(at) => waiters.queue[at].1.clone_from(cx.waker()),
                None => {
                    let ticket = waiters.next_ticket;
                    waiters.next_ticket += 1;
                    waiters.queue.push_back((ticket, cx.waker().clone()));
                    waiter.0 = Some(ticket);
                }
            }
            self.waiting.store(waiters.queue.len(), Ordering::SeqCst);
        }
        // What was given back, or became overdue, before the waiter stood in the list has woken nobody.
        let found = if self.is_closed() {
            Err(NoPlace::Closed)
        } else if self.try_reserve() {
            Ok(())
        } else if self.is_stalled() {
            Err(NoPlace::Stalled)
        } else {
            return Poll::Pending;
        };
        self.forget(waiter);
        // It may have been woken meanwhile, for a place that it did not need.
        self.wake_next();
        Poll::Ready(found)
    }

    /// Messages that have a place.
    pub(crate) fn messages(&self) -> usize {
        self.messages.load(Ordering::SeqCst)
    }

    /// Messages that were answered by their deadline and have no report yet.
    pub(crate) fn overdue(&self) -> usize {
        usize::try_from(self.overdue.load(Ordering::SeqCst)).unwrap_or(0)
    }

    /// Whether all that is in flight is overdue.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::SeqCst)
    }

    /// A message is on its way that is not overdue.
    pub(crate) fn called(&self) {
        if self.stalled.load(Ordering::SeqCst) {
            self.stalled.store(false, Ordering::SeqCst);
        }
    }

    /// A message was answered and keeps its place.
    pub(crate) fn is_overdue(&self) {
        self.overdue.fetch_add(1, Ordering::SeqCst);
    }

    /// Nothing is in flight that is not overdue: if anything is, nobody is to wait for it.
    pub(crate) fn none_is_in_time(&self) {
        if self.overdue.load(Ordering::SeqCst) > 0 && !self.stalled.swap(true, Ordering::SeqCst) {
            self.wake_all();
        }
    }

    /// Gives back the place of a message whose report has come, and answers it.
    pub(crate) fn land(&self, flight: &Flight, result: Result<(u32, u64), Error>) {
        self.give_back(flight.bytes);
        if flight.land(result) {
            self.overdue.fetch_sub(1, Ordering::SeqCst);
            // Reports come again.
            self.stalled.store(false, Ordering::SeqCst);
        }
    }

    /// Counts the bytes of a message that has its place.
    pub(crate) fn add_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Gives a place and its bytes back.
    pub(crate) fn give_back(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        self.messages.fetch_sub(1, Ordering::SeqCst);
        self.wake_next();
    }

    /// A waiter that goes away: if it was woken, the next one has its turn.
    pub(crate) fn leave(&self, waiter: &mut Waiter) {
        if waiter.0.is_some() && !self.forget(waiter) {
            self.wake_next();
        }
    }

    /// Nobody gets a place any more; who waits is told.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake_all();
    }

    fn wake_all(&self) {
        let all = {
            let mut waiters = self.waiters.lock();
            self.waiting.store(0, Ordering::SeqCst);
            std::mem::take(&mut waiters.queue)
        };
        all.into_iter().for_each(|(_, waker)| waker.wake());
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// True when it stood in the list.
    fn forget(&self, waiter: &mut Waiter) -> bool {
        let Some(ticket) = waiter.0.take() else { return false };
        let mut waiters = self.waiters.lock();
        let before = waiters.queue.len();
        waiters.queue.retain(|(other, _)| *other != ticket);
        self.waiting.store(waiters.queue.len(), Ordering::SeqCst);
        waiters.queue.len() < before
    }

    fn wake_next(&self) {
        if self.waiting.load(Ordering::SeqCst) == 0
            || self.messages.load(Ordering::SeqCst) >= self.max_messages
            || self.bytes.load(Ordering::SeqCst) >= self.max_bytes
        {
            return;
        }
        let next = {
            let mut waiters = self.waiters.lock();
            let next = waiters.queue.pop_front();
            self.waiting.store(waiters.queue.len(), Ordering::SeqCst);
            next
        };
        if let Some((_, waker)) = next {
            waker.wake();
        }
    }
}

#[cfg(all(test, not(ebus_loom)))]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll(bound: &InFlight, waiter: &mut Waiter, count: &Arc<Count>) -> Poll<Result<(), NoPlace>> {
        let waker = Waker::from(count.clone());
        bound.poll_reserve(waiter, &mut Context::from_waker(&waker))
    }

    #[test]
    fn p5_above_the_messages_it_waits_and_is_woken() {
        let bound = InFlight::new(1, 1_000);
        let (mut first, mut second) = (Waiter::default(), Waiter::default());
        let count = Arc::new(Count::default());
        assert_eq!(poll(&bound, &mut first, &count), Poll::Ready(Ok(())));
        assert_eq!(poll(&bound, &mut second, &count), Poll::Pending);
        bound.give_back(0);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(poll(&bound, &mut second, &count), Poll::Ready(Ok(())));
    }

    #[test]
    fn p5_above_the_bytes_it_waits_and_all_that_fit_are_woken_in_turn() {
        let bound = InFlight::new(10, 100);
        let count = Arc::new(Count::default());
        let mut first = Waiter::default();
        assert_eq!(poll(&bound, &mut first, &count), Poll::Ready(Ok(())));
        bound.add_bytes(100);
        let mut waiters = [Waiter::default(), Waiter::default()];
        for waiter in &mut waiters {
            assert_eq!(poll(&bound, waiter, &count), Poll::Pending);
        }
        bound.give_back(100);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(poll(&bound, &mut waiters[0], &count), Poll::Ready(Ok(())));
        assert_eq!(count.0.load(Ordering::SeqCst), 2, "one that got its place wakes the next");
    }

    #[test]
    fn a_woken_waiter_that_goes_away_hands_its_turn_on() {
        let bound = InFlight::new(1, 100);
        let count = Arc::new(Count::default());
        assert!(bound.try_reserve());
        let mut waiters = [Waiter::default(), Waiter::default()];
        for waiter in &mut waiters {
            assert_eq!(poll(&bound, waiter, &count), Poll::Pending);
        }
        bound.give_back(0);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        bound.leave(&mut waiters[0]);
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn p9_closing_tells_all_who_wait() {
        let bound = InFlight::new(1, 100);
        let count = Arc::new(Count::default());
        assert!(bound.try_reserve());
        let mut waiter = Waiter::default();
        assert_eq!(poll(&bound, &mut waiter, &count), Poll::Pending);
        bound.close();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(poll(&bound, &mut waiter, &count), Poll::Ready(Err(NoPlace::Closed)));
    }
}

#[cfg(all(test, ebus_loom))]
mod model {
    use ebus_core::model::Arc;
    use loom::future::block_on;
    use loom::thread;

    use super::*;

    fn check(preemptions: usize, execution: impl Fn() + Send + Sync + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(preemptions);
        model.check(execution);
    }

    /// Waits for a place, and keeps it.
    fn reserve(bound: &InFlight) -> Result<(), NoPlace> {
        let mut waiter = Waiter::default();
        block_on(std::future::poll_fn(|cx| bound.poll_reserve(&mut waiter, cx)))
    }

    /// Publishers share one place: whoever finds none gets it when it comes back, in every interleaving, and it is not lost.
    fn share(publishers: usize, preemptions: usize) {
        check(preemptions, move || {
            let bound = Arc::new(InFlight::new(1, 10));
            let publish = |bound: &InFlight| {
                reserve(bound).expect("is open");
                bound.add_bytes(1);
                bound.give_back(1);
            };
            let threads: Vec<_> = (1..publishers)
                .map(|_| {
                    let bound = bound.clone();
                    thread::spawn(move || publish(&bound))
                })
                .collect();
            publish(&bound);
            threads.into_iter().for_each(|thread| thread.join().expect("it got its place and gave it back"));
            assert_eq!((bound.messages(), bound.bytes.load(Ordering::SeqCst)), (0, 0));
            assert_eq!(bound.waiting.load(Ordering::SeqCst), 0);
        });
    }

    #[test]
    fn p9_no_wake_up_is_lost() {
        share(2, 3);
    }

    #[test]
    fn p9_no_wake_up_is_lost_among_three() {
        share(3, 2);
    }

    /// One message holds all the bytes, and when it lands there is room for two that wait: the first one that found its place
    /// while it took its stand in the list did not wake the second.
    #[test]
    fn p9_who_finds_a_place_wakes_the_next_one_however_it_was_found() {
        check(2, || {
            let bound = Arc::new(InFlight::new(3, 10));
            assert!(bound.try_reserve());
            bound.add_bytes(10);
            let threads = [(); 2].map(|()| {
                let bound = bound.clone();
                // The place is kept: nobody else is woken by its return.
                thread::spawn(move || reserve(&bound).expect("is open"))
            });
            bound.give_back(10);
            threads.into_iter().for_each(|thread| thread.join().expect("it got its place"));
        });
    }

    #[test]
    fn p9_a_close_and_a_stall_reach_who_begins_to_wait() {
        check(3, || {
            let bound = Arc::new(InFlight::new(1, 10));
            assert!(bound.try_reserve());
            let waiting = {
                let bound = bound.clone();
                thread::spawn(move || reserve(&bound))
            };
            bound.close();
            assert_eq!(waiting.join().expect("it is told"), Err(NoPlace::Closed));
        });
        check(3, || {
            let bound = Arc::new(InFlight::new(1, 10));
            assert!(bound.try_reserve());
            let waiting = {
                let bound = bound.clone();
                thread::spawn(move || reserve(&bound))
            };
            bound.is_overdue();
            bound.none_is_in_time();
            assert_eq!(waiting.join().expect("it is told"), Err(NoPlace::Stalled));
        });
    }
}
