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

/// How much of the list is in use, by what is on it and by what is on its way there.
#[derive(Debug)]
pub(crate) struct Room {
    keys: AtomicUsize,
    bytes: AtomicUsize,
    most_keys: usize,
    most_bytes: usize,
}

/// A place in the list, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    room: Arc<Room>,
    bytes: usize,
}

impl Room {
    pub(crate) fn new(most_keys: usize, most_bytes: usize) -> Arc<Self> {
        let (keys, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { keys, bytes, most_keys, most_bytes: ParkedSet::room(most_bytes) })
    }

    /// A place for a key, if there is one.
    pub(crate) fn take(self: &Arc<Self>, key: &Key, letters: &Topic) -> Option<Place> {
        let bytes = ParkedSet::cost(key, letters);
        let fits = |used: usize, more: usize, most: usize| Some(used + more).filter(|sum| *sum <= most);
        self.keys.fetch_update(AcqRel, Acquire, |keys| fits(keys, 1, self.most_keys)).ok()?;
        if self.bytes.fetch_update(AcqRel, Acquire, |used| fits(used, bytes, self.most_bytes)).is_err() {
            self.keys.fetch_sub(1, AcqRel);
            return None;
        }
        Some(Place { room: self.clone(), bytes })
    }

    /// A place for a key that is on the list already, whatever the bounds are by now.
    pub(crate) fn count(self: &Arc<Self>, key: &Key, letters: &Topic) -> Place {
        let bytes = ParkedSet::cost(key, letters);
        self.keys.fetch_add(1, AcqRel);
        self.bytes.fetch_add(bytes, AcqRel);
        Place { room: self.clone(), bytes }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.keys.fetch_sub(1, AcqRel);
        self.room.bytes.fetch_sub(self.bytes, AcqRel);
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

    /// A place for a key in the list; `None` when it is full.
    pub(crate) fn take(&self, key: &Key, letters: &Topic) -> Option<Place> {
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
