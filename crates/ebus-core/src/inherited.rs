//! What former owners finished above the low watermark, until reading has passed it (G1, G6).
//!
//! Reading passes it from the front, so a run is looked at once, and what the rest takes in a position is a sum that is kept:
//! a partition with thousands of runs costs no more per message than one without.

use std::collections::VecDeque;

use crate::Position;
use crate::position::varint_len;

/// Ascending, disjoint, half-open runs of finished offsets, none below what was read.
#[derive(Debug, Clone)]
pub(crate) struct Inherited {
    runs: VecDeque<(u64, u64)>,
    /// Bytes of all runs but the first: each one's distance to the one before it, and its length.
    cost_behind: usize,
}

fn cost_of(run: (u64, u64), before: u64) -> usize {
    varint_len(run.0.saturating_sub(before)) + varint_len(run.1 - run.0)
}

impl Inherited {
    pub(crate) fn new(position: &Position) -> Self {
        let mut finished = position.finished.clone();
        finished.forget_below(position.watermark.0);
        let runs = finished.runs();
        let cost_behind = runs.windows(2).map(|pair| cost_of(pair[1], pair[0].1)).sum();
        Self { runs: runs.iter().copied().collect(), cost_behind }
    }

    /// Bytes that the runs take in a position behind what was read up to `read_to`.
    pub(crate) fn cost(&self, read_to: u64) -> usize {
        self.runs.front().map_or(0, |first| cost_of(*first, read_to)) + self.cost_behind
    }

    /// Reading passes `offset`: whether it is finished. It is above all that were passed.
    pub(crate) fn pass(&mut self, offset: u64) -> bool {
        while self.runs.front().is_some_and(|first| first.1 <= offset) {
            self.forget_first();
        }
        let Some(first) = self.runs.front_mut() else { return false };
        let finished = first.0 <= offset;
        first.0 = first.0.max(offset + 1);
        if first.0 == first.1 {
            self.forget_first();
        }
        finished
    }

    fn forget_first(&mut self) {
        if let (Some(gone), Some(next)) = (self.runs.pop_front(), self.runs.front()) {
            self.cost_behind -= cost_of(*next, gone.1);
        }
    }

    /// The offset after the highest one.
    pub(crate) fn end(&self) -> Option<u64> {
        self.runs.back().map(|run| run.1)
    }

    /// The runs, ascending.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u64, u64)> {
        self.runs.iter().copied()
    }
}
