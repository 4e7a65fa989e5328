//! What is on its way, per topic and key: whether a message that failed is still the last one sent, and what waits for it.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState as StdRandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ahash::RandomState;
use ebus_core::{Error, Key, Publish, Receipt, Topic};
use tokio::sync::{Notify, oneshot};
use tower_service::Service;

use super::RetryConfig;

/// So many locks; a power of two.
const LOCKS: usize = 16;

/// What order is kept for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct LaneKey {
    topic: Topic,
    key: Key,
}

impl LaneKey {
    /// `None` for a message without a key: it has no order.
    pub(super) fn of(publish: &Publish) -> Option<Self> {
        Some(Self { topic: publish.topic.clone(), key: publish.message.key.clone()? })
    }
}

/// All lanes of one publisher, shared by its clones.
pub(super) struct Lanes<S: Service<Publish>> {
    pub(super) config: RetryConfig,
    /// Never made ready: what clones for further attempts are made of.
    prototype: Mutex<S>,
    hasher: RandomState,
    locks: [Mutex<Map<S>>; LOCKS],
}

type Map<S> = HashMap<LaneKey, Lane<S>, RandomState>;

/// Exists while something of its key is on its way.
struct Lane<S: Service<Publish>> {
    /// How many were sent.
    sent: u64,
    /// How many of them, and recoveries, are not at their end.
    open: usize,
    /// While one is being sent again.
    recovery: Option<Recovery<S>>,
}

struct Recovery<S: Service<Publish>> {
    held: VecDeque<Held<S>>,
    arrived: Arc<Notify>,
}

/// A call that is held back.
pub(super) struct Held<S: Service<Publish>> {
    pub(super) publish: Publish,
    /// Ready, and with it a place in flight; `None` once the recovery has used it.
    pub(super) service: Option<S>,
    pub(super) reply: oneshot::Sender<Reply<S>>,
}

/// What a caller is told whose message was held back or is sent again.
pub(super) enum Reply<S: Service<Publish>> {
    /// It is sent; this is its future.
    Sent(S::Future, Ticket<S>),
    /// This is its end.
    Done(Result<Receipt, Error>),
}

/// What [`Lanes::enter`] decided.
pub(super) enum Entered<S: Service<Publish>> {
    Send(Ticket<S>),
    Held(oneshot::Receiver<Reply<S>>),
}

/// A message on its way, and its number in its lane. Leaves the lane when dropped.
pub(super) struct Ticket<S: Service<Publish>> {
    pub(super) lanes: Arc<Lanes<S>>,
    pub(super) publish: Publish,
    lane: Option<(LaneKey, u64)>,
}

impl<S: Service<Publish> + Clone> Lanes<S> {
    pub(super) fn new(prototype: S, config: RetryConfig) -> Self {
        // Seeded at random: keys may be chosen by somebody who would like them to collide.
        let hasher = RandomState::with_seed(StdRandomState::new().hash_one(0) as usize);
        Self {
            config,
            prototype: Mutex::new(prototype),
            locks: std::array::from_fn(|_| Mutex::new(Map::with_hasher(hasher.clone()))),
            hasher,
        }
    }

    /// A service that is not ready.
    pub(super) fn service(&self) -> S {
        locked(&self.prototype).clone()
    }

    /// A call of this message: to be sent at once, or held back. `hold` gives up the service that was made ready for it.
    pub(super) fn enter(self: &Arc<Self>, publish: Publish, hold: impl FnOnce() -> S) -> Entered<S> {
        let Some(key) = LaneKey::of(&publish) else {
            return Entered::Send(Ticket { lanes: self.clone(), publish, lane: None });
        };
        let mut map = self.lock(&key);
        let lane = map.entry(key.clone()).or_insert(Lane { sent: 0, open: 0, recovery: None });
        if let Some(recovery) = &mut lane.recovery {
            let (reply, told) = oneshot::channel();
            recovery.held.push_back(Held { publish, service: Some(hold()), reply });
            recovery.arrived.notify_one();
            return Entered::Held(told);
        }
        let number = lane.send();
        drop(map);
        Entered::Send(Ticket { lanes: self.clone(), publish, lane: Some((key, number)) })
    }
}

impl<S: Service<Publish>> Lane<S> {
    fn send(&mut self) -> u64 {
        self.sent += 1;
        self.open += 1;
        self.sent
    }
}

impl<S: Service<Publish>> Lanes<S> {
    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.locks.iter().map(|map| locked(map).len()).sum()
    }

    fn lock(&self, key: &LaneKey) -> MutexGuard<'_, Map<S>> {
        locked(&self.locks[self.hasher.hash_one(key) as usize % LOCKS])
    }

    fn leave(&self, key: &LaneKey) {
        let mut map = self.lock(key);
        if let Some(lane) = map.get_mut(key) {
            lane.open -= 1;
            if lane.open == 0 {
                let ended = map.remove(key);
                // What it may still hold is dropped outside of the lock: services may do anything in their drop.
                drop(map);
                drop(ended);
            }
        }
    }
}

impl<S: Service<Publish>> Ticket<S> {
    /// Begins to hold back its lane, if no later message of it was sent. The ticket's place in the lane goes to the recovery.
    pub(super) fn recover(mut self) -> Result<Recovering<S>, Overtaken> {
        let mut recovering =
            Recovering { lanes: self.lanes.clone(), publish: self.publish.clone(), lane: None };
        let Some((key, number)) = self.lane.take() else { return Ok(recovering) };
        let arrived = Arc::new(Notify::new());
        {
            let mut map = self.lanes.lock(&key);
            match map.get_mut(&key) {
                Some(lane) if lane.sent == number && lane.recovery.is_none() => {
                    lane.recovery = Some(Recovery { held: VecDeque::new(), arrived: arrived.clone() });
                }
                _ => {
                    drop(map);
                    self.lane = Some((key, number));
                    return Err(Overtaken);
                }
            }
        }
        recovering.lane = Some((key, arrived));
        Ok(recovering)
    }
}

/// A later message of the key was sent.
pub(super) struct Overtaken;

impl<S: Service<Publish>> Drop for Ticket<S> {
    fn drop(&mut self) {
        if let Some((key, _)) = &self.lane {
            self.lanes.leave(key);
        }
    }
}

/// The right to send one message again, and the duty to send what it holds back, or to tell its callers. Dropped with its duty
/// undone, because its runtime ended, it lets go of the lane: what is held is told so by its closed channel.
pub(super) struct Recovering<S: Service<Publish>> {
    pub(super) lanes: Arc<Lanes<S>>,
    pub(super) publish: Publish,
    lane: Option<(LaneKey, Arc<Notify>)>,
}

impl<S: Service<Publish>> Recovering<S> {
    /// Takes the place in flight of the last call that is held back and has one: with it the message before can go on when
    /// all places are held by what waits for it. Waits for such a call.
    pub(super) async fn spare(&self) -> S {
        let Some((key, arrived)) = &self.lane else { return std::future::pending().await };
        loop {
            let taken = {
                let mut map = self.lanes.lock(key);
                let held = map.get_mut(key).and_then(|lane| lane.recovery.as_mut());
                held.and_then(|recovery| recovery.held.iter_mut().rev().find_map(|held| held.service.take()))
            };
            if let Some(service) = taken {
                return service;
            }
            arrived.notified().await;
        }
    }

    /// The next call that is held back; without one, the lane is open again.
    pub(super) fn next(&mut self) -> Option<Held<S>> {
        let (key, _) = self.lane.as_ref()?;
        let mut map = self.lanes.lock(key);
        let lane = map.get_mut(key)?;
        let next = lane.recovery.as_mut()?.held.pop_front();
        if next.is_none() {
            lane.recovery = None;
            drop(map);
            if let Some((key, _)) = self.lane.take() {
                self.lanes.leave(&key);
            }
        }
        next
    }

    /// A ticket for a message that was held back and is sent now.
    pub(super) fn ticket(&self, publish: Publish) -> Ticket<S> {
        let lane = self.lane.as_ref().and_then(|(key, _)| {
            let number = self.lanes.lock(key).get_mut(key).map(Lane::send)?;
            Some((key.clone(), number))
        });
        Ticket { lanes: self.lanes.clone(), publish, lane }
    }
}

impl<S: Service<Publish>> Drop for Recovering<S> {
    fn drop(&mut self) {
        if let Some((key, _)) = self.lane.take() {
            // In a statement of its own, so that it is dropped outside of the lock.
            let _undone = self.lanes.lock(&key).get_mut(&key).and_then(|lane| lane.recovery.take());
            self.lanes.leave(&key);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section leaves whole values behind, a panic of somebody's `clone` included.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
