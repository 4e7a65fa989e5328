//! For the model checker only (`--cfg ebus_loom`): what stands in for std's atomics and parking_lot's lock where all of a hand-off
//! is sequentially consistent.
//!
//! loom knows no total order of `SeqCst` loads and stores, and so finds executions that cannot be. Where **all** that is shared is
//! `SeqCst`, a load that reads the last value and a store that follows it are the same as what the language promises: both are
//! made by an exchange here. What is weaker than `SeqCst` is not modelled, and refused.

use loom::sync::atomic;
pub use loom::sync::atomic::Ordering;
pub use loom::sync::{Arc, MutexGuard};

/// A lock that hands out its guard, as parking_lot's does.
#[derive(Debug, Default)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// Locks.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("a model that panics has ended")
    }
}

fn only(order: Ordering) {
    assert_eq!(order, Ordering::SeqCst, "weaker than what is modelled");
}

macro_rules! atomic {
    ($name:ident, $value:ty, $same:ident($neutral:expr)) => {
        /// As in std, `SeqCst` only.
        #[derive(Debug, Default)]
        pub struct $name(atomic::$name);

        impl $name {
            /// With this value.
            pub fn new(value: $value) -> Self {
                Self(atomic::$name::new(value))
            }

            /// Loads.
            pub fn load(&self, order: Ordering) -> $value {
                only(order);
                self.0.$same($neutral, order)
            }

            /// Stores.
            pub fn store(&self, value: $value, order: Ordering) {
                only(order);
                self.0.swap(value, order);
            }

            /// Exchanges.
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                only(order);
                self.0.swap(value, order)
            }
        }
    };
}

macro_rules! count {
    ($name:ident, $value:ty) => {
        atomic!($name, $value, fetch_add(0));

        impl $name {
            /// Adds.
            pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                only(order);
                self.0.fetch_add(value, order)
            }

            /// Subtracts.
            pub fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                only(order);
                self.0.fetch_sub(value, order)
            }

            /// Exchanges for what `step` makes of it, or leaves it when that is nothing.
            pub fn fetch_update(
                &self,
                set: Ordering,
                fetch: Ordering,
                mut step: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                only(set);
                let mut before = self.load(fetch);
                while let Some(next) = step(before) {
                    match self.0.compare_exchange(before, next, set, fetch) {
                        Ok(before) => return Ok(before),
                        Err(now) => before = now,
                    }
                }
                Err(before)
            }
        }
    };
}

atomic!(AtomicBool, bool, fetch_or(false));
count!(AtomicUsize, usize);
count!(AtomicIsize, isize);
