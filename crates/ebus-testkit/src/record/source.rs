//! A source that records ownership and settlements.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{Assigned, Error, ErrorKind, Group, Owned, Settlement, Source, SourceEvent, Token, Topic};

use crate::history::{Event, History, Kind, Name, Outcome, name};

/// A source that records `assigned`, `revoking`, `released`, `lost` and `settle`.
pub struct RecordedSource {
    /// `None` only once it is closed.
    inner: Option<Box<dyn Source>>,
    log: Log,
}

struct Log {
    history: History,
    group: Name,
    member: Name,
    /// Every ownership that there was, because a settlement may come after its end.
    known: HashMap<Owned, (Name, u32)>,
    /// Those that last.
    owned: Vec<Owned>,
}

impl RecordedSource {
    /// Records into `history` what `inner` says to this member of the group.
    pub fn new(inner: Box<dyn Source>, history: History, group: &Group, member: impl AsRef<str>) -> Self {
        let log = Log {
            history,
            group: name(group.as_str()),
            member: name(member.as_ref()),
            known: HashMap::new(),
            owned: Vec::new(),
        };
        Self { inner: Some(inner), log }
    }

    fn inner(&mut self) -> &mut dyn Source {
        self.inner.as_deref_mut().expect("only close takes it, and close takes the whole source")
    }
}

impl Log {
    fn event(&self, kind: Kind, owned: Owned) -> Event {
        let mut event = Event::new(kind);
        event.group = Some(self.group.clone());
        event.member = Some(self.member.clone());
        event.epoch = Some(owned.epoch.0);
        if let Some((topic, partition)) = self.known.get(&owned) {
            event.topic = Some(topic.clone());
            event.partition = Some(*partition);
        }
        event
    }

    fn assigned(&mut self, assigned: &Assigned) {
        let place = (name(assigned.partition.topic.as_str()), assigned.partition.partition);
        self.known.insert(assigned.owned, place);
        self.owned.push(assigned.owned);
        self.history.record(self.event(Kind::Assigned, assigned.owned));
    }

    fn revoking(&self, owned: &[Owned]) {
        for owned in owned {
            self.history.record(self.event(Kind::Revoking, *owned));
        }
    }

    fn released(&mut self, owned: &[Owned], committed: &Result<(), Error>) {
        for owned in owned {
            let mut event = self.event(Kind::Released, *owned);
            event.outcome = Some(if committed.is_ok() { Outcome::Accepted } else { Outcome::Refused });
            event.error = committed.as_ref().err().map(Error::chain);
            self.history.record(event);
            self.owned.retain(|other| other != owned);
        }
    }

    fn lost(&mut self, owned: &[Owned]) {
        for owned in owned {
            self.history.record(self.event(Kind::Lost, *owned));
            self.owned.retain(|other| other != owned);
        }
    }

    fn settled(&self, token: &Token, settlement: Settlement) {
        let mut event = self.event(Kind::Settle, token.owned());
        event.offset = Some(token.offset());
        event.outcome = Some(match settlement {
            Settlement::Finished => Outcome::Finished,
            Settlement::Dropped => Outcome::Dropped,
        });
        self.history.record(event);
    }

    fn said(&mut self, event: &SourceEvent) {
        match event {
            SourceEvent::Assigned { owned } => owned.iter().for_each(|assigned| self.assigned(assigned)),
            SourceEvent::Revoking { owned, .. } => self.revoking(owned),
            SourceEvent::Released { owned, committed } => self.released(owned, committed),
            SourceEvent::Lost { owned } => self.lost(owned),
            _ => {}
        }
    }
}

#[async_trait]
impl Source for RecordedSource {
    async fn recv(&mut self, room: usize, out: &mut Vec<SourceEvent>) -> Result<usize, Error> {
        let before = out.len();
        let result = self.inner().recv(room, out).await;
        if result.is_err() {
            // The end of the source for good: nothing that it owned was given up in an orderly way.
            let owned = std::mem::take(&mut self.log.owned);
            self.log.lost(&owned);
        }
        for event in &out[before..] {
            self.log.said(event);
        }
        result
    }

    fn settle(&mut self, batch: &mut Vec<(Token, Settlement)>) {
        for (token, settlement) in &*batch {
            self.log.settled(token, *settlement);
        }
        self.inner().settle(batch);
    }

    fn release(&mut self, owned: &[Owned]) {
        self.inner().release(owned);
    }

    fn pause(&mut self, owned: &[Owned]) {
        self.inner().pause(owned);
    }

    fn resume(&mut self, owned: &[Owned]) {
        self.inner().resume(owned);
    }

    fn commit_now(&mut self, owned: &[Owned]) {
        self.inner().commit_now(owned);
    }

    fn subscribe(&mut self, topics: &[Topic]) {
        self.inner().subscribe(topics);
    }

    fn stale(&self) -> u64 {
        self.inner.as_ref().map_or(0, |inner| inner.stale())
    }

    async fn close(mut self: Box<Self>, within: Duration) -> Result<(), Error> {
        let Some(inner) = self.inner.take() else { return Ok(()) };
        let result = inner.close(within).await;
        let owned = std::mem::take(&mut self.log.owned);
        match &result {
            // It learns only now that others own what it held: that was no release.
            Err(error) if error.kind() == ErrorKind::Fenced => self.log.lost(&owned),
            result => self.log.released(&owned, result),
        }
        result
    }
}

impl Drop for RecordedSource {
    /// Without `close`, or with a `close` that was given up, the others see a crash.
    fn drop(&mut self) {
        let owned = std::mem::take(&mut self.log.owned);
        self.log.lost(&owned);
    }
}

impl fmt::Debug for RecordedSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedSource")
            .field("group", &self.log.group)
            .field("member", &self.log.member)
            .finish_non_exhaustive()
    }
}
