//! Commits: positions, claims, and proofs of membership, one at a time (G1, G3, G6).

use std::time::Duration;

use ebus_core::{Error, ErrorKind, SourceEvent};
use rdkafka::error::RDKafkaErrorCode;
use tokio::time::Instant;

use super::{AGAIN, Found, InFlight, KafkaSource, PROBE, Phase};
use crate::error::{from_code, kind_of};
use crate::member::{Command, MemberEvent, Place};
use crate::sys::commit::Answer;
use crate::sys::group::group_state;
use crate::topics::Control;

/// How often in a row a commit that was sent while a revocation is held must be refused for this before membership counts as
/// lost: the generation of one that was under way when the group moved on is old without any harm.
fn proofs(code: RDKafkaErrorCode) -> u32 {
    match code {
        RDKafkaErrorCode::IllegalGeneration | RDKafkaErrorCode::StaleMemberEpoch => 3,
        _ => 1,
    }
}

impl KafkaSource {
    /// Commits what changed, claims what is new, and proves membership while a revocation is held: one commit at a time.
    pub(super) fn commit(&mut self) {
        let now = Instant::now();
        if self.in_flight.is_some() || now < self.not_before {
            return;
        }
        let due = now >= self.next_commit;
        let prove = self.session.probe_at().is_some_and(|at| now >= at);
        let mut commits = Vec::new();
        let mut owned = Vec::new();
        for part in &mut self.parts {
            let held = matches!(part.phase, Phase::Revoking { .. } | Phase::Releasing { .. });
            let probe = prove || (held && now >= part.probed + PROBE);
            let hurry = matches!(part.phase, Phase::Releasing { .. } | Phase::Claiming)
                || self.ownership.is_asked(part.owned);
            if !(due || probe || hurry) {
                continue;
            }
            let position = match self.ownership.begin_commit(part.owned) {
                Some(position) => position,
                None if probe || part.phase == Phase::Claiming => {
                    let Some(ledger) = self.ownership.ledger(part.owned) else { continue };
                    ledger.position()
                }
                None => continue,
            };
            part.probed = now;
            let text = position.encode(part.mark, part.owned.epoch);
            commits.push((part.place.clone(), position.watermark.0, text));
            commits.extend(part.starts.iter().cloned());
            owned.push(part.owned);
        }
        if due {
            self.next_commit = now + self.options.commit_interval();
        }
        if commits.is_empty() {
            return;
        }
        self.in_flight = Some(InFlight { owned, holding: !self.revocations.is_empty(), sent: now });
        if !self.member.commit(commits) {
            self.ended =
                Some(Error::new(ErrorKind::Unexpected, "the thread of the group's membership has ended"));
        }
    }

    pub(super) fn committed(&mut self, result: Answer) {
        let Some(commit) = self.in_flight.take() else { return };
        self.prove(&commit, &result);
        let mut failed = None;
        for owned in commit.owned {
            let Some(part) = self.parts.iter().find(|part| part.owned == owned) else { continue };
            let (phase, place) = (part.phase, part.place.clone());
            let error = match &result {
                Ok(places) => places.get(&place).copied().flatten(),
                Err(code) => Some(*code),
            };
            if self.ownership.commit_done(owned, error.is_none()) {
                self.out.push(SourceEvent::Committed { owned: vec![owned] });
            }
            match error {
                None if phase == Phase::Claiming => self.claimed(owned),
                None => {}
                Some(code) => {
                    failed = Some(code);
                }
            }
        }
        self.refused = match failed {
            // Not sent at all: that partitions were lost is on its way to us.
            Some(RDKafkaErrorCode::AssignmentLost) => 0,
            Some(code) if commit.holding && kind_of(code) == ErrorKind::Fenced => self.refused + 1,
            _ => 0,
        };
        if let Some(code) = failed.filter(|code| self.refused > 0 && self.refused >= proofs(*code)) {
            self.refused = 0;
            self.lose_all();
            self.member.tell(Command::Rejoin);
            self.out.push(SourceEvent::Trouble(from_code("commit", code)));
        } else if let Some(code) = failed {
            // A rebalance under way refuses commits for a moment: they are made again.
            let error = from_code("commit", code);
            use RDKafkaErrorCode as C;
            let passing =
                [C::RebalanceInProgress, C::IllegalGeneration, C::StaleMemberEpoch, C::AssignmentLost];
            if passing.contains(&code) {
                tracing::debug!(%error, "a commit is made again after the rebalance");
            } else {
                self.out.push(SourceEvent::Trouble(error));
            }
            self.not_before = Instant::now() + AGAIN.min(self.options.commit_interval());
        }
    }

    /// What the answer says of the session. Of ownerships that have ended it proves nothing.
    fn prove(&mut self, commit: &InFlight, result: &Answer) {
        for owned in &commit.owned {
            let Some(part) = self.parts.iter().find(|part| part.owned == *owned) else { continue };
            let answer = match result {
                Ok(places) => places.get(&part.place).copied(),
                Err(code) => Some(Some(*code)),
            };
            match answer {
                Some(None) => self.session.accepted(commit.sent),
                // Said only to a member of this generation, while the others have not yet joined it.
                Some(Some(RDKafkaErrorCode::RebalanceInProgress)) => self.session.known(commit.sent),
                _ => {}
            }
        }
    }

    /// A broker answers nothing on the connection of a member that waits for the others to join, which may be until one that
    /// was killed is taken for dead. So when the session runs out with a commit on its way, somebody else is asked.
    pub(super) fn ask_for_member(&mut self, now: Instant) {
        let Some(id) = self.member_id.clone().filter(|_| self.classic) else { return };
        if self.in_flight.is_none() || self.parts.is_empty() || !self.session.asks_at(now) {
            return;
        }
        let (control, group, found) =
            (self.control.clone(), self.options.group.clone(), self.found_in.clone());
        let within = self.session.waits_for();
        tokio::spawn(async move {
            let look = move |control: &Control| {
                let state = group_state(control.client(), group.as_str(), within)?;
                Ok(state.rebalances && state.members.contains(&id))
            };
            let result = control.run("consume", look).await;
            // A source that is gone needs no answer.
            let _ = found.send(Found::Group { asked: now, result });
        });
    }

    pub(super) fn asked_for(&mut self, asked: Instant, result: Result<bool, Error>) {
        match result {
            Ok(true) => self.session.waiting(asked),
            Ok(false) => self.session.not_waiting(),
            Err(error) => {
                self.session.not_waiting();
                tracing::debug!(%error, "whether the group is in a rebalance is not known");
            }
        }
    }

    /// Ends every ownership when the session is over by our own clock. Whether the partitions are still this member's is
    /// found out by taking them over again: the broker refuses the claim of one that it has taken for dead.
    pub(super) fn watch_session(&mut self, now: Instant) {
        if self.parts.is_empty() || !self.session.is_over(now) {
            return;
        }
        let places: Vec<Place> = self.parts.iter().map(|part| part.place.clone()).collect();
        let held: Vec<Place> = self.revocations.iter().flat_map(|held| held.places.iter().cloned()).collect();
        self.lose_all();
        self.out.push(SourceEvent::Trouble(
            Error::new(
                ErrorKind::Fenced,
                format!(
                    "the group's coordinator has accepted nothing for {:?}, so that others may have the partitions; \
                    runs were cancelled, and what is still owned is taken over again",
                    self.session.lasts()
                ),
            )
            .with_operation("consume")
            .with_context("group", &self.options.group),
        ));
        let kept: Vec<Place> = places.into_iter().filter(|place| !held.contains(place)).collect();
        if !kept.is_empty() {
            self.look_up(kept, 0);
        }
    }

    /// Commits until nothing is left to commit.
    pub(super) async fn last_commit(&mut self, end: Instant) -> Result<(), Error> {
        loop {
            self.member.beat();
            while let Ok(event) = self.member.events.try_recv() {
                self.said_while_closing(event);
            }
            if self.session.is_over(Instant::now()) {
                self.lost_uncommitted |=
                    self.parts.iter().any(|part| self.ownership.has_uncommitted(part.owned));
                self.lose_all();
            }
            self.commit();
            let open = self.parts.iter().any(|part| self.ownership.has_uncommitted(part.owned));
            if self.in_flight.is_none() && !open {
                return if self.lost_uncommitted {
                    Err(self.not_accepted(ErrorKind::Fenced))
                } else {
                    Ok(())
                };
            }
            let wake = self.not_before.max(Instant::now() + Duration::from_millis(20)).min(end);
            let event = tokio::select! {
                event = self.member.events.recv() => event,
                () = tokio::time::sleep_until(wake) => None,
            };
            if let Some(event) = event {
                self.said_while_closing(event);
            }
            if Instant::now() >= end {
                return Err(self.not_accepted(ErrorKind::Timeout));
            }
        }
    }

    /// Nothing is taken over any more, and what is to be given up is being given up.
    fn said_while_closing(&mut self, event: MemberEvent) {
        match event {
            MemberEvent::Assigned(..) | MemberEvent::Revoking(_) => {}
            event => {
                let uncommitted = |this: &Self| {
                    this.parts.iter().filter(|part| this.ownership.has_uncommitted(part.owned)).count()
                };
                let before = uncommitted(self);
                let answer = matches!(event, MemberEvent::Committed(_));
                self.member_said(event);
                self.lost_uncommitted |= !answer && uncommitted(self) < before;
            }
        }
    }

    fn not_accepted(&self, kind: ErrorKind) -> Error {
        let message = match kind {
            ErrorKind::Fenced => "the partitions were lost before the last commit was accepted",
            _ => "the last commit was not accepted in time",
        };
        Error::new(kind, format!("{message}; what finished since the one before runs again"))
            .with_operation("close")
            .with_context("group", &self.options.group)
    }
}
