//! Redriving a key: its dead letters run again, in order, while its lane is held (G2).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use ebus_core::{Backend, Error, ErrorKind, Group, Key, Message, Owned, PartitionId, ReadRange};
use tokio::sync::oneshot;

use super::{Lanes, ParkedKey};
use crate::dead_letter;
use crate::jobs::{Letter, ToShard};

/// Letters that are read ahead.
const CHUNK: usize = 16;

/// What a redrive came to.
#[derive(Debug)]
pub(super) enum Redriven {
    /// All ran to success: whatever is below this offset of the partition is done.
    All(u64),
    /// One was given up, and the list says so.
    Stopped,
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
    if is_held.await.is_err() {
        return Redriven::Cancelled;
    }
    let at = &parked.letters;
    let range = match range(&*letters, &parked).await {
        Ok(range) => range,
        Err(error) => return Redriven::Failed(error.with_context("dead_letters", at)),
    };
    let mut reader = match letters.read(range).await {
        Ok(reader) => reader,
        Err(error) => return Redriven::Failed(error.with_context("dead_letters", at)),
    };
    let mut below = parked.redriven.0;
    let mut read = Vec::new();
    loop {
        match reader.next(CHUNK, &mut read).await {
            Ok(0) => return Redriven::All(below),
            Ok(_) => {}
            Err(error) => return Redriven::Failed(error.with_context("dead_letters", at)),
        }
        for (place, message) in read.drain(..) {
            // A letter that was published again, by this owner or another, comes after the first of it.
            let Some(offset) = origin(&message, &group, &partition, &parked.key).filter(|at| *at >= below)
            else {
                continue;
            };
            let (done, ended) = oneshot::channel();
            let letter = Letter { offset, place, message };
            lanes.tell(&parked.key, ToShard::Redrive { owned, letter, done });
            match ended.await {
                Ok(true) => below = offset + 1,
                Ok(false) => return Redriven::Stopped,
                Err(_) => return Redriven::Cancelled,
            }
        }
    }
}

/// From the first letter that is left to the last one that there is now: the key is held, so none follows.
async fn range(letters: &dyn Backend, parked: &ParkedKey) -> Result<ReadRange, Error> {
    let PartitionId { topic, partition, .. } = &parked.letters;
    let info = letters.describe_topic(topic).await?;
    let Some(there) = info.partitions.get(*partition as usize) else {
        let message = "the partition with the dead letters is gone; restore the topic";
        return Err(Error::new(ErrorKind::NotFound, message));
    };
    if there.earliest > parked.next_letter {
        tracing::warn!(key = %parked.key, dead_letters = %parked.letters, from = parked.next_letter, to = there.earliest,
            "dead letters expired before their key was redriven; what is left of them runs");
    }
    Ok(ReadRange::new(topic.clone(), *partition, parked.next_letter, there.end))
}

/// The offset of the message that this is a dead letter of, if it is of this group, partition and key.
fn origin(message: &Message, group: &Group, partition: &PartitionId, key: &Key) -> Option<u64> {
    let header = |name: &str| message.headers.first_str(name);
    if message.key.as_ref() != Some(key)
        || header(dead_letter::GROUP)? != group.as_str()
        || header(dead_letter::TOPIC)? != partition.topic.as_str()
        || header(dead_letter::PARTITION)?.parse::<u32>().ok()? != partition.partition
    {
        return None;
    }
    header(dead_letter::OFFSET)?.parse().ok()
}
