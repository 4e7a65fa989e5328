//! Offsets that are finished: how far all are, and which are beyond that.

use std::fmt;

/// The first offset that is not yet known to be finished: what is committed, and where reading resumes.
///
/// A type of its own because clients disagree whether "the offset" is the last finished one or the next; in ebus a
/// bare `u64` is the offset of a message, and this is the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct NextOffset(pub u64);

impl NextOffset {
    /// After the message at `offset`.
    #[must_use]
    pub fn after(offset: u64) -> Self {
        Self(offset + 1)
    }
}

impl fmt::Display for NextOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of offsets as ascending, disjoint, half-open runs.
///
/// A run may cover offsets that never arrived (compaction, transaction markers): that they count as finished harms
/// nobody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OffsetSet {
    runs: Vec<(u64, u64)>,
}

impl OffsetSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { runs: Vec::new() }
    }

    /// Adds the run from `start` up to, not including, `end`. Runs come in ascending order.
    ///
    /// A run that is empty or begins below the end of the last one is cut to what is new.
    pub fn push(&mut self, start: u64, end: u64) {
        match self.runs.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ if start < end => self.runs.push((start, end)),
            _ => {}
        }
    }

    /// Whether `offset` is in the set. O(log runs).
    pub fn contains(&self, offset: u64) -> bool {
        let after = self.runs.partition_point(|run| run.0 <= offset);
        after > 0 && offset < self.runs[after - 1].1
    }

    /// Forgets all below `offset`.
    pub fn forget_below(&mut self, offset: u64) {
        let gone = self.runs.partition_point(|run| run.1 <= offset);
        self.runs.drain(..gone);
        if let Some(first) = self.runs.first_mut() {
            first.0 = first.0.max(offset);
        }
    }

    /// The runs, ascending.
    pub fn runs(&self) -> &[(u64, u64)] {
        &self.runs
    }

    /// The offset after the highest one in the set.
    pub fn end(&self) -> Option<u64> {
        self.runs.last().map(|run| run.1)
    }

    /// How many offsets are in the set.
    pub fn count(&self) -> u64 {
        self.runs.iter().map(|(start, end)| end - start).sum()
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_are_joined_cut_and_found() {
        let mut set = OffsetSet::new();
        set.push(3, 5);
        set.push(5, 6);
        set.push(9, 9);
        set.push(8, 10);
        assert_eq!(set.runs(), [(3, 6), (8, 10)]);
        let members: Vec<u64> = (0..12).filter(|o| set.contains(*o)).collect();
        assert_eq!(members, [3, 4, 5, 8, 9]);
        set.forget_below(4);
        assert_eq!(set.runs(), [(4, 6), (8, 10)]);
        set.forget_below(6);
        assert_eq!(set.runs(), [(8, 10)]);
        assert_eq!((set.end(), set.count()), (Some(10), 2));
    }

    proptest! {
        /// Runs come in ascending order, empty and overlapping ones among them, and all below some offset is forgotten.
        #[test]
        fn agrees_with_the_naive_set(runs in prop::collection::vec((0u64..6, 0u64..6), 0..12), below in 0u64..40) {
            let (mut set, mut naive) = (OffsetSet::new(), BTreeSet::new());
            let mut at = 0;
            for (gap, len) in runs {
                set.push(at + gap, at + gap + len);
                naive.extend(at + gap..at + gap + len);
                // The next one begins in this one, or behind it.
                at += gap + len / 2;
            }
            for forgotten in [0, below] {
                set.forget_below(forgotten);
                naive.retain(|offset| *offset >= forgotten);
                let members: BTreeSet<u64> = (0..200).filter(|offset| set.contains(*offset)).collect();
                prop_assert_eq!(&members, &naive);
                prop_assert_eq!(set.count(), naive.len() as u64);
                prop_assert_eq!(set.is_empty(), naive.is_empty());
                prop_assert_eq!(set.end(), naive.last().map(|last| last + 1));
                prop_assert!(set.runs().iter().all(|(start, end)| start < end), "{:?}", set.runs());
                prop_assert!(set.runs().windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", set.runs());
            }
        }
    }
}
