//! Writes histories by hand: group `g`, topic `t`, partition 0, one millisecond an event.

use std::time::Duration;

use crate::history::{Event, Kind, Outcome, name};

#[derive(Debug, Clone, Default)]
pub(super) struct Script {
    pub(super) events: Vec<Event>,
    now: u64,
    partition: u32,
    attempts: std::collections::HashMap<(String, u64, u64), u32>,
}

impl Script {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn event(
        &mut self,
        kind: Kind,
        member: &str,
        epoch: u64,
        key: &str,
        offset: u64,
    ) -> &mut Event {
        self.now += 1_000_000;
        let mut event = Event::new(kind);
        event.at_ns = self.now;
        event.group = Some(name("g"));
        event.topic = Some(name("t"));
        event.partition = Some(self.partition);
        event.offset = Some(offset);
        event.key = (!key.is_empty()).then(|| name(key));
        event.version = Some(offset);
        event.member = Some(name(member));
        event.epoch = Some(epoch);
        self.events.push(event);
        self.events.last_mut().expect("was pushed")
    }

    pub(super) fn after(mut self, time: Duration) -> Self {
        self.now += time.as_nanos() as u64;
        self
    }

    pub(super) fn in_partition(mut self, partition: u32, then: impl FnOnce(Self) -> Self) -> Self {
        let before = std::mem::replace(&mut self.partition, partition);
        let mut script = then(self);
        script.partition = before;
        script
    }

    fn publish(&mut self, kind: Kind, key: &str, version: u64, call: u64, offset: Option<u64>) {
        let event = self.event(kind, "p", 0, key, 0);
        event.group = None;
        event.epoch = None;
        event.version = Some(version);
        event.call = Some(call);
        event.offset = offset;
        event.partition = offset.and(event.partition);
    }

    pub(super) fn call(mut self, key: &str, version: u64, call: u64) -> Self {
        self.publish(Kind::Call, key, version, call, None);
        self
    }

    pub(super) fn receipt(mut self, key: &str, version: u64, call: u64, offset: u64) -> Self {
        self.publish(Kind::Stored, key, version, call, Some(offset));
        self
    }

    pub(super) fn failed(mut self, key: &str, version: u64, call: u64) -> Self {
        self.publish(Kind::Failed, key, version, call, None);
        self
    }

    /// Version, call and offset are the same number.
    pub(super) fn stored(self, key: &str, offset: u64) -> Self {
        self.call(key, offset, offset).receipt(key, offset, offset, offset)
    }

    pub(super) fn ownership(
        mut self,
        kind: Kind,
        member: &str,
        epoch: u64,
        outcome: Option<Outcome>,
    ) -> Self {
        let event = self.event(kind, member, epoch, "", 0);
        event.offset = None;
        event.version = None;
        event.outcome = outcome;
        self
    }

    pub(super) fn assigned(self, member: &str, epoch: u64) -> Self {
        self.ownership(Kind::Assigned, member, epoch, None)
    }

    pub(super) fn assigned_in(self, member: &str, epoch: u64, partition: u32) -> Self {
        self.in_partition(partition, |script| script.assigned(member, epoch))
    }

    pub(super) fn released(self, member: &str, epoch: u64, outcome: Outcome) -> Self {
        self.ownership(Kind::Released, member, epoch, Some(outcome))
    }

    pub(super) fn kept(self, member: &str, epoch: u64, outcome: Outcome) -> Self {
        self.ownership(Kind::Kept, member, epoch, Some(outcome))
    }

    pub(super) fn lost(self, member: &str, epoch: u64) -> Self {
        self.ownership(Kind::Lost, member, epoch, None)
    }

    fn attempt(&mut self, member: &str, epoch: u64, offset: u64, next: bool) -> u32 {
        let attempt = self.attempts.entry((member.into(), epoch, offset)).or_default();
        *attempt += u32::from(next);
        *attempt
    }

    pub(super) fn start(mut self, member: &str, epoch: u64, key: &str, offset: u64) -> Self {
        let attempt = self.attempt(member, epoch, offset, true);
        self.event(Kind::Start, member, epoch, key, offset).attempt = Some(attempt);
        self
    }

    /// Ends the last attempt; where two are open under one number it makes no difference which.
    pub(super) fn end(mut self, member: &str, epoch: u64, key: &str, offset: u64, outcome: Outcome) -> Self {
        let last =
            self.events.iter().rev().filter(|e| e.offset == Some(offset)).find(|e| {
                e.kind == Kind::Start && e.member.as_deref() == Some(member) && e.epoch == Some(epoch)
            });
        let attempt = last.and_then(|start| start.attempt).unwrap_or(1);
        let ended = self.events.iter().any(|e| {
            e.kind == Kind::End
                && e.member.as_deref() == Some(member)
                && (e.offset, e.epoch, e.attempt) == (Some(offset), Some(epoch), Some(attempt))
        });
        let event = self.event(Kind::End, member, epoch, key, offset);
        event.attempt = Some(if ended { attempt - 1 } else { attempt });
        event.outcome = Some(outcome);
        self
    }

    /// A run of a dead letter that is redriven.
    pub(super) fn redriven(
        mut self,
        member: &str,
        epoch: u64,
        key: &str,
        offset: u64,
        outcome: Outcome,
    ) -> Self {
        let first = self.events.len();
        self = self.run(member, epoch, key, offset, outcome);
        for event in &mut self.events[first..] {
            event.redriven = true;
        }
        self
    }

    pub(super) fn run(self, member: &str, epoch: u64, key: &str, offset: u64, outcome: Outcome) -> Self {
        self.start(member, epoch, key, offset).end(member, epoch, key, offset, outcome)
    }

    /// A run of a message whose version is not its offset.
    pub(super) fn run_of(
        mut self,
        member: &str,
        epoch: u64,
        key: &str,
        version: u64,
        offset: u64,
        outcome: Outcome,
    ) -> Self {
        let first = self.events.len();
        self = self.run(member, epoch, key, offset, outcome);
        for event in &mut self.events[first..] {
            event.version = Some(version);
        }
        self
    }

    pub(super) fn settled(mut self, member: &str, epoch: u64, offset: u64) -> Self {
        self.event(Kind::Settle, member, epoch, "", offset).outcome = Some(Outcome::Finished);
        self
    }

    /// By member `m` under epoch 1.
    pub(super) fn dead_letter(self, key: &str, offset: u64) -> Self {
        self.dead_letter_by("m", 1, key, offset)
    }

    pub(super) fn dead_letter_by(mut self, member: &str, epoch: u64, key: &str, offset: u64) -> Self {
        self.event(Kind::DeadLetter, member, epoch, key, offset);
        self
    }

    /// A fault of a member, or its end.
    pub(super) fn fault(mut self, kind: Kind, member: &str) -> Self {
        let event = self.event(kind, member, 0, "", 0);
        let at_ns = event.at_ns;
        *event = Event::new(kind);
        event.at_ns = at_ns;
        event.member = Some(name(member));
        self
    }

    pub(super) fn committed(self, watermark: u64, finished: &[(u64, u64)]) -> Self {
        self.committed_by(0, watermark, finished)
    }

    pub(super) fn committed_by(mut self, epoch: u64, watermark: u64, finished: &[(u64, u64)]) -> Self {
        let event = self.event(Kind::Committed, "", epoch, "", watermark);
        event.version = None;
        event.member = None;
        event.finished = Some(finished.to_vec());
        self
    }
}
