//! Batches: lanes that are ready gather until there are enough of them or the first has waited long enough, and run as one
//! (G2, G3, G4).
//!
//! A lane is in one batch at a time, with its head and what follows it. What the handler says of a batch is taken apart by lane
//! again: each goes on, or stays at its first message that failed, by itself.

mod end;
mod gather;
mod start;

use ebus_core::BatchOutcome;

use crate::run::Run;

pub(super) use gather::Batches;

/// A lane in a batch that runs, with so many messages from its head on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) lane: usize,
    messages: usize,
}

/// A batch that runs belongs to its lanes.
pub(super) type BatchRun = Run<Vec<Member>, BatchOutcome>;
