//! Taking partitions over and giving them up (G1, G3).

use std::collections::VecDeque;

use ebus_core::{Assigned, Error, ErrorKind, Lease, Owned, PartitionId, SourceEvent};
use tokio::time::Instant;

use super::{AGAIN, Found, KafkaSource, Part, Pending, Phase, Revocation, partition_id, place};
use crate::member::{Command, MemberEvent, Place};
use crate::positions::{TakeOver, take_over};

impl KafkaSource {
    pub(super) fn member_said(&mut self, event: MemberEvent) {
        match event {
            MemberEvent::Assigned(places) => {
                tracing::debug!(group = %self.options.group, ?places, "assigned");
                if !places.is_empty() {
                    self.look_up(places);
                }
            }
            MemberEvent::Revoking(places) => self.revoke(places),
            MemberEvent::Lost(places) => {
                tracing::warn!(group = %self.options.group, ?places, "partitions lost without notice");
                self.lose(|part| places.contains(&part.place));
                self.forget_pending(&places);
                self.revocations
                    .retain(|revocation| !revocation.places.iter().any(|place| places.contains(place)));
            }
            MemberEvent::LostAll(error) => {
                self.lose_all();
                self.out.push(SourceEvent::Trouble(error));
            }
            MemberEvent::Committed(result) => self.committed(result),
            MemberEvent::Trouble(error) => self.out.push(SourceEvent::Trouble(error)),
            MemberEvent::Fatal(error) => self.ended = Some(error),
        }
    }

    pub(super) fn lose_all(&mut self) {
        self.lose(|_| true);
        self.pending.clear();
        // librdkafka waits for these; it will find out itself that they are gone.
        for revocation in std::mem::take(&mut self.revocations) {
            self.member.tell(Command::Unassign(revocation.places));
        }
    }

    pub(super) fn forget_pending(&mut self, places: &[Place]) {
        for pending in &mut self.pending {
            pending.places.retain(|place| !places.contains(place));
        }
        self.pending.retain(|pending| !pending.places.is_empty());
    }

    pub(super) fn look_up(&mut self, places: Vec<Place>) {
        self.look_ups += 1;
        let look_up = self.look_ups;
        let partitions: Vec<PartitionId> = places.iter().filter_map(partition_id).collect();
        let (control, group, start) = (self.control.clone(), self.options.group.clone(), self.options.start);
        let found = self.found_in.clone();
        self.pending.push(Pending { look_up, places, again: None });
        tokio::spawn(async move {
            let result =
                control.run("consume", move |control| take_over(control, &group, &partitions, start)).await;
            // A source that is gone needs no answer.
            let _ = found.send(Found::TakeOver { look_up, result });
        });
    }

    pub(super) fn found(&mut self, found: Found) {
        let (look_up, result) = match found {
            Found::TakeOver { look_up, result } => (look_up, result),
            Found::Range { owned, result } => return self.reset(owned, result),
        };
        // What was revoked meanwhile is not wanted any more.
        let mine = |pending: &Pending| pending.look_up == look_up && pending.again.is_none();
        let Some(index) = self.pending.iter().position(mine) else { return };
        let wanted = self.pending.swap_remove(index).places;
        match result {
            Ok(taken) => {
                for one in taken.into_iter().filter(|one| wanted.contains(&place(&one.partition))) {
                    self.claim(one);
                }
                self.next_commit = Instant::now();
            }
            Err(error) => {
                self.out.push(SourceEvent::Trouble(error));
                // Each by itself: one that cannot be looked up does not hold the others back.
                let again = Some(Instant::now() + AGAIN);
                let apart = wanted.into_iter().map(|place| Pending { look_up, places: vec![place], again });
                self.pending.extend(apart);
            }
        }
    }

    /// Takes a partition over under the next epoch; it is read when the broker has accepted that epoch.
    pub(super) fn claim(&mut self, taken: TakeOver) {
        if let Some(trouble) = taken.trouble {
            self.out.push(SourceEvent::Trouble(trouble));
        }
        let assigned = self.ownership.assign(
            taken.partition.clone(),
            taken.epoch.next(),
            &taken.position,
            Lease::unlimited(),
        );
        self.parts.push(Part {
            owned: assigned.owned,
            place: place(&taken.partition),
            id: taken.partition,
            mark: taken.mark,
            phase: Phase::Claiming,
            told: false,
            paused: false,
            held: VecDeque::new(),
            resetting: false,
            probed: Instant::now(),
        });
    }

    pub(super) fn claimed(&mut self, owned: Owned) {
        let Some(at) = self.ownership.ledger(owned).map(|ledger| ledger.read_to().0) else { return };
        let Some(part) = self.part(owned) else { return };
        part.phase = Phase::Reading;
        part.told = true;
        let assigned = Assigned { owned, partition: part.id.clone(), lease: Lease::unlimited() };
        let place = part.place.clone();
        match self.fetch_from(&place, at) {
            Ok(()) => self.out.push(SourceEvent::Assigned { owned: vec![assigned] }),
            Err(error) => self.ended = Some(error),
        }
    }

    pub(super) fn revoke(&mut self, places: Vec<Place>) {
        tracing::debug!(group = %self.options.group, ?places, "revoking");
        let now = Instant::now();
        let deadline = now + self.options.revoke_within.min(self.longest_hold);
        self.forget_pending(&places);
        let (mut open, mut tell) = (Vec::new(), Vec::new());
        for part in self.parts.iter_mut().filter(|part| places.contains(&part.place)) {
            part.held.clear();
            part.probed = now;
            open.push(part.owned);
            if part.told {
                part.phase = Phase::Revoking { deadline };
                tell.push(part.owned);
            } else {
                part.phase = Phase::Releasing { deadline };
            }
        }
        self.stop_fetching(&places);
        if !tell.is_empty() {
            self.out.push(SourceEvent::Revoking { owned: tell, deadline: deadline.into_std() });
        }
        self.revocations.push(Revocation { places, open });
        self.close_revocations();
        self.next_commit = now;
    }

    /// What was let go and is committed is released; what has passed its deadline is taken away.
    pub(super) fn finish_releases(&mut self) {
        let now = Instant::now();
        let in_flight: Vec<Owned> =
            self.in_flight.iter().flat_map(|commit| commit.owned.iter().copied()).collect();
        let mut index = 0;
        while index < self.parts.len() {
            let part = &self.parts[index];
            let owned = part.owned;
            let committed = !self.ownership.has_uncommitted(owned) && !in_flight.contains(&owned);
            match part.phase {
                Phase::Releasing { .. } if committed => self.released(index, Ok(())),
                Phase::Releasing { deadline } if now >= deadline => {
                    let error = Error::new(
                        ErrorKind::Timeout,
                        "the last commit was not accepted in time; \
                        what finished since the one before runs again",
                    )
                    .with_operation("release")
                    .with_context("partition", &part.id);
                    self.released(index, Err(error));
                }
                Phase::Revoking { deadline } if now >= deadline => {
                    self.lose(|part| part.owned == owned);
                    self.close(owned);
                }
                _ => index += 1,
            }
        }
        self.close_revocations();
    }

    pub(super) fn released(&mut self, index: usize, committed: Result<(), Error>) {
        let part = self.parts.swap_remove(index);
        self.stop_fetching(std::slice::from_ref(&part.place));
        self.ownership.end(part.owned);
        if part.told {
            self.out.push(SourceEvent::Released { owned: vec![part.owned], committed });
        }
        self.close(part.owned);
    }

    pub(super) fn close(&mut self, owned: Owned) {
        for revocation in &mut self.revocations {
            revocation.open.retain(|open| *open != owned);
        }
    }

    /// Unassigns revocations of which nothing is left: only now may others have these partitions.
    pub(super) fn close_revocations(&mut self) {
        let (done, open) =
            std::mem::take(&mut self.revocations).into_iter().partition(|r: &Revocation| r.open.is_empty());
        self.revocations = open;
        for revocation in done {
            let revocation: Revocation = revocation;
            self.member.tell(Command::Unassign(revocation.places));
        }
    }

    /// Ends ownerships without a commit.
    pub(super) fn lose(&mut self, which: impl Fn(&Part) -> bool) {
        let (gone, kept): (Vec<Part>, Vec<Part>) =
            std::mem::take(&mut self.parts).into_iter().partition(which);
        self.parts = kept;
        let places: Vec<Place> = gone.iter().map(|part| part.place.clone()).collect();
        self.stop_fetching(&places);
        let mut tell = Vec::new();
        for part in gone {
            self.ownership.end(part.owned);
            self.close(part.owned);
            if part.told {
                tell.push(part.owned);
            }
        }
        if !tell.is_empty() {
            self.out.push(SourceEvent::Lost { owned: tell });
        }
    }
}
