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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{NextOffset, OffsetSet};

    /// What of `runs` is at or above `read_to`, run by run.
    fn left(runs: &[(u64, u64)], read_to: u64) -> Vec<(u64, u64)> {
        let cut = runs.iter().map(|run| (run.0.max(read_to), run.1));
        cut.filter(|run| run.0 < run.1).collect()
    }

    proptest! {
        /// Whatever former owners finished and whatever is read: what is finished is said to be, once, and the rest costs what it
        /// costs when it is counted anew.
        #[test]
        fn p6_agrees_with_the_naive_model(
            watermark in 0u64..500,
            runs in prop::collection::vec((1u64..300, 1u64..300), 0..12),
            reads in prop::collection::vec(0u64..200, 0..60),
        ) {
            let mut position = Position { watermark: NextOffset(watermark), finished: OffsetSet::new() };
            let mut at = 0;
            for (gap, len) in runs {
                position.finished.push(at + gap, at + gap + len);
                at += gap + len;
            }
            let runs = position.finished.runs();
            let mut inherited = Inherited::new(&position);
            let mut read_to = watermark;
            for gap in reads {
                let offset = read_to + gap;
                prop_assert_eq!(inherited.pass(offset), position.finished.contains(offset), "{}", offset);
                read_to = offset + 1;
                let left = left(runs, read_to);
                let mut before = read_to;
                let mut cost = 0;
                for run in &left {
                    cost += varint_len(run.0 - before) + varint_len(run.1 - run.0);
                    before = run.1;
                }
                prop_assert_eq!(inherited.cost(read_to), cost);
                prop_assert_eq!(inherited.end(), left.last().map(|run| run.1));
                prop_assert_eq!(inherited.runs().collect::<Vec<_>>(), left);
            }
        }
    }
}
