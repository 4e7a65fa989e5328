//! How many runs are in progress, over all shards (G5).
//!
//! A counter, and for each shard a flag that it found no slot. A shard sets its flag **before** it looks a last time; whoever
//! gives a slot back adds it **before** he looks at the flags: so one of the two sees the other, and no wake-up is lost
//! (model-checked below: `RUSTFLAGS="--cfg ebus_loom" cargo test -p ebus-pool --lib slots`).

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
    waker: AtomicWaker,
}

impl Slots {
    /// `free` slots, shared by `shards` shards.
    pub(crate) fn new(free: usize, shards: usize) -> Self {
        let starved = || Starved { flag: AtomicBool::new(false), waker: AtomicWaker::new() };
        Self { free: AtomicUsize::new(free), shards: (0..shards).map(|_| starved()).collect() }
    }

    /// Takes a slot for `shard`. If there is none, `waker` is woken when one is given back.
    pub(crate) fn acquire(&self, shard: usize, waker: &Waker) -> bool {
        if self.try_acquire() {
            return true;
        }
        let starved = &self.shards[shard];
        #[cfg(not(ebus_loom))]
        starved.waker.register(waker);
        #[cfg(ebus_loom)]
        starved.waker.register_by_ref(waker);
        starved.flag.store(true, SeqCst);
        if self.try_acquire() {
            starved.flag.store(false, SeqCst);
            return true;
        }
        false
    }

    fn try_acquire(&self) -> bool {
        self.free.fetch_update(SeqCst, SeqCst, |free| free.checked_sub(1)).is_ok()
    }

    /// Gives slots back, and wakes the shards that found none.
    pub(crate) fn release(&self, slots: usize) {
        if slots == 0 {
            return;
        }
        self.free.fetch_add(slots, SeqCst);
        for starved in &self.shards {
            if starved.flag.swap(false, SeqCst) {
                starved.waker.wake();
            }
        }
    }

    /// Whether some shard found no slot and waits.
    pub(crate) fn anyone_starved(&self) -> bool {
        self.shards.iter().any(|starved| starved.flag.load(SeqCst))
    }
}

#[cfg(all(test, ebus_loom))]
mod tests {
    use loom::future::block_on;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// Two shards share one slot: whoever finds none is woken when it comes back, in every interleaving.
    #[test]
    fn p9_no_wake_up_is_lost() {
        loom::model(|| {
            let slots = Arc::new(Slots::new(1, 2));
            let threads: Vec<_> = (0..2)
                .map(|shard| {
                    let slots = slots.clone();
                    thread::spawn(move || {
                        block_on(std::future::poll_fn(|cx| {
                            if slots.acquire(shard, cx.waker()) {
                                std::task::Poll::Ready(())
                            } else {
                                std::task::Poll::Pending
                            }
                        }));
                        slots.release(1);
                    })
                })
                .collect();
            for thread in threads {
                thread.join().expect("a shard took its slot and gave it back");
            }
        });
    }
}
