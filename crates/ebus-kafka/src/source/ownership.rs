//! Taking partitions over and giving them up (G1, G3).

use std::collections::VecDeque;

use ebus_core::{Assigned, Error, ErrorKind, Owned, PartitionId, SourceEvent};
use tokio::time::Instant;

use super::{AGAIN, Found, KafkaSource, Part, Pending, Phase, Revocation, WAITS, partition_id, place};
use crate::member::{Command, Member, MemberEvent, Place};
use crate::positions::{Begin, TakeOver, take_over};

impl KafkaSource {
    pub(super) fn member_said(&mut self, event: MemberEvent) {
        match event {
            MemberEvent::Assigned(places, id) => {
                self.member_id = id;
                tracing::debug!(group = %self.options.group, ?places, "assigned");
                if !places.is_empty() {
                    self.look_up(places, 0);
                }
            }
            MemberEvent::Revoking(places) => self.revoke(places),
            MemberEvent::Lost(places) => {
                self.member.losses += 1;
                tracing::warn!(group = %self.options.group, ?places, "partitions lost without notice");
                self.lose(|part| places.contains(&part.place));
                self.forget_pending(&places);
                self.revocations
                    .retain(|revocation| !revocation.places.iter().any(|place| places.contains(place)));
            }
            MemberEvent::LostAll(error) => {
                self.member.losses += 1;
                self.lose_all();
                self.out.push(SourceEvent::Trouble(error));
            }
            MemberEvent::Committed(result) => self.committed(result),
            MemberEvent::Trouble(error) => self.out.push(SourceEvent::Trouble(error)),
            // Nobody else has a name of its own: what was fenced is the handle alone.
            MemberEvent::Fatal(error)
                if error.kind() == ErrorKind::Fenced && self.config.instance_id.is_none() =>
            {
                self.join_anew(error);
            }
            MemberEvent::Fatal(error) => self.ended = Some(error),
        }
    }

    /// Another handle in place of one that has failed for good, under another name; all partitions are lost.
    fn join_anew(&mut self, error: Error) {
        self.lose_all();
        match Member::start(&self.config, &self.options.group) {
            Ok(member) => {
                self.out.push(SourceEvent::Trouble(error));
                self.member = member;
                self.member_id = None;
                // Its answer is lost with the handle that it went through.
                self.in_flight = None;
                self.member.tell(Command::Subscribe(self.topics.clone()));
            }
            Err(error) => self.ended = Some(error),
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

    /// Looks up where these are to be taken over; `waits` says how often that was tried before.
    ///
    /// After the answer to a commit that is on its way: it may be this member's own of a former ownership, and land behind the
    /// look-up. Then what it says would run again, and the claim would take it back (G6). That costs no time, because the claim
    /// waits for that answer too.
    pub(super) fn look_up(&mut self, places: Vec<Place>, waits: u32) {
        if self.in_flight.is_some() {
            let again = Some(Instant::now());
            self.pending.push(Pending { look_up: self.look_ups, places, again, waits });
            return;
        }
        self.look_ups += 1;
        let look_up = self.look_ups;
        let partitions: Vec<PartitionId> = places.iter().filter_map(partition_id).collect();
        let begin = Begin { start: self.options.start, alone: waits >= WAITS };
        let (control, group) = (self.control.clone(), self.options.group.clone());
        let found = self.found_in.clone();
        self.pending.push(Pending { look_up, places, again: None, waits });
        tokio::spawn(async move {
            let result =
                control.run("consume", move |control| take_over(control, &group, &partitions, begin)).await;
            // A source that is gone needs no answer.
            let _ = found.send(Found::TakeOver { look_up, result });
        });
    }

    pub(super) fn found(&mut self, found: Found) {
        let (look_up, result) = match found {
            Found::TakeOver { look_up, result } => (look_up, result),
            Found::Range { owned, result } => return self.reset(owned, result),
            Found::Marks(result) => return self.marks(result),
            Found::Group { asked, result } => return self.asked_for(asked, result),
        };
        // What was revoked meanwhile is not wanted any more.
        let mine = |pending: &Pending| pending.look_up == look_up && pending.again.is_none();
        let Some(index) = self.pending.iter().position(mine) else { return };
        let Pending { places: wanted, waits, .. } = self.pending.swap_remove(index);
        match result {
            Ok(found) => {
                for one in found.taken.into_iter().filter(|one| wanted.contains(&place(&one.partition))) {
                    self.claim(one);
                }
                let waiting: Vec<Place> =
                    found.undecided.iter().map(place).filter(|place| wanted.contains(place)).collect();
                if !waiting.is_empty() {
                    let again = Some(Instant::now() + AGAIN);
                    self.pending.push(Pending { look_up, places: waiting, again, waits: waits + 1 });
                }
                self.next_commit = Instant::now();
            }
            Err(error) => {
                self.out.push(SourceEvent::Trouble(error));
                // Each by itself: one that cannot be looked up does not hold the others back.
                let again = Some(Instant::now() + AGAIN);
                let apart =
                    wanted.into_iter().map(|place| Pending { look_up, places: vec![place], again, waits });
                self.pending.extend(apart);
            }
        }
    }

    /// Takes a partition over under the next epoch; it is read when the broker has accepted that epoch.
    pub(super) fn claim(&mut self, taken: TakeOver) {
        if let Some(trouble) = taken.trouble {
            self.out.push(SourceEvent::Trouble(trouble));
        }
        // What the pool gets is the lease of the session in which the claim is accepted.
        let lease = self.session.lease();
        let assigned =
            self.ownership.assign(taken.partition.clone(), taken.epoch.next(), &taken.position, lease);
        let starts = taken.starts.into_iter().map(|(id, at, text)| (place(&id), at, text)).collect();
        self.parts.push(Part {
            owned: assigned.owned,
            place: place(&taken.partition),
            id: taken.partition,
            mark: taken.mark,
            phase: Phase::Claiming,
            told: false,
            paused: false,
            held: VecDeque::new(),
            full_told: None,
            resetting: false,
            probed: Instant::now(),
            starts,
        });
    }

    pub(super) fn claimed(&mut self, owned: Owned) {
        let Some(at) = self.ownership.ledger(owned).map(|ledger| ledger.read_to().0) else { return };
        let lease = self.session.lease();
        let Some(part) = self.part(owned) else { return };
        part.phase = Phase::Reading;
        part.told = true;
        part.starts.clear();
        let assigned = Assigned { owned, partition: part.id.clone(), lease };
        let place = part.place.clone();
        match self.fetch_from(&place, at) {
            Ok(()) => self.out.push(SourceEvent::Assigned { owned: vec![assigned] }),
            Err(error) => self.ended = Some(error),
        }
    }

    pub(super) fn revoke(&mut self, places: Vec<Place>) {
        tracing::debug!(group = %self.options.group, ?places, "revoking");
        let now = Instant::now();
        let deadline = now + self.options.revoke_within().min(self.longest_hold);
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
        self.end_session_of_none();
    }

    fn end_session_of_none(&mut self) {
        if self.parts.is_empty() {
            self.session.end();
        }
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
        self.end_session_of_none();
    }
}
