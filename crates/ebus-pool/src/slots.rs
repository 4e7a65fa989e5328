//! How many runs are in progress, over all shards (G5).
//!
//! A counter, and for each shard a flag that it found no slot. A shard sets its flag **before** it looks a last time; whoever
//! gives a slot back adds it **before** he looks at the flags: so one of the two sees the other, and no wake-up is lost. A
//! shard that waits is given its slot, not just woken: it need not be quicker than the others to get it
//! (model-checked below: `cargo xtask ci loom`).

#[cfg(not(ebus_loom))]
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::Waker;

#[cfg(not(ebus_loom))]
use futures_util::task::AtomicWaker;
#[cfg(ebus_loom)]
use loom::{
    future::AtomicWaker,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

/// The slots of a pool.
#[derive(Debug)]
pub(crate) struct Slots {
    free: AtomicUsize,
    shards: Box<[Starved]>,
}

#[derive(Debug)]
struct Starved {
    flag: AtomicBool,
    /// Slots that were given to this shard and to no other.
    granted: AtomicUsize,
    waker: AtomicWaker,
}

impl Slots {
    /// `free` slots, shared by `shards` shards.
    pub(crate) fn new(free: usize, shards: usize) -> Self {
        let starved = || Starved {
            flag: AtomicBool::new(false),
            granted: AtomicUsize::new(0),
            waker: AtomicWaker::new(),
        };
        Self { free: AtomicUsize::new(free), shards: (0..shards).map(|_| starved()).collect() }
    }

    /// Takes a slot for `shard`. If there is none, `waker` is woken when one was given to it.
    pub(crate) fn acquire(&self, shard: usize, waker: &Waker) -> bool {
        let starved = &self.shards[shard];
        if take(&starved.granted) || take(&self.free) {
            return true;
        }
        #[cfg(not(ebus_loom))]
        starved.waker.register(waker);
        #[cfg(ebus_loom)]
        starved.waker.register_by_ref(waker);
        // By an exchange, as whoever gives back reads it: the model checker knows no total order of plain loads and stores.
        starved.flag.swap(true, SeqCst);
        if take(&starved.granted) || take(&self.free) {
            // One that is granted at this moment is taken next time, or given back when the shard rests.
            starved.flag.store(false, SeqCst);
            return true;
        }
        false
    }

    /// Takes what was granted to `shard` and what it found no use for.
    pub(crate) fn take_granted(&self, shard: usize) -> usize {
        let granted = &self.shards[shard].granted;
        if granted.load(SeqCst) == 0 { 0 } else { granted.swap(0, SeqCst) }
    }

    /// Gives slots of `shard` back. Shards that found none get one each before anybody else can take it, the giver last:
    /// whoever gives back a slot would otherwise take it again before the one that waits has woken (G4).
    pub(crate) fn release(&self, shard: usize, slots: usize) {
        if slots == 0 {
            return;
        }
        self.free.fetch_add(slots, SeqCst);
        while !self.grant(shard) {}
    }

    /// Hands free slots to the shards that wait. False when one was put back: somebody may have looked in vain meanwhile.
    fn grant(&self, giver: usize) -> bool {
        let (before, after) = self.shards.split_at(giver + 1);
        for starved in after.iter().chain(before) {
            if !starved.flag.fetch_or(false, SeqCst) {
                continue;
            }
            if !take(&self.free) {
                return true;
            }
            if !starved.flag.swap(false, SeqCst) {
                // It has helped itself.
                self.free.fetch_add(1, SeqCst);
                return false;
            }
            starved.granted.fetch_add(1, SeqCst);
            starved.waker.wake();
        }
        true
    }

    /// Whether another shard than this found no slot and waits.
    pub(crate) fn others_starve(&self, shard: usize) -> bool {
        self.shards.iter().enumerate().any(|(index, starved)| index != shard && starved.flag.load(SeqCst))
    }
}

fn take(slots: &AtomicUsize) -> bool {
    slots.fetch_update(SeqCst, SeqCst, |slots| slots.checked_sub(1)).is_ok()
}

#[cfg(all(test, not(ebus_loom)))]
mod tests {
    use super::*;

    #[test]
    fn p4_a_slot_that_is_given_back_is_for_the_shard_that_waits() {
        let (slots, waker) = (Slots::new(1, 2), Waker::noop());
        assert!(slots.acquire(0, waker) && !slots.others_starve(0));
        assert!(!slots.acquire(1, waker), "there is none");
        assert!(slots.others_starve(0) && !slots.others_starve(1));
        slots.release(0, 1);
        assert!(!slots.others_starve(0), "it has one");
        assert!(!slots.acquire(0, waker), "the other shard's");
        // The other shard finds no use for it.
        assert_eq!(slots.take_granted(1), 1);
        assert_eq!((slots.take_granted(1), slots.take_granted(0)), (0, 0));
        slots.release(1, 1);
        assert!(slots.acquire(0, waker));
    }
}

#[cfg(all(test, ebus_loom))]
mod model {
    use loom::future::block_on;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// Shards share one slot: whoever finds none gets one when it comes back, in every interleaving, and none is lost.
    fn share(shards: usize, preemptions: Option<usize>) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = preemptions;
        model.check(move || {
            let slots = Arc::new(Slots::new(1, shards));
            let done = Arc::new(AtomicUsize::new(0));
            let threads: Vec<_> = (1..shards)
                .map(|shard| {
                    let (slots, done) = (slots.clone(), done.clone());
                    thread::spawn(move || live(&slots, shard, &done))
                })
                .collect();
            live(&slots, 0, &done);
            for thread in threads {
                thread.join().expect("a shard took its slot and gave it back");
            }
            let granted: usize = (0..shards).map(|shard| slots.take_granted(shard)).sum();
            assert_eq!(granted + slots.free.load(SeqCst), 1);
        });
    }

    /// A shard: takes a slot, gives it back, and then rests until all have had theirs. Whenever it is woken while it rests, it
    /// gives back what was granted to it, as a shard does that has no use for it.
    fn live(slots: &Slots, shard: usize, done: &AtomicUsize) {
        let mut had = false;
        block_on(std::future::poll_fn(|cx| {
            if !had {
                if !slots.acquire(shard, cx.waker()) {
                    return std::task::Poll::Pending;
                }
                had = true;
                slots.release(shard, 1);
                if done.fetch_add(1, SeqCst) + 1 == slots.shards.len() {
                    slots.shards.iter().for_each(|starved| starved.waker.wake());
                }
            }
            slots.shards[shard].waker.register_by_ref(cx.waker());
            slots.release(shard, slots.take_granted(shard));
            if done.fetch_or(0, SeqCst) == slots.shards.len() {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        }));
    }

    #[test]
    fn p9_no_wake_up_is_lost() {
        share(2, Some(3));
    }

    #[test]
    fn p9_no_wake_up_is_lost_among_three() {
        share(3, Some(2));
    }
}
