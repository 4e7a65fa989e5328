//! The bound of what is published and not acknowledged: messages and bytes (G5).

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use ebus_core::Error;
use parking_lot::Mutex;

/// The bound that all publishers of a connection share.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    max_bytes: usize,
}

#[derive(Debug)]
struct State {
    /// Places left.
    free: usize,
    /// Bytes in flight.
    bytes: usize,
    /// Who waits, in order; the number tells them apart.
    waiting: VecDeque<(u64, Waker)>,
    next_id: u64,
    closed: bool,
}

impl State {
    fn is_open(&self, max_bytes: usize) -> bool {
        self.free > 0 && self.bytes < max_bytes
    }
}

impl Gate {
    pub(crate) fn new(max_messages: usize, max_bytes: usize) -> Self {
        let state =
            State { free: max_messages, bytes: 0, waiting: VecDeque::new(), next_id: 0, closed: false };
        Self { state: Mutex::new(state), max_bytes }
    }

    /// Takes a place, or waits for one. `ticket` is the waiter's own; give it up by [`leave`](Self::leave).
    pub(crate) fn poll_enter(
        &self,
        ticket: &mut Option<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        let mut state = self.state.lock();
        if state.closed {
            return Poll::Ready(Err(Error::closed("publish")));
        }
        if state.is_open(self.max_bytes) {
            state.free -= 1;
            if let Some(id) = ticket.take() {
                state.waiting.retain(|(other, _)| *other != id);
            }
            return Poll::Ready(Ok(()));
        }
        let id = *ticket.get_or_insert_with(|| {
            state.next_id += 1;
            state.next_id
        });
        match state.waiting.iter_mut().find(|(other, _)| *other == id) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => state.waiting.push_back((id, cx.waker().clone())),
        }
        Poll::Pending
    }

    /// Stops waiting. A call that woke this waiter goes to the next one.
    pub(crate) fn leave(&self, ticket: Option<u64>) {
        let Some(id) = ticket else { return };
        let mut state = self.state.lock();
        let before = state.waiting.len();
        state.waiting.retain(|(other, _)| *other != id);
        let was_woken = before == state.waiting.len();
        let next = if was_woken && state.is_open(self.max_bytes) { state.waiting.pop_front() } else { None };
        drop(state);
        if let Some((_, waker)) = next {
            waker.wake();
        }
    }

    /// Counts the bytes of a message whose place was taken before.
    pub(crate) fn carry(&self, bytes: usize) {
        self.state.lock().bytes += bytes;
    }

    /// Gives places and bytes back.
    pub(crate) fn exit(&self, messages: usize, bytes: usize) {
        let mut state = self.state.lock();
        state.free += messages;
        state.bytes -= bytes;
        let mut woken = Vec::new();
        if state.is_open(self.max_bytes) {
            let count = state.free.min(state.waiting.len());
            woken.extend(state.waiting.drain(..count));
        }
        drop(state);
        for (_, waker) in woken {
            waker.wake();
        }
    }

    /// Lets nobody in any more. False when it was closed before.
    pub(crate) fn close(&self) -> bool {
        let mut state = self.state.lock();
        let first = !std::mem::replace(&mut state.closed, true);
        let woken = std::mem::take(&mut state.waiting);
        drop(state);
        for (_, waker) in woken {
            waker.wake();
        }
        first
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn waiter() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (count.clone(), Waker::from(count))
    }

    #[test]
    fn p5_messages_and_bytes_are_bounded_and_what_is_given_back_wakes() {
        let gate = Gate::new(2, 10);
        let (woken, waker) = waiter();
        let cx = &mut Context::from_waker(&waker);
        let mut ticket = None;
        assert!(gate.poll_enter(&mut ticket, cx).is_ready());
        gate.carry(10);
        assert!(gate.poll_enter(&mut ticket, cx).is_pending(), "bytes");
        gate.exit(1, 10);
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert!(gate.poll_enter(&mut ticket, cx).is_ready());
        assert!(gate.poll_enter(&mut ticket, cx).is_ready());
        assert!(gate.poll_enter(&mut ticket, cx).is_pending(), "messages");
    }

    #[test]
    fn p5_a_dropped_waiter_passes_its_wake_on() {
        let gate = Gate::new(1, 10);
        let (first_woken, first) = waiter();
        let (second_woken, second) = waiter();
        let (mut holder, mut one, mut two) = (None, None, None);
        assert!(gate.poll_enter(&mut holder, &mut Context::from_waker(&first)).is_ready());
        assert!(gate.poll_enter(&mut one, &mut Context::from_waker(&first)).is_pending());
        assert!(gate.poll_enter(&mut two, &mut Context::from_waker(&second)).is_pending());
        gate.exit(1, 0);
        assert_eq!((first_woken.0.load(Ordering::SeqCst), second_woken.0.load(Ordering::SeqCst)), (1, 0));
        gate.leave(one);
        assert_eq!(second_woken.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn i02_closed_says_so_to_those_who_wait_too() {
        let gate = Gate::new(1, 10);
        let (woken, waker) = waiter();
        let cx = &mut Context::from_waker(&waker);
        let (mut one, mut two) = (None, None);
        assert!(gate.poll_enter(&mut one, cx).is_ready());
        assert!(gate.poll_enter(&mut two, cx).is_pending());
        assert!(gate.close() && !gate.close());
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert!(matches!(gate.poll_enter(&mut two, cx), Poll::Ready(Err(_))));
    }
}
