//! How a source comes to own partitions (G3): it looks at the records that may be for it, and claims those that are free.
//!
//! A record is free when it was released, or when its owner did not write it for a whole lease. Whatever the shares say,
//! only the compare-and-set of the claim decides.

use std::time::Duration;

use ebus_core::{Error, ErrorKind, Lease, SourceEvent};
use tokio::time::Instant;

use crate::consumer;
use crate::group::{Claimed, Seen};
use crate::own::TOPIC_RETRY;
use crate::part::{Holding, Leaving, Part, PartState, Reading};
use crate::source::{Done, NatsSource};
use crate::stream as topics;
use crate::watch::Watch;

/// Looks and claims that are under way at once.
const CONCURRENCY: usize = 32;
/// The longest time between two looks at a record that may be for this member.
const LONGEST_LOOK: Duration = Duration::from_millis(500);

impl NatsSource {
    /// How often a record that may be for this member is looked at.
    pub(crate) fn look_every(&self) -> Duration {
        (self.member.lease / 20).min(LONGEST_LOOK)
    }

    pub(crate) fn tick_seeking(&mut self, at: usize, now: Instant, next: &mut Instant) {
        let Part { id, wanted, state: PartState::Seeking(seeking), .. } = &mut self.parts[at] else { return };
        if !*wanted || seeking.busy || !seeking.looking {
            return;
        }
        if seeking.next_look > now {
            *next = (*next).min(seeking.next_look);
            return;
        }
        if self.seeking >= CONCURRENCY {
            return; // the end of any of them is a reason to come back
        }
        self.seeking += 1;
        seeking.busy = true;
        let (member, id) = (self.member.clone(), id.clone());
        self.jobs.push(Box::pin(async move { Done::Looked(at, member.look(&id.topic, id.partition).await) }));
    }

    pub(crate) fn looked(&mut self, at: usize, looked: Result<Result<Seen, u64>, Error>, now: Instant) {
        self.seeking -= 1;
        let again = now + self.look_every();
        let (lease, owner) = (self.member.lease, self.member.owner.clone());
        let closing = self.closing;
        let Part { id, share, state: PartState::Seeking(seeking), wanted, .. } = &mut self.parts[at] else {
            return;
        };
        seeking.busy = false;
        // What is for others is only watched.
        seeking.next_look = if share.is_none() { now + lease / 10 } else { again };
        if closing || !*wanted || !seeking.looking {
            seeking.watch = None;
            return;
        }
        let seen = match looked {
            Ok(Ok(seen)) => seen,
            Ok(Err(_)) => {
                seeking.next_look = now + TOPIC_RETRY;
                let error = Error::new(
                    ErrorKind::NotFound,
                    "the group's record of this partition is gone; restore the bucket, or close all members and delete \
                     all keys of the group for it to begin anew",
                )
                .with_context("group", &self.member.group)
                .with_context("topic", &id.topic)
                .with_context("partition", id.partition);
                self.events.push(SourceEvent::Trouble(error));
                return;
            }
            Err(error) => {
                // Its clock goes on if the next look comes soon enough: see `Watch::saw`.
                seeking.next_look = now + TOPIC_RETRY.min(lease / 5);
                self.events.push(SourceEvent::Trouble(error));
                return;
            }
        };
        let lease = lease.max(seen.lease());
        let watch = seeking.watch.get_or_insert(Watch::new(seen.revision, seen.answered));
        watch.saw(seen.revision, seen.answered, lease);
        // What is for somebody who does not come is for anybody: better uneven for a while than not owned.
        let free = match seen.owner() {
            None => share.now || watch.is_dead(seen.asked, lease / 2),
            // This member's own, and it does not run it: claimed again, with the next epoch.
            Some(other) if *other == *owner => true,
            Some(_) if share.is_none() => watch.is_dead(seen.asked, lease * 5 / 4),
            Some(_) => watch.is_dead(seen.asked, lease),
        };
        if free {
            self.claim(at, seen);
        }
    }

    fn claim(&mut self, at: usize, seen: Seen) {
        let Part { id, stream, state: PartState::Seeking(seeking), .. } = &mut self.parts[at] else { return };
        seeking.busy = true;
        self.seeking += 1;
        let (member, topic, partition) = (self.member.clone(), id.topic.clone(), id.partition);
        let known = stream.clone();
        self.jobs.push(Box::pin(async move {
            // The stream as it is now: it may be another one, or shorter.
            let claimed = match topics::find(&member.connection, &topic, "source").await {
                Ok(found) if partition >= found.partitions => Err(found
                    .check_partition(partition, "source")
                    .err()
                    .unwrap_or_else(|| crate::error::no_topic(&known.topic, "source"))),
                Ok(found) => {
                    let claimed = member.claim(&found, partition, &seen).await;
                    claimed.map(|claimed| Claimed { stream: Some(found.into()), ..claimed })
                }
                Err(error) => Err(error),
            };
            Done::Claimed(at, claimed)
        }));
    }

    pub(crate) fn claimed(&mut self, at: usize, claimed: Result<Claimed, Error>, now: Instant) {
        self.seeking -= 1;
        let again = now + self.look_every();
        let Some(seeking) = self.parts[at].seek() else { return };
        seeking.busy = false;
        match claimed {
            Ok(claimed) => self.hold(at, claimed),
            Err(error) => {
                seeking.next_look = again;
                if error.kind() != ErrorKind::Fenced {
                    seeking.next_look = now + TOPIC_RETRY.min(self.member.lease / 5);
                    self.events.push(SourceEvent::Trouble(error));
                }
            }
        }
    }

    /// Begins an ownership.
    fn hold(&mut self, at: usize, claimed: Claimed) {
        let now = Instant::now();
        let lease = Lease::until(self.lease_end(claimed.sent));
        let next_beat = claimed.sent + self.heartbeat();
        let deadline = now + self.options.revoke_within();
        let part = &mut self.parts[at];
        if let Some(stream) = claimed.stream {
            part.stream = stream;
        }
        let assigned =
            self.ownership.assign(part.id.clone(), claimed.epoch, &claimed.position, lease.clone());
        let owned = assigned.owned;
        // After a reset, epochs of the records begin anew while those of this process go on. The next owner's follow the record's,
        // so what the deliveries carry is written at once.
        let raised = owned.epoch > claimed.epoch;
        let slot = owned.slot.index();
        if self.by_slot.len() <= slot {
            self.by_slot.resize(slot + 1, usize::MAX);
        }
        self.by_slot[slot] = at;
        if let Some(name) = claimed.former {
            consumer::remove(&self.member.connection, &part.stream.name, name);
        }
        // A claim that was accepted after the source was told to close goes straight back.
        let leaving = self.closing.then_some(Leaving { deadline, released: true });
        part.state = PartState::Holding(Box::new(Holding {
            owned,
            epoch: owned.epoch,
            revision: claimed.revision,
            writes: 0,
            lease,
            renewed: claimed.sent,
            next_write: if raised { now } else { next_beat },
            blocked_until: now,
            writing: None,
            leaving,
            reading: Reading::new(claimed.position.watermark.0, now),
            paused: false,
        }));
        if let Some(trouble) = claimed.trouble {
            tracing::warn!(group = %self.member.group, %trouble, "a partition was taken over with a correction");
            self.events.push(SourceEvent::Trouble(trouble));
        }
        match self.events.last_mut() {
            Some(SourceEvent::Assigned { owned }) => owned.push(assigned),
            _ => self.events.push(SourceEvent::Assigned { owned: vec![assigned] }),
        }
        self.balance.changed = true;
        self.next_tick = now;
    }
}
