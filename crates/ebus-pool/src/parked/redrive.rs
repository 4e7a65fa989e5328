//! Redriving a key: its dead letters run again, in order, while its lane is held (G2).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use ebus_core::{
    Backend, Epoch, Error, ErrorKind, Group, Key, Message, NextOffset, Owned, PartitionId, ReadRange, Reader,
};
use tokio::sync::oneshot;

use super::{Lanes, ParkedKey};
use crate::dead_letter;
use crate::jobs::{Letter, ToShard};

/// What a redrive came to.
#[derive(Debug)]
pub(super) enum Redriven {
    /// All ran to success: whatever is below this offset of the partition is done.
    All(u64),
    /// One was given up, and the list says so.
    Stopped,
    /// Some were not found: the key stays parked, at this letter.
    Unseen { letter: u64, error: Error },
    /// The dead letters could not be read.
    Failed(Error),
    /// The ownership ends.
    Cancelled,
}

pub(super) type Redriving = Pin<Box<dyn Future<Output = (Key, Redriven)> + Send>>;

pub(super) async fn redrive(
    group: Group,
    partition: PartitionId,
    owned: Owned,
    parked: ParkedKey,
    letters: Arc<dyn Backend>,
    lanes: Lanes,
) -> Redriven {
    let (held, is_held) = oneshot::channel();
    lanes.tell(&parked.key, ToShard::Hold { owned, key: parked.key.clone(), held });
    let Ok(last) = is_held.await else { return Redriven::Cancelled };
    let below = parked.redriven.0;
    let mut pass = Pass { group, partition, owned, parked, letters, lanes, below, last };
    match pass.run().await {
        Ok(redriven) => redriven,
        Err(error) => Redriven::Failed(error.with_context("dead_letters", &pass.parked.letters)),
    }
}

/// A redrive on its way.
struct Pass {
    group: Group,
    partition: PartitionId,
    owned: Owned,
    parked: ParkedKey,
    letters: Arc<dyn Backend>,
    lanes: Lanes,
    /// All messages of the key below it are done.
    below: u64,
    /// The last message that became a dead letter in this ownership, if any did.
    last: Option<u64>,
}

impl Pass {
    async fn run(&mut self) -> Result<Redriven, Error> {
        // Whatever a letter says of itself, it is of a message that was there.
        let source = self.letters.describe_topic(&self.partition.topic).await?;
        let source = source.partitions.get(self.partition.partition as usize).map_or(0, |there| there.end.0);
        let (earliest, end) = self.range().await?;
        let from = self.parked.next_letter;
        if earliest > from {
            tracing::warn!(key = %self.parked.key, dead_letters = %self.parked.letters, from, to = earliest,
                "dead letters expired before their key was redriven; what is left of them runs");
        }
        // The first letter stands exactly where its receipt said, or the topic is not the one that it was.
        let fresh = self.below == self.parked.offset && earliest <= from;
        let first = (from, self.parked.offset);
        if (!fresh || self.is_at(first, source).await?)
            && let Some(ended) = self.pass(from, end, source).await?
        {
            return Ok(ended);
        }
        if self.has_seen_all(fresh) {
            return Ok(Redriven::All(self.below));
        }
        tracing::warn!(key = %self.parked.key, dead_letters = %self.parked.letters,
            "dead letters are not where they were: the topic was made anew; all of it is looked through");
        if let Some(ended) = self.pass(0, end, source).await? {
            return Ok(ended);
        }
        if self.has_seen_all(fresh) {
            return Ok(Redriven::All(self.below));
        }
        let message = "dead letters of the key are missing: their topic was made anew, or has got more partitions; put them back in \
                       order, or handle them by hand, and redrive again";
        let error = Error::new(ErrorKind::NotFound, message)
            .with_context("dead_letters", &self.parked.letters)
            .with_context("key", &self.parked.key)
            .with_context("redriven_below", self.below);
        // What arrives follows them from here on.
        Ok(Redriven::Unseen { letter: from, error })
    }

    fn has_seen_all(&self, fresh: bool) -> bool {
        self.last.is_none_or(|last| last < self.below) && !(fresh && self.below == self.parked.offset)
    }

    /// Where the partition with the dead letters begins and ends: the key is held, so none follows.
    async fn range(&self) -> Result<(u64, u64), Error> {
        let PartitionId { topic, partition, .. } = &self.parked.letters;
        let info = self.letters.describe_topic(topic).await?;
        let there = info.partitions.get(*partition as usize).map(|there| (there.earliest, there.end.0));
        there.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "the partition with the dead letters is gone; restore the topic")
        })
    }

    fn read(&self, from: u64, end: u64) -> impl Future<Output = Result<Box<dyn Reader>, Error>> + '_ {
        let PartitionId { topic, partition, .. } = &self.parked.letters;
        self.letters.read(ReadRange::new(topic.clone(), *partition, from, NextOffset(end)))
    }

    /// Whether the letter of this message is in this place.
    async fn is_at(&self, (place, offset): (u64, u64), source: u64) -> Result<bool, Error> {
        let mut reader = self.read(place, place + 1).await?;
        let mut read = Vec::new();
        reader.next(1, &mut read).await?;
        Ok(read.iter().any(|(at, message)| *at == place && self.origin(message, source) == Some(offset)))
    }

    /// Runs what is of the key from `from` on and was not redriven; `None` when it has come to the end.
    async fn pass(&mut self, from: u64, end: u64, source: u64) -> Result<Option<Redriven>, Error> {
        let mut reader = self.read(from, end).await?;
        let mut read = Vec::new();
        // One at a time: they are in no budget, and each waits for a write anyway.
        while reader.next(1, &mut read).await? > 0 {
            for (place, message) in read.drain(..) {
                // A letter that was published again, by this owner or another, comes after the first of it.
                let Some(offset) = self.origin(&message, source).filter(|at| *at >= self.below) else {
                    continue;
                };
                let (done, ended) = oneshot::channel();
                let letter = Letter { offset, place, message };
                self.lanes.tell(&self.parked.key, ToShard::Redrive { owned: self.owned, letter, done });
                match ended.await {
                    Ok(true) => self.below = offset + 1,
                    Ok(false) => return Ok(Some(Redriven::Stopped)),
                    Err(_) => return Ok(Some(Redriven::Cancelled)),
                }
            }
        }
        Ok(None)
    }

    /// The offset of the message that this is a dead letter of, if it is of this group, partition, key, and parking.
    fn origin(&self, message: &Message, source: u64) -> Option<u64> {
        let (offset, epoch) = origin(message, &self.group, &self.partition, &self.parked.key)?;
        // Of a former owner that did not know yet that it had lost the partition: it followed an earlier parking of the key, and would be
        // in front of what this one has not reached yet.
        if epoch < self.parked.epoch {
            return None;
        }
        if offset < source {
            return Some(offset);
        }
        tracing::warn!(key = %self.parked.key, dead_letters = %self.parked.letters, offset,
            "a dead letter names a message that was never there; it is left alone");
        None
    }
}

/// The offset of the message that this is a dead letter of, and the epoch under which it was given up, if it is of this group,
/// partition and key.
fn origin(message: &Message, group: &Group, partition: &PartitionId, key: &Key) -> Option<(u64, Epoch)> {
    let header = |name: &str| message.headers.first_str(name);
    if message.key.as_ref() != Some(key)
        || header(dead_letter::GROUP)? != group.as_str()
        || header(dead_letter::TOPIC)? != partition.topic.as_str()
        || header(dead_letter::PARTITION)?.parse::<u32>().ok()? != partition.partition
    {
        return None;
    }
    let epoch = Epoch(header(dead_letter::EPOCH)?.parse().ok()?);
    Some((header(dead_letter::OFFSET)?.parse().ok()?, epoch))
}
