//! Which partitions a source owns, under which epoch, and what of each may be committed (G1, G3, G6).
//!
//! The one place where a token of a former ownership is found void, where an inherited finished set enters a ledger, and
//! where it is decided what a commit says. A source calls it from its own task; nothing here waits.

use std::collections::HashMap;

use crate::{
    Assigned, Epoch, Full, Lease, Ledger, LedgerLimits, Owned, PartitionId, Position, Refused, Settlement,
    Slot, SourceEvent, Token, Tracked,
};

/// The partitions of one source.
#[derive(Debug)]
pub struct Ownership {
    limits: LedgerLimits,
    slots: Vec<SlotState>,
    by_partition: HashMap<PartitionId, Slot>,
    /// Those whose next message had no room when it was to be read.
    full: Vec<Held>,
    stale: u64,
}

/// A message that waits for room in its ledger.
#[derive(Debug)]
struct Held {
    owned: Owned,
    offset: u64,
    told: bool,
}

#[derive(Debug)]
struct SlotState {
    partition: PartitionId,
    /// The last epoch that this source gave out for the partition.
    epoch: Epoch,
    /// What it owns now, if it does.
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    ledger: Ledger,
    /// Something finished since the last snapshot for a commit.
    dirty: bool,
    /// A commit of this partition has no answer yet.
    committing: bool,
    /// Somebody waits for a commit of what is settled.
    asked: bool,
    /// Somebody waits for the one that has no answer yet.
    awaited: bool,
}

/// What a batch of settlements came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settled {
    /// Finished.
    pub finished: usize,
    /// Given up unfinished.
    pub dropped: usize,
    /// Void: tokens of an ownership that has ended, or of a message that was finished before.
    pub stale: usize,
}

impl Ownership {
    /// Owns nothing yet.
    pub fn new(limits: LedgerLimits) -> Self {
        Self { limits, slots: Vec::new(), by_partition: HashMap::new(), full: Vec::new(), stale: 0 }
    }

    /// Takes `partition` over at `position` under `epoch`, or under the next epoch after the last one of this source if
    /// that is higher. A former ownership of it that is still there ends.
    pub fn assign(
        &mut self,
        partition: PartitionId,
        epoch: Epoch,
        position: &Position,
        lease: Lease,
    ) -> Assigned {
        let slot = *self.by_partition.entry(partition.clone()).or_insert_with(|| {
            let slot =
                Slot(u32::try_from(self.slots.len()).expect("fewer than 2^32 partitions were ever owned"));
            self.slots.push(SlotState { partition: partition.clone(), epoch: Epoch(0), current: None });
            slot
        });
        let state = &mut self.slots[slot.index()];
        state.epoch = epoch.max(state.epoch.next());
        state.current = Some(Current {
            ledger: Ledger::new(position, self.limits),
            dirty: false,
            committing: false,
            asked: false,
            awaited: false,
        });
        Assigned { owned: Owned { slot, epoch: state.epoch }, partition, lease }
    }

    /// Ends an ownership: released or lost. False, and counted, when it has ended before.
    pub fn end(&mut self, owned: Owned) -> bool {
        let ended = self.is_current(owned);
        if ended {
            self.slots[owned.slot.index()].current = None;
        } else {
            self.stale += 1;
        }
        ended
    }

    /// Whether this ownership is the present one.
    pub fn is_current(&self, owned: Owned) -> bool {
        self.current(owned).is_some()
    }

    fn current(&self, owned: Owned) -> Option<&Current> {
        let state = self.slots.get(owned.slot.index())?;
        state.current.as_ref().filter(|_| state.epoch == owned.epoch)
    }

    fn current_mut(&mut self, owned: Owned) -> Option<&mut Current> {
        let state = self.slots.get_mut(owned.slot.index())?;
        state.current.as_mut().filter(|_| state.epoch == owned.epoch)
    }

    /// Whether the next message of this partition, at `offset`, may be read now. False when it is not owned.
    pub fn has_room(&self, owned: Owned, offset: u64) -> bool {
        self.current(owned).is_some_and(|current| current.ledger.has_room(offset))
    }

    /// Why the next message of this partition, at `offset`, may not be read now; `None` when it may, or when it is not owned.
    pub fn full(&self, owned: Owned, offset: u64) -> Option<Full> {
        self.current(owned)?.ledger.full(offset)
    }

    /// The next message of this partition, at `offset`, was there and may not be read now: to be told by
    /// [`full_changes`](Self::full_changes).
    pub fn hold(&mut self, owned: Owned, offset: u64) {
        match self.full.iter_mut().find(|held| held.owned == owned) {
            Some(held) => held.offset = offset,
            None => self.full.push(Held { owned, offset, told: false }),
        }
    }

    /// What is to be told of partitions whose next message has no room, or has room again: a
    /// [`Full`](crate::SourceEvent::Full). `None` when nothing changed since the last one. To be asked after what may be read was
    /// read.
    pub fn full_changes(&mut self) -> Option<SourceEvent> {
        if self.full.is_empty() {
            return None;
        }
        let (mut full, mut freed) = (Vec::new(), Vec::new());
        let mut all = std::mem::take(&mut self.full);
        all.retain_mut(|held| {
            let Some(current) = self.current(held.owned) else { return false };
            let waits = held.offset >= current.ledger.read_to().0;
            let is_full = waits && !current.ledger.has_room(held.offset);
            if is_full && !held.told {
                full.push(held.owned);
            }
            if !is_full && held.told {
                freed.push(held.owned);
            }
            held.told = is_full;
            is_full
        });
        self.full = all;
        (!full.is_empty() || !freed.is_empty()).then_some(SourceEvent::Full { full, freed })
    }

    /// Takes up a message that was read: `Some` is the token to hand it on with, `None` that a former owner finished it.
    ///
    /// # Errors
    /// `Refused` when the partition is not owned under this epoch, or the offset is not above all that were read.
    pub fn track(&mut self, owned: Owned, offset: u64) -> Result<Option<Token>, Refused> {
        let current = self.current_mut(owned).ok_or(Refused { offset })?;
        match current.ledger.track(offset)? {
            Tracked::Deliver => Ok(Some(Token::new(owned, offset))),
            Tracked::FinishedBefore => {
                current.dirty = true;
                Ok(None)
            }
        }
    }

    /// Takes settlements in, and empties `batch`. A token of an ownership that has ended is void, and counted.
    pub fn settle(&mut self, batch: &mut Vec<(Token, Settlement)>) -> Settled {
        let mut settled = Settled::default();
        for (token, settlement) in batch.drain(..) {
            let Some(current) = self.current_mut(token.owned()) else {
                settled.stale += 1;
                continue;
            };
            match settlement {
                Settlement::Dropped => settled.dropped += 1,
                Settlement::Finished if current.ledger.finish(token.offset()) => {
                    current.dirty = true;
                    settled.finished += 1;
                }
                Settlement::Finished => settled.stale += 1,
            }
        }
        self.stale += settled.stale as u64;
        settled
    }

    /// What to commit now, from one snapshot: `None` when nothing changed, the last commit has no answer yet, or the
    /// partition is not owned. Answer it by [`commit_done`](Self::commit_done).
    pub fn begin_commit(&mut self, owned: Owned) -> Option<Position> {
        let current = self.current_mut(owned)?;
        if !current.dirty || current.committing {
            return None;
        }
        current.dirty = false;
        current.committing = true;
        current.awaited = std::mem::take(&mut current.asked);
        Some(current.ledger.position())
    }

    /// The answer to the last [`begin_commit`](Self::begin_commit): what was refused is committed again. True when it is
    /// [`Committed`](crate::SourceEvent::Committed) to somebody who [asked](Self::ask_commit).
    #[must_use = "somebody may wait for it"]
    pub fn commit_done(&mut self, owned: Owned, accepted: bool) -> bool {
        let Some(current) = self.current_mut(owned) else { return false };
        let awaited = std::mem::take(&mut current.awaited);
        current.committing = false;
        current.dirty |= !accepted;
        current.asked |= awaited && !accepted;
        // Who asked again meanwhile waits for the next one.
        awaited && !current.asked
    }

    /// Somebody waits for a commit of what is settled by now. True when there is nothing to wait for: all of it is committed.
    #[must_use = "somebody waits for it"]
    pub fn ask_commit(&mut self, owned: Owned) -> bool {
        let Some(current) = self.current_mut(owned) else { return false };
        current.asked = current.dirty || current.committing;
        !current.asked
    }

    /// Whether somebody waits for a commit that has not begun: not to be put off until the next interval.
    pub fn is_asked(&self, owned: Owned) -> bool {
        self.current(owned).is_some_and(|current| current.asked)
    }

    /// Whether something finished that no accepted commit says.
    pub fn has_uncommitted(&self, owned: Owned) -> bool {
        self.current(owned).is_some_and(|current| current.dirty || current.committing)
    }

    /// The ledger of a partition that is owned.
    pub fn ledger(&self, owned: Owned) -> Option<&Ledger> {
        self.current(owned).map(|current| &current.ledger)
    }

    /// The partition of a slot.
    pub fn partition(&self, slot: Slot) -> Option<&PartitionId> {
        self.slots.get(slot.index()).map(|state| &state.partition)
    }

    /// The present ownership of a partition.
    pub fn find(&self, partition: &PartitionId) -> Option<Owned> {
        let slot = *self.by_partition.get(partition)?;
        let state = &self.slots[slot.index()];
        state.current.as_ref().map(|_| Owned { slot, epoch: state.epoch })
    }

    /// All that is owned now.
    pub fn iter(&self) -> impl Iterator<Item = (Owned, &PartitionId)> {
        self.slots.iter().enumerate().filter_map(|(index, state)| {
            state.current.as_ref()?;
            Some((Owned { slot: Slot(index as u32), epoch: state.epoch }, &state.partition))
        })
    }

    /// Settlements and releases that were void since the source began.
    pub fn stale(&self) -> u64 {
        self.stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NextOffset, Topic};

    fn partition() -> PartitionId {
        PartitionId::new(Topic::new("orders").expect("legal"), 0)
    }

    fn take(ownership: &mut Ownership, owned: Owned, offset: u64) -> Token {
        ownership.track(owned, offset).expect("ascending").expect("not finished")
    }

    #[test]
    fn p3_a_token_of_a_former_epoch_is_void_and_counted() {
        let mut ownership = Ownership::new(LedgerLimits::default());
        let first = ownership.assign(partition(), Epoch(1), &Position::default(), Lease::unlimited()).owned;
        let old = take(&mut ownership, first, 0);
        assert!(ownership.end(first));
        let second = ownership.assign(partition(), Epoch(2), &Position::default(), Lease::unlimited()).owned;
        let new = take(&mut ownership, second, 0);
        let settled = ownership.settle(&mut vec![(old, Settlement::Finished)]);
        assert_eq!((settled.finished, settled.stale, ownership.stale()), (0, 1, 1));
        assert_eq!(ownership.ledger(second).map(Ledger::watermark), Some(NextOffset(0)));
        assert_eq!(ownership.settle(&mut vec![(new, Settlement::Finished)]).finished, 1);
        assert_eq!(ownership.ledger(second).map(Ledger::watermark), Some(NextOffset(1)));
        assert!(!ownership.end(first), "ended before");
    }

    #[test]
    fn p3_epochs_grow_in_one_process_whatever_the_backend_says() {
        let mut ownership = Ownership::new(LedgerLimits::default());
        let first = ownership.assign(partition(), Epoch(5), &Position::default(), Lease::unlimited()).owned;
        let second = ownership.assign(partition(), Epoch(5), &Position::default(), Lease::unlimited()).owned;
        assert_eq!(first.slot, second.slot);
        assert!(second.epoch > first.epoch);
        assert!(!ownership.is_current(first));
    }

    #[test]
    fn p5_a_full_partition_is_told_once_and_once_more_when_it_has_room() {
        let mut ownership = Ownership::new(LedgerLimits::default().with_max_span(2));
        let owned = ownership.assign(partition(), Epoch(1), &Position::default(), Lease::unlimited()).owned;
        let told = |ownership: &mut Ownership| match ownership.full_changes() {
            Some(SourceEvent::Full { full, freed }) => Some((full, freed)),
            other => other.map(|_| panic!("another event")),
        };
        let first = take(&mut ownership, owned, 0);
        let second = take(&mut ownership, owned, 1);
        assert_eq!(told(&mut ownership), None, "nobody wanted to read on");
        ownership.hold(owned, 2);
        assert_eq!(told(&mut ownership), Some((vec![owned], vec![])));
        ownership.hold(owned, 2);
        assert_eq!(told(&mut ownership), None, "said before");
        // One finishes, the next one is read, and there is no room again.
        ownership.settle(&mut vec![(first, Settlement::Finished)]);
        let third = take(&mut ownership, owned, 2);
        ownership.hold(owned, 3);
        assert_eq!(told(&mut ownership), None, "full as before");
        ownership.settle(&mut vec![(second, Settlement::Finished)]);
        let fourth = take(&mut ownership, owned, 3);
        assert_eq!(told(&mut ownership), Some((vec![], vec![owned])), "nothing more is there");
        assert_eq!(told(&mut ownership), None);
        ownership.settle(&mut vec![(third, Settlement::Finished)]);
        ownership.hold(owned, 4);
        assert_eq!(told(&mut ownership), None, "it has room");
        let fifth = take(&mut ownership, owned, 4);
        ownership.hold(owned, 5);
        assert_eq!(told(&mut ownership), Some((vec![owned], vec![])));
        assert!(ownership.end(owned));
        assert_eq!(told(&mut ownership), None, "what has ended is neither");
        drop((fourth, fifth));
    }

    #[test]
    fn p1_what_is_dropped_stays_unfinished() {
        let mut ownership = Ownership::new(LedgerLimits::default());
        let owned = ownership.assign(partition(), Epoch(1), &Position::default(), Lease::unlimited()).owned;
        let token = take(&mut ownership, owned, 0);
        assert_eq!(ownership.settle(&mut vec![(token, Settlement::Dropped)]).dropped, 1);
        assert_eq!(ownership.begin_commit(owned), None);
        assert_eq!(ownership.ledger(owned).map(Ledger::watermark), Some(NextOffset(0)));
    }

    #[test]
    fn p6_one_commit_at_a_time_and_a_refused_one_is_made_again() {
        let mut ownership = Ownership::new(LedgerLimits::default());
        let owned = ownership.assign(partition(), Epoch(1), &Position::default(), Lease::unlimited()).owned;
        assert_eq!(ownership.begin_commit(owned), None, "nothing changed");
        let tokens = [take(&mut ownership, owned, 0), take(&mut ownership, owned, 1)];
        let [first, second] = tokens;
        ownership.settle(&mut vec![(first, Settlement::Finished)]);
        assert_eq!(ownership.begin_commit(owned), Some(Position::at(NextOffset(1))));
        ownership.settle(&mut vec![(second, Settlement::Finished)]);
        assert_eq!(ownership.begin_commit(owned), None, "one is in flight");
        assert!(ownership.has_uncommitted(owned));
        assert!(!ownership.commit_done(owned, false), "nobody asked");
        assert_eq!(ownership.begin_commit(owned), Some(Position::at(NextOffset(2))));
        assert!(!ownership.commit_done(owned, true), "nobody asked");
        assert!(!ownership.has_uncommitted(owned));
    }

    #[test]
    fn p1_who_asks_is_answered_by_an_accepted_commit_that_covers_what_was_settled() {
        let mut ownership = Ownership::new(LedgerLimits::default());
        let owned = ownership.assign(partition(), Epoch(1), &Position::default(), Lease::unlimited()).owned;
        assert!(ownership.ask_commit(owned), "nothing is to be committed");
        let [first, second, third] = [0, 1, 2].map(|offset| take(&mut ownership, owned, offset));
        ownership.settle(&mut vec![(first, Settlement::Finished)]);
        assert!(ownership.begin_commit(owned).is_some(), "by the interval");
        ownership.settle(&mut vec![(second, Settlement::Finished)]);
        assert!(!ownership.ask_commit(owned));
        assert!(!ownership.commit_done(owned, true), "that one does not cover the second");
        assert!(ownership.is_asked(owned));
        assert_eq!(ownership.begin_commit(owned), Some(Position::at(NextOffset(2))));
        assert!(!ownership.is_asked(owned), "it is on its way");
        assert!(!ownership.commit_done(owned, false), "refused");
        assert!(ownership.is_asked(owned));
        assert!(ownership.begin_commit(owned).is_some());
        ownership.settle(&mut vec![(third, Settlement::Finished)]);
        assert!(!ownership.ask_commit(owned));
        assert!(!ownership.commit_done(owned, true), "asked again meanwhile, for more");
        assert_eq!(ownership.begin_commit(owned), Some(Position::at(NextOffset(3))));
        assert!(ownership.commit_done(owned, true));
        assert!(!ownership.is_asked(owned) && ownership.ask_commit(owned));
        let next = ownership.assign(partition(), Epoch(2), &Position::default(), Lease::unlimited()).owned;
        assert!(!ownership.ask_commit(owned), "that ownership has ended");
        assert!(!ownership.commit_done(owned, true) && !ownership.is_asked(next));
    }
}

#[cfg(test)]
#[path = "ownership_tests.rs"]
mod naive;
