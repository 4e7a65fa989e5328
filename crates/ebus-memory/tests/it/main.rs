//! The in-process broker by what its users see. Time is paused wherever it matters.
#![allow(clippy::unwrap_used, missing_docs)]

mod dropped;
mod faults;
mod groups;
mod life;
mod positions;
mod publishing;
mod retention;
mod stateful;
mod tools;
