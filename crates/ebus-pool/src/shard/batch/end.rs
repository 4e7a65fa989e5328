//! What follows a batch's end: each lane goes on, or stays at its first message that failed, by itself (G1, G2, G4).

use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use ebus_core::{BatchOutcome, Error, ErrorKind, Failures, Outcome, Settlement};
use futures_util::StreamExt;

use super::Member;
use crate::lane::{Head, now};
use crate::retry::Verdict;
use crate::run::RunEnd;
use crate::runner::Ended;
use crate::shard::{Pass, Shard};

impl Shard {
    /// Looks which batches have ended.
    pub(in crate::shard) fn end_batches(&mut self, pass: &mut Pass, cx: &mut Context<'_>) {
        while !self.batch_runs.is_empty() && !pass.enough && !pass.closed {
            let Poll::Ready(Some(RunEnd { whose, ended })) = self.batch_runs.poll_next_unpin(cx) else {
                return;
            };
            self.credit += 1;
            self.batch_ended(whose, ended);
            pass.progress = true;
            pass.enough = self.pace.called(self.index);
        }
    }

    /// A batch came to this; `None` when it was cancelled.
    pub(super) fn batch_ended(&mut self, members: Vec<Member>, ended: Option<Ended<BatchOutcome>>) {
        match ended {
            Some(Ended::Outcome(BatchOutcome::Each(failures))) => self.sort_out(&members, failures),
            Some(Ended::Outcome(BatchOutcome::Retry { after, error })) => {
                self.nobody_named(&members, || {
                    Ended::Outcome(Outcome::Retry { after, error: error.clone() })
                });
            }
            Some(Ended::Panicked(error)) => {
                if !is_alone(&members) {
                    self.shared.counters.panics.fetch_add(1, Relaxed);
                }
                self.nobody_named(&members, || Ended::Panicked(error.clone()));
            }
            // A batch is no dead letter.
            None | Some(Ended::Parked(_)) => {
                members.iter().for_each(|member| self.member_ended(*member, Self::cancelled));
            }
        }
    }

    /// Takes it apart by lane: each goes on to its first message that was named.
    fn sort_out(&mut self, members: &[Member], failures: Failures) {
        let messages: usize = members.iter().map(|member| member.messages).sum();
        let mut failures = failures.into_vec();
        failures.sort_by_key(|(place, _)| *place);
        if let Some((place, _)) = failures.last().filter(|(place, _)| *place >= messages) {
            let message = format!(
                "the handler named message {place} of a batch of {messages}; places are those in its argument, from 0"
            );
            let error = Error::new(ErrorKind::Handler, message).with_operation("handle");
            let outcome = || Ended::Outcome(Outcome::Retry { after: None, error: error.clone() });
            return self.nobody_named(members, outcome);
        }
        let mut failures = failures.into_iter().peekable();
        let mut first = 0;
        for member in members {
            let next = first + member.messages;
            let failed = failures.next_if(|(place, _)| *place < next);
            // What is named behind the first of its lane has not begun.
            while failures.next_if(|(place, _)| *place < next).is_some() {}
            self.member_ended(*member, |shard, member| match failed {
                None => shard.finish(member.lane, member.messages),
                Some((place, outcome)) => {
                    let ended = Ended::Outcome(outcome);
                    shard.member_failed(member, place - first, |shard, lane| {
                        shard.head_ended(lane, Some(ended));
                    });
                }
            });
            first = next;
        }
    }

    /// A batch failed, and nobody knows by whom: each is tried alone before anything is held against it, so that one that
    /// cannot be handled takes others with it once.
    fn nobody_named(&mut self, members: &[Member], ended: impl Fn() -> Ended) {
        let alone = is_alone(members);
        for member in members {
            self.member_ended(*member, |shard, member| {
                shard.member_failed(member, 0, |shard, lane| {
                    if alone {
                        return shard.head_ended(lane, Some(ended()));
                    }
                    shard.lanes[lane].alone = member.messages;
                    match ended() {
                        Ended::Outcome(Outcome::Retry { after, error }) => {
                            shard.failed_in_company(lane, error, after);
                        }
                        Ended::Panicked(error) => shard.failed_in_company(lane, error, None),
                        Ended::Outcome(_) | Ended::Parked(_) => {}
                    }
                });
            });
        }
    }

    /// One lane's part in the end of its batch.
    fn member_ended(&mut self, member: Member, how: impl FnOnce(&mut Self, Member)) {
        let owned = self.lanes[member.lane].head.job.token.owned();
        if let Some(tenure) = self.tenure(owned) {
            tenure.running -= 1;
        }
        how(self, member);
        self.end_if_over(owned);
    }

    /// The first `done` of a lane's messages are handled, and the next one has failed.
    fn member_failed(&mut self, member: Member, done: usize, how: impl FnOnce(&mut Self, usize)) {
        let Member { lane, messages } = member;
        for _ in 0..done {
            self.next_head(lane, Settlement::Finished);
        }
        self.handled += done as u64;
        if done > 0 {
            self.lanes[lane].head.attempts = 1;
        }
        self.drop_the_rest(lane, messages - done - 1);
        how(self, lane);
    }

    /// A batch was cancelled, because of this lane's partition or of another one's.
    fn cancelled(&mut self, member: Member) {
        let owned = self.lanes[member.lane].head.job.token.owned();
        if self.drop_the_rest(member.lane, member.messages - 1) {
            return self.head_ended(member.lane, None);
        }
        debug_assert!(self.tenure(owned).is_some(), "a tenure is there until its runs have ended");
        self.shared.counters.cancelled.fetch_add(1, Relaxed);
        // Another partition's end is no attempt of this message.
        self.lanes[member.lane].head.attempts -= 1;
        self.make_ready(member.lane);
    }

    /// What of an ending ownership stood in a batch behind a head that is not done has not begun: it is the next owner's.
    /// Whether the ownership ends.
    fn drop_the_rest(&mut self, lane: usize, rest: usize) -> bool {
        let owned = self.lanes[lane].head.job.token.owned();
        let ending = self.tenure(owned).is_none_or(|tenure| tenure.ending);
        if ending {
            for _ in 0..rest {
                if let Some(job) = self.lanes[lane].queue.pop_front() {
                    self.settle(job, Settlement::Dropped);
                }
            }
        }
        ending
    }

    fn failed_in_company(&mut self, lane: usize, error: Error, after: Option<std::time::Duration>) {
        let owned = self.lanes[lane].head.job.token.owned();
        if self.tenure(owned).is_none_or(|tenure| tenure.ending) {
            return self.leave(lane, |left| &mut left.failing);
        }
        self.note_failure(lane, error.clone());
        let policy = &self.shared.config.retry;
        let head = &mut self.lanes[lane].head;
        let Some(failure) = head.failure.as_mut() else { return };
        let elapsed = now().saturating_duration_since(failure.since);
        let delay = match failure.retries.next(policy, &error, head.attempts, elapsed, after) {
            Verdict::Retry(delay) => delay,
            // Not for what may be another's failure.
            Verdict::GiveUp(_) => failure.retries.patiently(policy),
        };
        self.retry(lane, delay);
    }

    /// So many messages of a lane are handled.
    fn finish(&mut self, lane: usize, messages: usize) {
        self.handled += messages as u64 - 1;
        for _ in 1..messages {
            self.next_head(lane, Settlement::Finished);
        }
        self.head_ended(lane, Some(Ended::Outcome(Outcome::Ack)));
    }

    /// Settles the head of a lane that has more, within a batch.
    fn next_head(&mut self, lane: usize, settlement: Settlement) {
        let at = self.now;
        let lane = &mut self.lanes[lane];
        let Some(next) = lane.queue.pop_front() else {
            return debug_assert!(false, "what is in a batch stands in its lane");
        };
        lane.alone = lane.alone.saturating_sub(1);
        let done = std::mem::replace(&mut lane.head, Head::new(next, at));
        self.settle(done.job, settlement);
    }
}

fn is_alone(members: &[Member]) -> bool {
    matches!(members, [Member { messages: 1, .. }])
}
