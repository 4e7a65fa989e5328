//! The owner of a partition's list of parked keys: a task that lives as long as the ownership (G1, G2, G3).
//!
//! It claims the list before the ownership begins in any shard, is the only one that writes it, and redrives. One write is
//! under way at a time; what is asked for meanwhile goes into the next one together.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ebus_core::{Backend, Error, ErrorKind, Key, Owned, Parking, PartitionId};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::ParkedKey;
use super::handle::{AllLists, Asked, Change, KeeperHandle, Place, Room};
use super::redrive::{Redriven, Redriving, redrive};
use super::set::{ParkedSet, Request};
use crate::config::ParkingPlace;
use crate::jobs::ToShard;
use crate::retry::RetryPolicy;
use crate::route::Router;

/// How often requests are looked for while there are parked keys.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Keys that a pool redrives at once, at most: each reads by itself.
pub(crate) const MOST_REDRIVES: usize = 16;
/// The longest wait before a call that failed is made again.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// From a keeper to the driver.
#[derive(Debug)]
pub(crate) enum FromKeeper {
    /// The ownership may begin, with these keys parked.
    Claimed { owned: Owned, keys: Vec<ParkedKey> },
    /// A call failed that is made again.
    Trouble(Error),
}

/// The way to the shard of a key.
#[derive(Debug, Clone)]
pub(crate) struct Lanes {
    pub(crate) shards: Vec<UnboundedSender<ToShard>>,
    pub(crate) router: Router,
    pub(crate) seed: u64,
}

impl Lanes {
    pub(crate) fn shard(&self, key: &Key) -> usize {
        self.router.shard_of(self.router.lane(self.seed, key))
    }

    /// A shard that is gone drops what waits for its answer.
    pub(super) fn tell(&self, key: &Key, command: ToShard) {
        let _ = self.shards[self.shard(key)].send(command);
    }
}

/// What a keeper is made of.
pub(crate) struct KeeperParts {
    pub(crate) group: ebus_core::Group,
    pub(crate) place: ParkingPlace,
    pub(crate) most: usize,
    /// The lists of the whole pool.
    pub(crate) lists: Arc<AllLists>,
    /// Redrives of the whole pool.
    pub(crate) redrives: Arc<Semaphore>,
    pub(crate) partition: PartitionId,
    pub(crate) owned: Owned,
    pub(crate) lanes: Lanes,
    pub(crate) driver: UnboundedSender<FromKeeper>,
}

pub(crate) struct Keeper {
    parts: KeeperParts,
    asked: UnboundedReceiver<Asked>,
    room: Arc<Room>,
    set: ParkedSet,
    places: HashMap<Key, Place>,
    /// What this ownership found parked: of these the source may deliver again what was redriven.
    inherited: HashSet<Key>,
    /// With the requests that it answers: all that were there when it began.
    redriving: HashMap<Key, Vec<Bytes>>,
    redrives: FuturesUnordered<Redriving>,
    /// Changes that wait to be kept.
    waiting: Vec<oneshot::Sender<()>>,
}

impl Keeper {
    pub(crate) fn new(parts: KeeperParts) -> (Self, KeeperHandle) {
        let (tx, asked) = unbounded_channel();
        let room = Room::new(parts.most, parts.place.store.max_bytes(), parts.lists.clone());
        let handle = KeeperHandle::new(tx, room.clone());
        let keeper = Self {
            parts,
            asked,
            room,
            set: ParkedSet::default(),
            places: HashMap::new(),
            inherited: HashSet::new(),
            redriving: HashMap::new(),
            redrives: FuturesUnordered::new(),
            waiting: Vec::new(),
        };
        (keeper, handle)
    }

    /// Until nobody can ask it any more.
    pub(crate) async fn run(mut self) {
        self.claim().await;
        let mut looks = interval_at(Instant::now(), LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first = true;
        loop {
            tokio::select! {
                asked = self.asked.recv() => match asked {
                    Some(asked) => self.take(asked).await,
                    None => return,
                },
                // Once in any case: a request may be left of keys that are free by now.
                _ = looks.tick(), if first || self.set.parked().next().is_some() => {
                    first = false;
                    self.look().await;
                }
                Some((key, redriven)) = self.redrives.next() => self.redriven(&key, redriven).await,
            }
        }
    }

    fn store(&self) -> &Arc<dyn Parking> {
        &self.parts.place.store
    }

    fn letters(&self) -> &Arc<dyn Backend> {
        &self.parts.place.letters
    }

    fn trouble(&self, error: Error, what: &str) {
        let partition = &self.parts.partition;
        let error = error.with_context("partition", partition);
        tracing::warn!(group = %self.parts.group, %partition, error = %error.chain(), "{what}");
        // A driver that is gone needs no news.
        let _ = self.parts.driver.send(FromKeeper::Trouble(error));
    }

    /// Nothing of the partition is delivered before this is done.
    async fn claim(&mut self) {
        let mut delays = RetryPolicy::exponential().cap(LONGEST_DELAY).delays();
        let owned = self.parts.owned;
        self.set = loop {
            let claimed = self.store().claim(&self.parts.partition, owned.epoch).await;
            match claimed.and_then(|text| {
                text.as_deref().map(|text| ParkedSet::decode(text, &self.parts.partition)).transpose()
            }) {
                Ok(set) => break set.unwrap_or_default(),
                Err(error) => {
                    self.trouble(error, "parked keys not read; their partition waits until they are")
                }
            }
            tokio::time::sleep(delays.next().unwrap_or(LONGEST_DELAY)).await;
        };
        for parked in self.set.parked() {
            let place = self.room.count(&parked.key, &parked.letters.topic);
            self.places.insert(parked.key.clone(), place);
            self.inherited.insert(parked.key.clone());
        }
        let keys = self.set.iter().cloned().collect();
        let _ = self.parts.driver.send(FromKeeper::Claimed { owned, keys });
    }

    /// Makes this change and all that wait behind it, in one write.
    async fn take(&mut self, asked: Asked) {
        self.change(asked);
        while let Ok(asked) = self.asked.try_recv() {
            self.change(asked);
        }
        self.save().await;
        for done in self.waiting.drain(..) {
            // A run that was cancelled does not wait any more.
            let _ = done.send(());
        }
    }

    fn change(&mut self, (change, done): Asked) {
        match change {
            Change::Park(parked, place) => {
                self.places.insert(parked.key.clone(), place);
                self.set.put(parked);
            }
            Change::Redriven { key, offset, next_letter } => {
                if let Some(parked) = self.set.get_mut(&key).filter(|parked| !parked.done) {
                    parked.advance(offset, next_letter);
                }
            }
            Change::Forget { key } => {
                if self.set.get(&key).is_some_and(|parked| parked.done) {
                    self.set.remove(&key);
                }
            }
            Change::Stopped { key, letter, error } => {
                if let Some(parked) = self.set.get_mut(&key).filter(|parked| !parked.done) {
                    parked.stop(letter, &error);
                }
            }
        }
        self.waiting.push(done);
    }

    /// Until it is kept. For ever when a later owner has claimed the partition: nothing of this ownership counts any more, and
    /// the source will say so.
    async fn save(&mut self) {
        self.set.forget_done(self.parts.most, self.store().max_bytes());
        let mut delays = RetryPolicy::exponential().cap(LONGEST_DELAY).delays();
        loop {
            let text = self.set.encode();
            let error = match self.store().keep(&self.parts.partition, self.parts.owned.epoch, text).await {
                Ok(()) => return,
                Err(error) => error,
            };
            let fenced = error.kind() == ErrorKind::Fenced;
            self.trouble(error, "parked keys not kept; the keys that changed wait until they are");
            if fenced {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(delays.next().unwrap_or(LONGEST_DELAY)).await;
        }
    }

    /// Begins what is asked for, and clears away what is asked for in vain.
    async fn look(&mut self) {
        let requests = match self.store().asked(&self.parts.partition).await {
            Ok(requests) => requests,
            Err(error) => return self.trouble(error, "requests for parked keys not read; tried again"),
        };
        let mut begun: HashMap<Key, Vec<Bytes>> = HashMap::new();
        for text in requests {
            let Some(request) = Request::decode(&text) else {
                tracing::warn!(group = %self.parts.group, partition = %self.parts.partition,
                    "a request that this version does not understand; removed");
                self.answer(&[text]).await;
                continue;
            };
            let Some(parked) =
                self.set.parked().find(|parked| parked.key == request.key && parked.offset == request.offset)
            else {
                self.answer(&[text]).await;
                continue;
            };
            if let Some(begun) = begun.get_mut(&request.key) {
                begun.push(text);
                continue;
            }
            if self.redriving.contains_key(&request.key)
                || self.redriving.len() + begun.len() >= MOST_REDRIVES
            {
                continue;
            }
            let future = redrive(
                self.parts.group.clone(),
                self.parts.partition.clone(),
                self.parts.owned,
                parked.clone(),
                self.letters().clone(),
                self.parts.lanes.clone(),
            );
            let places = self.parts.redrives.clone();
            begun.insert(request.key.clone(), vec![text]);
            let key = request.key;
            self.redrives.push(Box::pin(async move {
                // The pool closes it never.
                let _place = places.acquire_owned().await;
                (key, future.await)
            }));
        }
        self.redriving.extend(begun);
    }

    /// Only its last owner knows whether a request was in vain or is done: one that has lost the partition and does not know it yet
    /// must not take it away. It was read before, so whoever it is for had claimed the partition by then.
    async fn answer(&mut self, requests: &[Bytes]) {
        let (store, partition) = (self.store(), &self.parts.partition);
        let mut answered = store.claim(partition, self.parts.owned.epoch).await.map(drop);
        for request in requests {
            if answered.is_ok() {
                answered = store.answered(partition, request).await;
            }
        }
        if let Err(error) = answered {
            self.trouble(error, "a request for a parked key not removed; tried again");
        }
    }

    /// A redrive has ended. The list says so before the lane goes on.
    async fn redriven(&mut self, key: &Key, redriven: Redriven) {
        let Some(requests) = self.redriving.remove(key) else { return };
        let mut below = None;
        match redriven {
            Redriven::All(offset) => {
                // Parked in this ownership, all of it was delivered and settled before.
                let inherited = self.inherited.remove(key);
                if !inherited {
                    self.set.remove(key);
                } else if let Some(parked) = self.set.get_mut(key) {
                    parked.finish(offset);
                }
                self.save().await;
                self.places.remove(key);
                self.answer(&requests).await;
                tracing::info!(group = %self.parts.group, partition = %self.parts.partition, %key, "key redriven");
                below = Some(if inherited { offset } else { 0 });
            }
            Redriven::Unseen { letter, error } => {
                if let Some(parked) = self.set.get_mut(key) {
                    parked.stop(letter, &error.chain());
                }
                self.save().await;
                self.answer(&requests).await;
                self.trouble(error, "a key stays parked, because not all of its dead letters were found");
            }
            Redriven::Stopped => self.answer(&requests).await,
            Redriven::Failed(error) => {
                self.trouble(error, "dead letters of a parked key not read; tried again")
            }
            Redriven::Cancelled => {}
        }
        let owned = self.parts.owned;
        self.parts.lanes.tell(key, ToShard::Unhold { owned, key: key.clone(), below });
        if below.is_some() {
            // Others may have waited for it to end.
            self.look().await;
        }
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("owned", &self.parts.owned).finish_non_exhaustive()
    }
}
