//! Which offsets of delivery reports are those of the broker, so that a receipt invents none (G1).
//!
//! A broker that answers that it has a batch already (`DUPLICATE_SEQUENCE_NUMBER`) may not say where, and neither does anybody
//! when librdkafka takes a batch for stored because a later one of its partition was accepted. Such a batch is reported as
//! delivered, and its offsets are counted on from a negative number: its first message can be told by that, the second and
//! those after it look as if they stood at the beginning of the log.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ThreadId;

use parking_lot::Mutex;

/// The batches without a place whose reports may go on.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// How many are in `open`: read without the lock.
    count: AtomicUsize,
    /// By the thread that is told: the reports of a batch come to one thread, one after the other. The poll of the connection
    /// and its closing are two.
    open: Mutex<HashMap<ThreadId, Open>>,
}

#[derive(Debug)]
struct Open {
    topic: String,
    partition: i32,
    /// What the batch's next message would be counted as.
    next: i64,
}

impl Places {
    /// The offset of a message that is stored, if it is known. To be asked for each report in its turn.
    ///
    /// A later batch of the partition is never taken for the rest of one without a place: of `n` such messages the last is
    /// counted as `n - 2` at most, and what is stored behind them is at `n` or above.
    pub(crate) fn place(&self, topic: &str, partition: i32, offset: i64) -> Option<u64> {
        let placed = u64::try_from(offset).ok();
        if placed.is_some() && self.count.load(Ordering::Acquire) == 0 {
            return placed;
        }
        let mut open = self.open.lock();
        let thread = std::thread::current().id();
        let goes_on = open
            .get(&thread)
            .is_some_and(|open| open.next == offset && open.partition == partition && open.topic == topic);
        let known = placed.filter(|_| !goes_on);
        if known.is_some() {
            open.remove(&thread);
        } else {
            open.insert(thread, Open { topic: topic.to_owned(), partition, next: offset.saturating_add(1) });
        }
        self.count.store(open.len(), Ordering::Release);
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(places: &Places, reports: &[(&str, i32, i64)]) -> Vec<Option<u64>> {
        reports.iter().map(|(topic, partition, offset)| places.place(topic, *partition, *offset)).collect()
    }

    #[test]
    fn p1_a_batch_without_a_place_is_without_one_to_its_last_message() {
        let places = Places::default();
        assert_eq!(told(&places, &[("t", 0, 4), ("t", 0, 5)]), [Some(4), Some(5)]);
        assert_eq!(told(&places, &[("t", 0, -1), ("t", 0, 0), ("t", 0, 1)]), [None; 3]);
        assert_eq!(told(&places, &[("t", 0, 9), ("t", 0, 10)]), [Some(9), Some(10)]);
        // As librdkafka counts from what it has when no broker has answered.
        assert_eq!(told(&places, &[("t", 0, -1_001), ("t", 0, -1_001), ("t", 0, -1_000)]), [None; 3]);
        assert_eq!(told(&places, &[("t", 0, 11)]), [Some(11)]);
    }

    #[test]
    fn another_partition_begins_where_it_says() {
        let places = Places::default();
        assert_eq!(told(&places, &[("t", 0, -1), ("t", 1, 0), ("t", 1, 1)]), [None, Some(0), Some(1)]);
        assert_eq!(told(&places, &[("t", 0, -1), ("u", 0, 0)]), [None, Some(0)]);
        assert_eq!(places.count.load(Ordering::Acquire), 0, "nothing is kept");
    }

    #[test]
    fn p1_what_another_thread_is_told_ends_no_batch() {
        let places = Places::default();
        assert_eq!(told(&places, &[("t", 0, -1)]), [None]);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| told(&places, &[("t", 0, 100)]));
            assert_eq!(other.join().expect("no panic"), [Some(100)]);
        });
        assert_eq!(told(&places, &[("t", 0, 0), ("t", 0, 101)]), [None, Some(101)]);
    }
}
