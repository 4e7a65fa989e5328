//! Parked keys in the groups' bucket: a value per partition by compare-and-set, and a key for each request (G2, G3).
//!
//! Every write of the owner names the revision that it replaces, so that a former owner's comes too late in any order. A write
//! whose reply was lost is repeated, and on a conflict settled by a read from the leader: own epoch = ours, a higher one = fenced.

use std::collections::HashMap;

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use ebus_core::{Epoch, Error, ErrorKind, Group, LogMark, Parking, PartitionId, Topic};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::connection::Connection;
use crate::names;
use crate::store::{Store, Stored, Written};
use crate::stream as topics;

/// The longest value: half of what a server takes by default as a message (`max_payload`, 1 MiB).
const MOST_BYTES: usize = 512 << 10;
/// What is left of a message's size for the line before the value, the subject and the headers.
const FRAME_BYTES: usize = 1 << 10;

/// Parked keys of one group.
pub(crate) struct NatsParking {
    connection: Connection,
    store: Store,
    group: Group,
    closed: watch::Receiver<bool>,
    /// What this process wrote last of the partitions that it claimed.
    claimed: Mutex<HashMap<PartitionId, Claimed>>,
}

#[derive(Debug, Clone, Copy)]
struct Claimed {
    mark: LogMark,
    revision: u64,
}

/// What is stored of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    mark: LogMark,
    epoch: Epoch,
    value: Option<Bytes>,
}

impl Kept {
    /// A line for people, and behind it the value.
    fn encode(&self) -> Bytes {
        let state = if self.value.is_some() { "value" } else { "empty" };
        let line = format!("{:x} {} {state}\n", self.mark.0, self.epoch.0);
        let value: &[u8] = self.value.as_ref().map_or(&[], |value| value);
        let mut frame = BytesMut::with_capacity(line.len() + value.len());
        frame.put_slice(line.as_bytes());
        frame.put_slice(value);
        frame.freeze()
    }

    fn decode(frame: &Bytes) -> Option<Self> {
        let end = frame.iter().position(|byte| *byte == b'\n')?;
        let line = std::str::from_utf8(&frame[..end]).ok()?;
        let [mark, epoch, state] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
        let value = match state {
            "value" => Some(frame.slice(end + 1..)),
            "empty" => None,
            _ => return None,
        };
        Some(Self {
            mark: LogMark(u128::from_str_radix(mark, 16).ok()?),
            epoch: Epoch(epoch.parse().ok()?),
            value,
        })
    }
}

impl NatsParking {
    /// Opens the bucket, and writes to it to see that this is allowed.
    ///
    /// # Errors
    /// What the server says; without the right to write it does not answer: `Timeout`.
    pub(crate) async fn open(
        connection: Connection,
        group: Group,
        closed: watch::Receiver<bool>,
    ) -> Result<Self, Error> {
        let store = Store::open(connection.clone()).await?;
        let parking = Self::of(connection, store, group, closed);
        let key = names::parking_key(&parking.group);
        loop {
            let stored = parking.store.read(&key).await?;
            let revision = stored.map_or(0, |stored| stored.revision);
            match parking.write(&key, Bytes::from_static(b"1"), revision).await {
                Written::Accepted { .. } => return Ok(parking),
                // Somebody else has opened it at the same time.
                Written::Conflict => {}
                Written::Failed(error) => return Err(error.with_context("group", &parking.group)),
            }
        }
    }

    /// Finds it, and writes nothing.
    ///
    /// # Errors
    /// `NotFound` when nobody has opened it; what the server says.
    pub(crate) async fn existing(
        connection: Connection,
        group: Group,
        closed: watch::Receiver<bool>,
    ) -> Result<Self, Error> {
        let store = Store::bind(connection.clone());
        // Where the bucket was made anew under its members, what they have written since says it too.
        let known = async {
            let opened = store.read(&names::parking_key(&group)).await?;
            Ok::<_, Error>(opened.is_some() || store.next(&names::parked_keys(&group), 1).await?.is_some())
        };
        match known.await {
            Ok(true) => Ok(Self::of(connection, store, group, closed)),
            Ok(false) => Err(ebus_core::no_parked_keys(&group)),
            // There is no bucket: nobody has joined any group yet.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(ebus_core::no_parked_keys(&group).with_source(error))
            }
            Err(error) => Err(error.with_context("group", &group)),
        }
    }

    fn of(connection: Connection, store: Store, group: Group, closed: watch::Receiver<bool>) -> Self {
        Self { connection, store, group, closed, claimed: Mutex::default() }
    }

    fn check_open(&self, operation: &'static str) -> Result<(), Error> {
        if *self.closed.borrow() { Err(Error::closed(operation)) } else { Ok(()) }
    }

    async fn write(&self, key: &str, value: Bytes, revision: u64) -> Written {
        let within = self.connection.request_timeout;
        self.store.write(key, value, revision, within / 3, within).await
    }

    async fn mark(&self, topic: &Topic) -> Result<LogMark, Error> {
        Ok(topics::find(&self.connection, topic, "parking").await?.mark)
    }

    fn key(&self, partition: &PartitionId) -> String {
        names::parked_key(&self.group, partition)
    }

    /// What is stored of a partition, and its revision.
    async fn look(&self, partition: &PartitionId) -> Result<(Option<Kept>, u64), Error> {
        let Some(Stored { revision, value }) = self.store.read(&self.key(partition)).await? else {
            return Ok((None, 0));
        };
        let Some(frame) = value else { return Ok((None, revision)) };
        match Kept::decode(&frame) {
            Some(kept) => Ok((Some(kept), revision)),
            None => {
                let message = "the parked keys of the partition are damaged; restore the key from a backup of the bucket, or delete it \
                               if their order does not matter any more";
                Err(Error::new(ErrorKind::Decode, message)
                    .with_context("partition", partition)
                    .with_context("key", self.key(partition)))
            }
        }
    }

    fn fenced(&self, partition: &PartitionId) -> Error {
        let message = "the parked keys of the partition are claimed by a later owner";
        Error::new(ErrorKind::Fenced, message)
            .with_context("group", &self.group)
            .with_context("partition", partition)
    }
}

#[async_trait]
impl Parking for NatsParking {
    fn max_bytes(&self) -> usize {
        MOST_BYTES.min(self.connection.client.max_payload().saturating_sub(FRAME_BYTES))
    }

    async fn claim(&self, partition: &PartitionId, epoch: Epoch) -> Result<Option<Bytes>, Error> {
        self.check_open("claim")?;
        let mark = self.mark(&partition.topic).await?;
        loop {
            let (found, revision) = self.look(partition).await?;
            let of_this = found.as_ref().filter(|kept| kept.mark == mark);
            if of_this.is_some_and(|kept| kept.epoch > epoch) {
                return Err(self.fenced(partition));
            }
            if of_this.is_none() && found.as_ref().is_some_and(|kept| kept.value.is_some()) {
                tracing::warn!(group = %self.group, %partition,
                    "the topic was made anew: its parked keys are forgotten, and their dead letters stay where they are");
            }
            let kept = Kept { mark, epoch, value: of_this.and_then(|kept| kept.value.clone()) };
            match self.write(&self.key(partition), kept.encode(), revision).await {
                Written::Accepted { revision, .. } => {
                    self.claimed.lock().insert(partition.clone(), Claimed { mark, revision });
                    return Ok(kept.value);
                }
                // A former owner's last word, or the first attempt of this very write.
                Written::Conflict => {}
                Written::Failed(error) => return Err(error.with_context("partition", partition)),
            }
        }
    }

    async fn keep(&self, partition: &PartitionId, epoch: Epoch, value: Bytes) -> Result<(), Error> {
        self.check_open("keep")?;
        if value.len() > self.max_bytes() {
            let message =
                format!("the list has {} bytes; at most {} are kept", value.len(), self.max_bytes());
            return Err(Error::new(ErrorKind::TooLarge, message).with_operation("keep"));
        }
        let claimed = self.claimed.lock().get(partition).copied();
        let Claimed { mark, mut revision } = claimed.ok_or_else(|| self.fenced(partition))?;
        let kept = Kept { mark, epoch, value: Some(value) };
        loop {
            match self.write(&self.key(partition), kept.encode(), revision).await {
                Written::Accepted { revision, .. } => {
                    self.claimed.lock().insert(partition.clone(), Claimed { mark, revision });
                    return Ok(());
                }
                Written::Conflict => {
                    let (found, now) = self.look(partition).await?;
                    if !found.is_some_and(|found| (found.mark, found.epoch) == (mark, epoch)) {
                        return Err(self.fenced(partition));
                    }
                    // Of this ownership: this write, or one before it whose reply was lost.
                    revision = now;
                }
                Written::Failed(error) => return Err(error.with_context("partition", partition)),
            }
        }
    }

    async fn read(&self, partition: &PartitionId) -> Result<Option<Bytes>, Error> {
        self.check_open("read")?;
        let mark = self.mark(&partition.topic).await?;
        let (found, _) = self.look(partition).await?;
        Ok(found.filter(|kept| kept.mark == mark).and_then(|kept| kept.value))
    }

    async fn ask(&self, partition: &PartitionId, request: Bytes) -> Result<(), Error> {
        self.check_open("ask")?;
        let key = names::request_key(&self.group, partition, Some(&request));
        loop {
            let stored = self.store.read(&key).await?;
            let revision = match stored {
                Some(Stored { value: Some(_), .. }) => return Ok(()),
                Some(Stored { revision, .. }) => revision,
                None => 0,
            };
            match self.write(&key, request.clone(), revision).await {
                Written::Accepted { .. } => return Ok(()),
                Written::Conflict => {}
                Written::Failed(error) => return Err(error.with_context("partition", partition)),
            }
        }
    }

    async fn asked(&self, partition: &PartitionId) -> Result<Vec<Bytes>, Error> {
        self.check_open("asked")?;
        let filter = names::request_key(&self.group, partition, None);
        let (mut asked, mut from) = (Vec::new(), 1);
        while let Some((_, stored)) = self.store.next(&filter, from).await? {
            asked.extend(stored.value);
            from = stored.revision + 1;
        }
        Ok(asked)
    }

    async fn answered(&self, partition: &PartitionId, request: &Bytes) -> Result<(), Error> {
        self.check_open("answered")?;
        let key = names::request_key(&self.group, partition, Some(request));
        loop {
            let Some(Stored { revision, value: Some(_) }) = self.store.read(&key).await? else {
                return Ok(());
            };
            let within = self.connection.request_timeout;
            match self.store.delete(&key, revision, within / 3, within).await {
                Written::Accepted { revision, .. } => {
                    if let Err(error) = self.store.sweep(&key, revision).await {
                        tracing::debug!(error = %error.chain(), "the marker of a request stays; it harms nobody");
                    }
                    return Ok(());
                }
                Written::Conflict => {}
                Written::Failed(error) => return Err(error.with_context("partition", partition)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_kept_comes_back() {
        for value in [None, Some(Bytes::new()), Some(Bytes::from_static(b"a\nb\0"))] {
            let kept = Kept { mark: LogMark(0xfeed), epoch: Epoch(7), value };
            assert_eq!(Kept::decode(&kept.encode()), Some(kept));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_damaged_or_kept(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Kept::decode(&bytes.into());
        }
    }
}
