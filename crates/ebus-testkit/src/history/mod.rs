//! What happened: one event per line, in the order in which it happened.
//!
//! Everything that is ever judged is judged on a history, and only on it: neither the pool nor a backend is asked. So a
//! fault of theirs cannot hide itself, and a run can be judged again later, or by somebody else's checker.
//!
//! [`History`] records, [`Event`] is what it records, [`read`] takes a file back in, [`merge`] those of several processes.
//! [`record`](crate::record) has the wrappers that fill one, [`oracle`](crate::oracle) judges it.

#[cfg(all(feature = "durable", unix))]
mod durable;
mod event;
mod lines;
mod merge;
mod names;
mod recorder;

/// Without the feature nobody can make one.
#[cfg(not(all(feature = "durable", unix)))]
mod durable {
    pub(super) enum Durable {}

    impl Durable {
        pub(super) fn record(&self, _: super::Event) {
            match *self {}
        }

        pub(super) fn now_ns(&self) -> u64 {
            match *self {}
        }

        pub(super) fn failed(&self) -> Option<std::io::Error> {
            match *self {}
        }
    }
}

pub use event::{Event, Kind, Outcome};
pub use lines::{read, write};
pub use merge::{Merged, Part, merge};
pub use recorder::History;

pub(crate) use event::{Name, key_text, name};
