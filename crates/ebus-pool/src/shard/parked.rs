//! Parked keys in a shard: their messages follow the dead letter, wait while the key is redriven, or are done (G2, G6).

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ebus_core::{Error, ErrorKind, Key, Message, Outcome, Owned, PartitionId, Settlement, Token};
use tokio::sync::oneshot;

use super::Shard;
use crate::dead_letter::{Obituary, Origin};
use crate::jobs::{Job, Letter, ParkedHere};
use crate::lane::{self, Head, Lane, Phase, Redrive};
use crate::parked::{Change, KeeperHandle, ParkedKey};
use crate::runner::Ended;

/// How soon what cannot be parked, or what followed in vain, is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The parked keys of a tenure.
pub(super) struct Parked {
    pub(super) keeper: KeeperHandle,
    keys: HashMap<Key, State>,
}

/// What becomes of the messages of a key.
enum State {
    /// They follow into the dead-letter topic.
    Parked(Box<Here>),
    /// They wait: it is being redriven. Who waits for a letter that is on its way.
    Held(Box<Here>, Option<oneshot::Sender<Option<u64>>>),
    /// It was redriven: those below this offset are done, the others run.
    Done(u64),
}

/// A parked key in this ownership.
struct Here {
    key: ParkedKey,
    /// The last message whose letter has its receipt, of this ownership: a redrive that has not seen it has not seen all.
    last: Option<u64>,
}

impl Parked {
    pub(super) fn new(here: ParkedHere) -> Self {
        let keys = here.keys.into_iter();
        let keys = keys.map(|parked| {
            let (key, done, below) = (parked.key.clone(), parked.done, parked.redriven.0);
            let here = || Box::new(Here { key: parked, last: None });
            (key, if done { State::Done(below) } else { State::Parked(here()) })
        });
        Self { keeper: here.keeper, keys: keys.collect() }
    }

    /// Whether more is to be done with a message than to run it.
    pub(super) fn concerns(&self, message: &Message) -> bool {
        !self.keys.is_empty() && message.key.as_ref().is_some_and(|key| self.keys.contains_key(key))
    }

    fn of(&self, message: &Message) -> Option<&State> {
        self.keys.get(message.key.as_ref()?)
    }
}

/// What a lane does with its head.
enum Turn {
    Run,
    /// The first one behind all that was redriven: nothing of its key is special any more.
    RunFreed,
    Follow,
    Wait,
    /// It was parked for good or redriven before: it needs no run and no letter.
    Done,
}

impl Shard {
    fn parked(&self, owned: Owned) -> Option<&Parked> {
        let tenure = self.tenures.get(owned.slot.index())?.as_ref().filter(|tenure| tenure.owned == owned)?;
        tenure.parked.as_deref()
    }

    fn parked_mut(&mut self, owned: Owned) -> Option<&mut Parked> {
        self.tenure(owned)?.parked.as_deref_mut()
    }

    fn turn(&self, lane: &Lane) -> Turn {
        let job = &lane.head.job;
        let parked = match self.parked(job.token.owned()) {
            Some(parked) if lane.redrive.is_none() => parked,
            _ => return Turn::Run,
        };
        match parked.of(&job.message) {
            None => Turn::Run,
            Some(State::Held(..)) => Turn::Wait,
            Some(State::Done(below)) if job.token.offset() < *below => Turn::Done,
            Some(State::Done(_)) => Turn::RunFreed,
            // The list is written after the letter of the message that parked it; what is below had been handled by then, or was
            // redriven since.
            Some(State::Parked(here))
                if job.token.offset() < here.key.redriven.0.max(here.key.offset + 1) =>
            {
                Turn::Done
            }
            Some(State::Parked(_)) => Turn::Follow,
        }
    }

    /// A lane has a head whose turn it is: true when it may run. Otherwise it follows, waits, or is done, and so are those
    /// behind it; the lane may be gone then.
    pub(super) fn may_run(&mut self, lane: usize) -> bool {
        loop {
            match self.turn(&self.lanes[lane]) {
                Turn::Run => return true,
                Turn::RunFreed => {
                    self.forget_done(lane);
                    return true;
                }
                Turn::Wait => {
                    self.lanes[lane].phase = Phase::Held;
                    return false;
                }
                Turn::Follow => {
                    self.follow(lane);
                    return false;
                }
                Turn::Done => {
                    self.shared.counters.skipped.fetch_add(1, Relaxed);
                    let Some(next) = self.lanes[lane].queue.pop_front() else {
                        self.advance(lane, Settlement::Finished);
                        return false;
                    };
                    let done = std::mem::replace(&mut self.lanes[lane].head, Head::new(next, self.now));
                    self.settle(done.job, Settlement::Finished);
                }
            }
        }
    }

    fn forget_done(&mut self, lane: usize) {
        let job = &self.lanes[lane].head.job;
        let (owned, key) = (job.token.owned(), job.message.key.clone());
        if let (Some(parked), Some(key)) = (self.parked_mut(owned), key) {
            parked.keys.remove(&key);
            parked.keeper.mention(Change::Forget { key });
        }
    }

    /// The head of a parked key goes to the dead-letter topic without a run.
    fn follow(&mut self, lane: usize) {
        let shared = self.shared.clone();
        let head = &self.lanes[lane].head;
        let owned = head.job.token.owned();
        let Some(tenure) = self.tenures[owned.slot.index()].as_ref() else { return };
        let Some(State::Parked(here)) =
            tenure.parked.as_ref().and_then(|parked| parked.of(&head.job.message))
        else {
            return;
        };
        if !tenure.lease.is_current(lane::now()) {
            self.wait_for_lease(lane);
            return;
        }
        let offset = head.job.token.offset();
        let origin = Origin {
            group: shared.config.group.clone(),
            partition: PartitionId::clone(&tenure.partition),
            offset,
            epoch: owned.epoch,
        };
        let why = Obituary::parked(&here.key);
        let letters = here.key.letters.clone();
        let (message, lease) = (head.job.message.clone(), tenure.lease.clone());
        let run = async move {
            let receipt = shared.publish_dead_letter(&letters.topic, &origin, &message, &why, lease).await;
            if receipt.partition != letters.partition {
                tracing::error!(partition = %origin.partition, offset, key = ?message.key, first = %letters,
                    now = receipt.partition, "the dead letters of a parked key are in two partitions, and a redrive will stop \
                    before it: the number of partitions of the dead-letter topic must not change");
            }
            Ended::Outcome(Outcome::Ack)
        };
        self.lanes[lane].phase = Phase::DeadLetter { since: self.now };
        self.push_run(lane, owned, Box::pin(run));
    }

    /// Whether the head of a lane is one that follows.
    pub(super) fn follows(&self, lane: usize) -> bool {
        !matches!(self.turn(&self.lanes[lane]), Turn::Run | Turn::RunFreed)
    }

    /// A letter that followed was not stored, for a reason that is none of the broker's.
    pub(super) fn follow_again(&mut self, lane: usize, error: Error) {
        tracing::error!(error = %error.chain(), "a message of a parked key could not follow; it is tried again");
        self.wait(lane, AGAIN);
    }

    /// A letter has its receipt, and its key is parked from now on.
    pub(super) fn parked_now(&mut self, owned: Owned, parked: ParkedKey) {
        tracing::warn!(group = %self.shared.config.group, key = %parked.key, offset = parked.offset,
            dead_letters = %parked.letters, "key parked: its messages go to the dead-letter topic until it is redriven");
        if let Some(here) = self.parked_mut(owned) {
            let (key, last) = (parked.key.clone(), Some(parked.offset));
            here.keys.insert(key, State::Parked(Box::new(Here { key: parked, last })));
        }
    }

    /// The letter of a head that follows has its receipt.
    pub(super) fn followed(&mut self, lane: usize) {
        self.shared.counters.parked.fetch_add(1, Relaxed);
        let job = &self.lanes[lane].head.job;
        let (owned, offset, key) = (job.token.owned(), job.token.offset(), job.message.key.clone());
        let state = key.and_then(|key| self.parked_mut(owned)?.keys.get_mut(&key));
        if let Some(State::Parked(here) | State::Held(here, _)) = state {
            here.last = Some(offset);
        }
    }

    /// No letter of this key is on its way any more.
    pub(super) fn letter_ended(&mut self, owned: Owned, key: Option<&Key>) {
        let Some(parked) = key.and_then(|key| self.parked_mut(owned)?.keys.get_mut(key)) else { return };
        if let State::Held(here, held) = parked
            && let Some(held) = held.take()
        {
            // A redrive that was cancelled does not wait any more.
            let _ = held.send(here.last);
        }
    }

    /// Holds a parked key. Whoever asks is not answered if that cannot be.
    pub(super) fn hold(&mut self, owned: Owned, key: &Key, held: oneshot::Sender<Option<u64>>) {
        let on_its_way = self.lanes.iter().any(|(_, lane)| {
            matches!(lane.phase, Phase::DeadLetter { .. })
                && lane.head.job.token.owned() == owned
                && lane.head.job.message.key.as_ref() == Some(key)
        });
        if self.tenure(owned).is_none_or(|tenure| tenure.ending) {
            return;
        }
        let Some(here) = self.parked_mut(owned) else { return };
        match here.keys.remove(key) {
            Some(State::Parked(parked)) => {
                let waits = if on_its_way {
                    Some(held)
                } else {
                    let _ = held.send(parked.last);
                    None
                };
                here.keys.insert(key.clone(), State::Held(parked, waits));
            }
            Some(other) => drop(here.keys.insert(key.clone(), other)),
            None => {}
        }
    }

    /// The redrive of a key has ended.
    pub(super) fn unhold(&mut self, owned: Owned, key: &Key, below: Option<u64>) {
        let Some(here) = self.parked_mut(owned) else { return };
        match (here.keys.remove(key), below) {
            (Some(_), Some(0)) => {}
            (Some(_), Some(below)) => drop(here.keys.insert(key.clone(), State::Done(below))),
            (Some(State::Held(parked, _)), None) => {
                here.keys.insert(key.clone(), State::Parked(parked));
            }
            (Some(other), None) => drop(here.keys.insert(key.clone(), other)),
            (None, _) => return,
        }
        let held = self.lanes.iter().find(|(_, lane)| {
            matches!(lane.phase, Phase::Held)
                && lane.head.job.token.owned() == owned
                && lane.head.job.message.key.as_ref() == Some(key)
        });
        if let Some((lane, _)) = held {
            self.make_ready(lane);
        }
    }

    /// Runs a dead letter of a key that is held, in a lane of its own.
    pub(super) fn redrive(&mut self, owned: Owned, letter: Letter, done: oneshot::Sender<bool>) {
        let Some(here) = self.tenure(owned).filter(|tenure| !tenure.ending).and_then(|t| t.parked.as_ref())
        else {
            return;
        };
        if !matches!(here.of(&letter.message), Some(State::Held(..))) {
            return;
        }
        let job = Job { token: Token::new(owned, letter.offset), message: letter.message, lane: None };
        let lane = self.new_lane(job, 0, Phase::Ready);
        self.lanes[lane].redrive =
            Some(Box::new(Redrive { place: letter.place, done: Some(done), handled: false }));
        self.make_ready(lane);
    }

    /// A redriven message was handled, or given up: that is written down before anything else happens to its key.
    pub(super) fn keep_redriven(&mut self, lane: usize, given_up: Option<&Error>) {
        let head = &self.lanes[lane].head;
        let (owned, offset, key) =
            (head.job.token.owned(), head.job.token.offset(), head.job.message.key.clone());
        let Some((keeper, key)) = self.parked(owned).map(|parked| parked.keeper.clone()).zip(key) else {
            debug_assert!(false, "only a parked key is redriven");
            return;
        };
        let Some(redrive) = &mut self.lanes[lane].redrive else { return };
        redrive.handled = given_up.is_none();
        let change = match given_up {
            None => Change::Redriven { key, offset, next_letter: redrive.place + 1 },
            Some(error) => Change::Stopped { key, letter: redrive.place, error: error.chain() },
        };
        self.lanes[lane].phase = Phase::Keeping { since: self.now };
        let run = async move {
            keeper.change(change).await;
            Ended::Outcome(Outcome::Ack)
        };
        self.push_run(lane, owned, Box::pin(run));
    }

    /// What became of a redriven message is written down.
    pub(super) fn kept_redriven(&mut self, lane: usize) {
        let Lane { head, redrive: Some(redrive), .. } = &mut self.lanes[lane] else { return };
        let (handled, done, next_letter) = (redrive.handled, redrive.done.take(), redrive.place + 1);
        let (owned, offset, key) =
            (head.job.token.owned(), head.job.token.offset(), head.job.message.key.clone());
        if handled {
            self.shared.counters.redriven.fetch_add(1, Relaxed);
            // If the redrive stops behind it, the source may yet deliver it: from an owner before this one.
            let state = key.and_then(|key| self.parked_mut(owned)?.keys.get_mut(&key));
            if let Some(State::Held(here, _)) = state {
                here.key.advance(offset, next_letter);
            }
        }
        self.advance(lane, Settlement::Finished);
        if let Some(done) = done {
            // A redrive that was cancelled does not wait any more.
            let _ = done.send(handled);
        }
    }
}

/// Why a message that could be a dead letter is none.
pub(super) fn no_place(full: String, error: Error) -> Error {
    let message = format!("{full}; so this message waits: redrive some");
    Error::new(ErrorKind::Overloaded, message).with_source(error)
}
