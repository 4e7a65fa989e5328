//! What happens when: drawn from the seed before anything starts, so that the same seed always does the same.
//!
//! Kinds of faults are dealt like cards: all of them, shuffled, before any of them comes again. So a short run has each, and a
//! long one has them in every order.

mod act;
mod deal;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(crate) use act::{Act, Link};
pub(crate) use deal::Card;
use deal::Dealer;

/// One thing that the driver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// When, from the start.
    pub(crate) at: Duration,
    pub(crate) act: Act,
}

/// What the schedule may use.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) seed: u64,
    pub(crate) time: Duration,
    /// Members that there shall be, more or less.
    pub(crate) members: u32,
    pub(crate) publishers: u32,
    pub(crate) nodes: usize,
    /// How long a member may be silent before its partitions go to others.
    pub(crate) lease: Duration,
    pub(crate) cards: Vec<Card>,
}

/// The whole schedule, by time. The members 1 to `members` join before it begins.
pub(crate) fn plan(terms: &Terms) -> Vec<Step> {
    Dealer::new(terms).deal()
}
