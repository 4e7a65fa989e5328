//! What follows a run's end: settle, retry in the lane, dead letter, or leave it to the next owner (G1, G2, G4, G8).

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ebus_core::{Error, Outcome, PartitionId, Settlement, Timestamp};

use super::Shard;
use super::parked::no_place;
use crate::dead_letter::{Obituary, Origin};
use crate::jobs::{Job, LeftInShard};
use crate::lane::{self, Failure, Head, Phase};
use crate::parked::{Change, ParkedKey};
use crate::retry::{Retries, Verdict};
use crate::run::{OfLane, RunEnd};
use crate::runner::Ended;

impl Shard {
    /// A run of the set ended: its slot is free, its tenure may be over.
    pub(super) fn run_ended(&mut self, end: RunEnd) {
        let OfLane { lane, owned } = end.whose;
        let mut letter_of = None;
        match self.lanes[lane].phase {
            Phase::Running { .. } => self.credit += 1,
            Phase::DeadLetter { .. } => letter_of = self.lanes[lane].head.job.message.key.clone(),
            _ => {}
        }
        if let Some(tenure) = self.tenure(owned) {
            tenure.running -= 1;
        }
        self.head_ended(lane, end.ended);
        self.letter_ended(owned, letter_of.as_ref());
        self.end_if_over(owned);
    }

    /// The head's run came to this; `None` when it was cancelled.
    pub(super) fn head_ended(&mut self, lane: usize, ended: Option<Ended>) {
        let owned = self.lanes[lane].head.job.token.owned();
        let ending = self.tenure(owned).is_none_or(|tenure| tenure.ending);
        match ended {
            None => {
                self.shared.counters.cancelled.fetch_add(1, Relaxed);
                self.leave(lane, |left| &mut left.cancelled);
            }
            Some(Ended::Outcome(Outcome::Ack)) => match self.lanes[lane].phase {
                Phase::DeadLetter { .. } => {
                    self.shared.counters.dead_letters.fetch_add(1, Relaxed);
                    if self.lanes[lane].head.attempts == 0 {
                        self.followed(lane);
                    }
                    self.advance(lane, Settlement::Finished);
                }
                Phase::Keeping { .. } => self.kept_redriven(lane),
                _ if self.lanes[lane].redrive.is_some() => self.keep_redriven(lane, None),
                _ => {
                    self.handled += 1;
                    self.advance(lane, Settlement::Finished);
                }
            },
            Some(Ended::Parked(parked)) => {
                self.shared.counters.dead_letters.fetch_add(1, Relaxed);
                self.parked_now(owned, *parked);
                self.advance(lane, Settlement::Finished);
            }
            Some(Ended::Outcome(Outcome::Reject { error })) => self.give_up(lane, error, "rejected"),
            Some(Ended::Outcome(Outcome::Retry { after, error })) => self.failed(lane, error, after, ending),
            Some(Ended::Panicked(error)) => {
                self.shared.counters.panics.fetch_add(1, Relaxed);
                self.failed(lane, error, None, ending);
            }
        }
    }

    pub(super) fn failed(&mut self, lane: usize, error: Error, after: Option<Duration>, ending: bool) {
        if self.shared.config.runs_once() {
            return self.give_up(lane, error, "failed");
        }
        if ending {
            self.leave(lane, |left| &mut left.failing);
            return;
        }
        if self.follows(lane) {
            return self.follow_again(lane, error);
        }
        self.note_failure(lane, error.clone());
        let head = &mut self.lanes[lane].head;
        let Some(failure) = head.failure.as_mut() else { return };
        let elapsed = lane::now().saturating_duration_since(failure.since);
        match failure.retries.next(&self.shared.config.retry, &error, head.attempts, elapsed, after) {
            Verdict::Retry(delay) => self.retry(lane, delay),
            Verdict::GiveUp(reason) => self.give_up(lane, error, reason),
        }
    }

    pub(super) fn retry(&mut self, lane: usize, delay: Duration) {
        self.shared.counters.retries.fetch_add(1, Relaxed);
        self.wait(lane, delay);
    }

    pub(super) fn note_failure(&mut self, lane: usize, error: Error) {
        let head = &mut self.lanes[lane].head;
        let now = Timestamp::now();
        match &mut head.failure {
            Some(failure) => {
                failure.last = now;
                failure.error = error;
            }
            None => {
                head.failure = Some(Box::new(Failure {
                    first: now,
                    last: now,
                    since: self.now,
                    error,
                    retries: Retries::default(),
                }));
            }
        }
    }

    /// No further attempt: to the dead-letter topic, or dropped if the user asked for it, or kept if he did neither.
    pub(super) fn give_up(&mut self, lane: usize, error: Error, reason: &'static str) {
        let shared = self.shared.clone();
        let config = &shared.config;
        if let Some(asked) = config.drops() {
            let job = &self.lanes[lane].head.job;
            let partition =
                self.tenures[job.token.owned().slot.index()].as_ref().map(|tenure| tenure.partition.clone());
            tracing::warn!(group = %config.group, partition = ?partition, offset = job.token.offset(), reason,
                error = %error.chain(), "message dropped, as {asked} asks");
            self.shared.counters.dropped.fetch_add(1, Relaxed);
            self.advance(lane, Settlement::Finished);
            return;
        }
        if self.lanes[lane].redrive.is_some() {
            self.note_failure(lane, error.clone());
            return self.keep_redriven(lane, Some(&error));
        }
        let Some((topic, _)) = &config.dead_letter else {
            return self.be_patient(lane, error);
        };
        let head = &self.lanes[lane].head;
        let (owned, offset) = (head.job.token.owned(), head.job.token.offset());
        let Some(tenure) = self.tenures[owned.slot.index()].as_ref() else {
            debug_assert!(false, "a head that is given up has a tenure");
            return;
        };
        if !tenure.lease.is_current(lane::now()) {
            // Somebody else may have handled it by now. If the lease is renewed, it runs once more before it is given up.
            if tenure.ending {
                self.leave(lane, |left| &mut left.failing);
            } else {
                self.note_failure(lane, error);
                self.wait_for_lease(lane);
            }
            return;
        }
        let mut parks = None;
        if let (Some(parked), Some(key)) = (&tenure.parked, &head.job.message.key) {
            match parked.keeper.take(key, topic) {
                Ok(place) => parks = Some((parked.keeper.clone(), key.clone(), place)),
                Err(full) => {
                    tracing::warn!(group = %config.group, partition = %tenure.partition, offset, %key, full,
                        "no place to park a key: its message is retried; redrive some");
                    return self.be_patient(lane, no_place(full, error));
                }
            }
        }
        let origin = Origin {
            group: config.group.clone(),
            partition: PartitionId::clone(&tenure.partition),
            offset,
            epoch: owned.epoch,
        };
        let (message, lease) = (head.job.message.clone(), tenure.lease.clone());
        self.note_failure(lane, error);
        let head = &self.lanes[lane].head;
        let Some(failure) = &head.failure else { return };
        let why = Obituary {
            reason,
            error: failure.error.clone(),
            attempts: head.attempts,
            first_failed: failure.first,
            last_failed: failure.last,
        };
        let (shared, topic) = (shared.clone(), topic.clone());
        let run = async move {
            let receipt = shared.publish_dead_letter(&topic, &origin, &message, &why, lease).await;
            let Some((keeper, key, place)) = parks else { return Ended::Outcome(Outcome::Ack) };
            let letters = PartitionId::new(receipt.topic, receipt.partition);
            let error = why.error.chain();
            let home = origin.partition.clone();
            let parked = ParkedKey::new(
                key,
                home,
                (offset, origin.epoch),
                letters,
                receipt.offset,
                why.last_failed,
                &error,
            );
            // Before the message is settled: its next owner must know.
            keeper.change(Change::Park(parked.clone(), place)).await;
            Ended::Parked(Box::new(parked))
        };
        self.lanes[lane].phase = Phase::DeadLetter { since: self.now };
        self.push_run(lane, owned, Box::pin(run));
    }

    /// There is no place for a message that is given up: it is retried for ever, and listed as stuck.
    fn be_patient(&mut self, lane: usize, error: Error) {
        let owned = self.lanes[lane].head.job.token.owned();
        if self.tenure(owned).is_none_or(|tenure| tenure.ending) {
            self.leave(lane, |left| &mut left.failing);
            return;
        }
        self.note_failure(lane, error);
        let failure = self.lanes[lane].head.failure.as_mut();
        let delay = failure.map(|failure| failure.retries.patiently(&self.shared.config.retry));
        self.retry(lane, delay.unwrap_or_default());
    }

    /// The head stays unfinished, and the next owner gets it.
    pub(super) fn leave(&mut self, lane: usize, which: impl FnOnce(&mut LeftInShard) -> &mut usize) {
        let owned = self.lanes[lane].head.job.token.owned();
        let settled = self.lanes[lane].is_ahead();
        // A dead letter that is redriven is nothing that the source delivered.
        if self.lanes[lane].redrive.is_none()
            && let Some(tenure) = self.tenure(owned)
        {
            *which(&mut tenure.left) += 1;
            tenure.left.settled += usize::from(settled);
        }
        self.advance(lane, Settlement::Dropped);
    }

    /// Settles the head and goes on to the next of the lane.
    pub(super) fn advance(&mut self, lane: usize, settlement: Settlement) {
        if self.lanes[lane].is_ahead() {
            return self.advance_ahead(lane);
        }
        match self.lanes[lane].queue.pop_front() {
            Some(next) => {
                self.lanes[lane].alone = self.lanes[lane].alone.saturating_sub(1);
                let done = std::mem::replace(&mut self.lanes[lane].head, Head::new(next, self.now));
                self.settle(done.job, settlement);
                self.make_ready(lane);
            }
            None => {
                let done = self.lanes.remove(lane);
                self.spare_queues.keep(done.queue);
                if let Some(key) = done.key {
                    self.by_key.remove(&key);
                }
                if done.redrive.is_none() {
                    self.settle(done.head.job, settlement);
                }
            }
        }
    }

    pub(super) fn settle(&mut self, job: Job, settlement: Settlement) {
        self.outcomes.push(job.token, job.message.byte_len(), settlement);
    }
}
