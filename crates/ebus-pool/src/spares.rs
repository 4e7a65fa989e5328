//! Emptied lists that go back to who fills them, so that a message costs no allocation while the load is steady (G5: what is
//! kept is bounded).

use std::collections::VecDeque;

use crate::jobs::{Job, Outcomes};

/// Emptied lists that wait to be filled again.
#[derive(Debug)]
pub(crate) struct Spares<T> {
    lists: Vec<T>,
    most: usize,
    largest: usize,
}

/// A list that may be worth keeping.
pub(crate) trait List {
    fn with_room(elements: usize) -> Self;

    /// Elements that it has memory for.
    fn room(&self) -> usize;
}

impl List for Vec<Job> {
    fn with_room(elements: usize) -> Self {
        Self::with_capacity(elements)
    }

    fn room(&self) -> usize {
        self.capacity()
    }
}

impl List for VecDeque<Job> {
    fn with_room(elements: usize) -> Self {
        Self::with_capacity(elements)
    }

    fn room(&self) -> usize {
        self.capacity()
    }
}

impl List for Outcomes {
    fn with_room(elements: usize) -> Self {
        Self { settled: Vec::with_capacity(elements), sizes: Vec::with_capacity(elements) }
    }

    fn room(&self) -> usize {
        self.settled.capacity()
    }
}

impl<T: List> Spares<T> {
    /// Keeps `most` at most, none with room for more than `largest` elements.
    pub(crate) fn new(most: usize, largest: usize) -> Self {
        Self { lists: Vec::new(), most, largest }
    }

    /// An empty list, with room for `likely` elements if it has to be made.
    pub(crate) fn take(&mut self, likely: usize) -> T {
        self.lists.pop().unwrap_or_else(|| T::with_room(likely))
    }

    /// Keeps it, unless there are enough, or it is too large to be kept.
    pub(crate) fn keep(&mut self, emptied: T) {
        if self.lists.len() < self.most && (1..=self.largest).contains(&emptied.room()) {
            self.lists.push(emptied);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeps_a_few<T: List>() {
        let mut spares = Spares::<T>::new(2, 8);
        assert_eq!(spares.take(3).room(), 3, "there is none");
        for room in [8, 0, 9, 7, 5] {
            spares.keep(T::with_room(room));
        }
        let kept = [1, 1, 1].map(|likely| spares.take(likely).room());
        assert_eq!(kept, [7, 8, 1]);
    }

    #[test]
    fn p5_a_few_lists_of_each_kind_are_kept_and_none_that_is_large() {
        keeps_a_few::<Vec<Job>>();
        keeps_a_few::<VecDeque<Job>>();
        keeps_a_few::<Outcomes>();
    }
}
