//! What a shard holds of a partition's keeper: a way to ask it, and the bound on parked keys (G5).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire};

use ebus_core::{Key, Topic};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::ParkedKey;
use super::set::ParkedSet;

/// What a run changes in the list.
#[derive(Debug)]
pub(crate) enum Change {
    /// A key is parked; its place in the list.
    Park(ParkedKey, Place),
    /// Its message at `offset`, whose letter is the one before `next_letter`, was redriven.
    Redriven { key: Key, offset: u64, next_letter: u64 },
    /// The source has delivered all that was redriven of it.
    Forget { key: Key },
    /// Its redrive was given up at this letter.
    Stopped { key: Key, letter: u64, error: String },
}

/// A change, and who waits until it is kept.
pub(crate) type Asked = (Change, oneshot::Sender<()>);

/// How much the lists of all partitions of a pool take together (G5): no key is parked above it.
#[derive(Debug)]
pub(crate) struct AllLists {
    bytes: AtomicUsize,
    most_bytes: usize,
}

impl AllLists {
    pub(crate) fn new(most_bytes: usize) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicUsize::new(0), most_bytes })
    }
}

/// How much of a list is in use, by what is on it and by what is on its way there.
#[derive(Debug)]
pub(crate) struct Room {
    keys: AtomicUsize,
    bytes: AtomicUsize,
    most_keys: usize,
    most_bytes: usize,
    all: Arc<AllLists>,
}

/// A place in the list, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    room: Arc<Room>,
    bytes: usize,
}

/// Adds to what is used, if that stays within its bound.
fn add(used: &AtomicUsize, more: usize, most: usize) -> bool {
    let within = |used: usize| Some(used + more).filter(|sum| *sum <= most);
    used.fetch_update(AcqRel, Acquire, within).is_ok()
}

impl Room {
    pub(crate) fn new(most_keys: usize, most_bytes: usize, all: Arc<AllLists>) -> Arc<Self> {
        let (keys, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { keys, bytes, most_keys, most_bytes: ParkedSet::room(most_bytes), all })
    }

    /// A place for a key; an error says what is full.
    pub(crate) fn take(self: &Arc<Self>, key: &Key, letters: &Topic) -> Result<Place, String> {
        let bytes = ParkedSet::cost(key, letters);
        if !add(&self.keys, 1, self.most_keys) {
            return Err(format!(
                "the list of parked keys of the partition is full: at most {} keys",
                self.most_keys
            ));
        }
        if !add(&self.bytes, bytes, self.most_bytes) {
            self.keys.fetch_sub(1, AcqRel);
            return Err(format!(
                "the list of parked keys of the partition is full: {} keys take {} of {} bytes, and this one takes {bytes}",
                self.keys.load(Acquire),
                self.bytes.load(Acquire),
                self.most_bytes
            ));
        }
        if !add(&self.all.bytes, bytes, self.all.most_bytes) {
            self.keys.fetch_sub(1, AcqRel);
            self.bytes.fetch_sub(bytes, AcqRel);
            return Err(format!(
                "the lists of parked keys of all partitions of this member are full: at most {} bytes, a quarter of its budget",
                self.all.most_bytes
            ));
        }
        Ok(Place { room: self.clone(), bytes })
    }

    /// A place for a key that is on the list already, whatever the bounds are by now.
    pub(crate) fn count(self: &Arc<Self>, key: &Key, letters: &Topic) -> Place {
        let bytes = ParkedSet::cost(key, letters);
        self.keys.fetch_add(1, AcqRel);
        self.bytes.fetch_add(bytes, AcqRel);
        self.all.bytes.fetch_add(bytes, AcqRel);
        Place { room: self.clone(), bytes }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.keys.fetch_sub(1, AcqRel);
        self.room.bytes.fetch_sub(self.bytes, AcqRel);
        self.room.all.bytes.fetch_sub(self.bytes, AcqRel);
    }
}

/// The way to the keeper of one ownership.
#[derive(Debug, Clone)]
pub(crate) struct KeeperHandle {
    keeper: UnboundedSender<Asked>,
    room: Arc<Room>,
}

impl KeeperHandle {
    pub(crate) fn new(keeper: UnboundedSender<Asked>, room: Arc<Room>) -> Self {
        Self { keeper, room }
    }

    /// A place for a key in the list; an error says what is full.
    pub(crate) fn take(&self, key: &Key, letters: &Topic) -> Result<Place, String> {
        self.room.take(key, letters)
    }

    /// Keys on the list, or on their way there.
    pub(crate) fn keys(&self) -> usize {
        self.room.keys.load(Acquire)
    }

    /// Makes a change that nobody waits for.
    pub(crate) fn mention(&self, change: Change) {
        let (done, _) = oneshot::channel();
        // A keeper that is gone keeps nothing; the next one hears of it again.
        let _ = self.keeper.send((change, done));
    }

    /// Makes a change and waits until it is kept. For ever, if a later owner has claimed the partition: then this run is to be
    /// cancelled.
    pub(crate) async fn change(&self, change: Change) {
        let (done, kept) = oneshot::channel();
        // A keeper that is gone answers as one that was fenced: not at all.
        let _ = self.keeper.send((change, done));
        if kept.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bound was one of each partition alone: a member that takes many over held as many lists, whatever its budget.
    #[test]
    fn p5_the_lists_of_all_partitions_have_one_bound() {
        let letters = Topic::new("orders.dlq").expect("legal");
        let one = ParkedSet::cost(&"a".into(), &letters);
        let all = AllLists::new(3 * one);
        let rooms = [Room::new(10, 1 << 20, all.clone()), Room::new(10, 1 << 20, all)];
        let take = |room: usize| rooms[room].take(&"a".into(), &letters);
        let mut places = vec![take(0).expect("room"), take(1).expect("room"), take(1).expect("room")];
        let why = take(0).expect_err("full");
        assert!(why.contains("of all partitions"), "{why}");
        assert_eq!(rooms[0].keys.load(Acquire), 1, "nothing stays of one that was refused");
        // What a former owner parked is held all the same.
        places.push(rooms[1].count(&"a".into(), &letters));
        drop(places.pop());
        assert!(take(0).is_err());
        drop(places.pop());
        places.push(take(0).expect("there is room again"));
        drop(places);
        assert_eq!(
            rooms[0].all.bytes.load(Acquire) + rooms[0].bytes.load(Acquire) + rooms[1].bytes.load(Acquire),
            0
        );
    }
}
