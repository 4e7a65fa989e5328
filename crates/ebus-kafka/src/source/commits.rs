//! Commits: positions, claims, and proofs of membership, one at a time (G1, G3, G6).

use std::time::Duration;

use ebus_core::{Error, ErrorKind, SourceEvent};
use rdkafka::error::RDKafkaErrorCode;
use tokio::time::Instant;

use super::{AGAIN, InFlight, KafkaSource, PROBE, Phase};
use crate::error::{from_code, kind_of};
use crate::member::{Command, MemberEvent};
use crate::sys::commit::Answer;

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
        let mut commits = Vec::new();
        let mut owned = Vec::new();
        for part in &mut self.parts {
            let probe = matches!(part.phase, Phase::Revoking { .. } | Phase::Releasing { .. })
                && now >= part.probed + PROBE;
            let hurry = matches!(part.phase, Phase::Releasing { .. } | Phase::Claiming);
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
            owned.push(part.owned);
        }
        if due {
            self.next_commit = now + self.options.commit_interval;
        }
        if commits.is_empty() {
            return;
        }
        self.in_flight = Some(InFlight { owned, holding: !self.revocations.is_empty() });
        if !self.member.tell(Command::Commit(commits)) {
            self.ended =
                Some(Error::new(ErrorKind::Unexpected, "the thread of the group's membership has ended"));
        }
    }

    pub(super) fn committed(&mut self, result: Answer) {
        let Some(commit) = self.in_flight.take() else { return };
        let mut failed = None;
        for owned in commit.owned {
            let Some(part) = self.parts.iter().find(|part| part.owned == owned) else { continue };
            let (phase, place) = (part.phase, part.place.clone());
            let error = match &result {
                Ok(places) => places.get(&place).copied().flatten(),
                Err(code) => Some(*code),
            };
            self.ownership.commit_done(owned, error.is_none());
            match error {
                None if phase == Phase::Claiming => self.claimed(owned),
                None => {}
                Some(code) => {
                    failed = Some(code);
                }
            }
        }
        self.refused = match failed {
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
            if matches!(code, RDKafkaErrorCode::RebalanceInProgress | RDKafkaErrorCode::IllegalGeneration) {
                tracing::debug!(%error, "a commit is made again after the rebalance");
            } else {
                self.out.push(SourceEvent::Trouble(error));
            }
            self.not_before = Instant::now() + AGAIN.min(self.options.commit_interval);
        }
    }

    /// Commits until nothing is left to commit.
    pub(super) async fn last_commit(&mut self, end: Instant) -> Result<(), Error> {
        loop {
            self.member.beat();
            while let Ok(event) = self.member.events.try_recv() {
                if let MemberEvent::Committed(result) = event {
                    self.committed(result);
                }
            }
            self.commit();
            let open = self.parts.iter().any(|part| self.ownership.has_uncommitted(part.owned));
            if self.in_flight.is_none() && !open {
                return Ok(());
            }
            let wake = self.not_before.max(Instant::now() + Duration::from_millis(20)).min(end);
            let event = tokio::select! {
                event = self.member.events.recv() => event,
                () = tokio::time::sleep_until(wake) => None,
            };
            if let Some(MemberEvent::Committed(result)) = event {
                self.committed(result);
            }
            if Instant::now() >= end {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    "the last commit was not accepted in time; what finished since the one before runs again",
                )
                .with_operation("close")
                .with_context("group", &self.options.group));
            }
        }
    }
}
