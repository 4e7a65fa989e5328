//! The list of a partition's parked keys, as text that a backend keeps and an operator can read.
//!
//! ```text
//! ebus-parked 1
//! <key> <offset> <epoch> <redriven> <topic> <partition> <next letter> <since, ms> <parked, stopped or done> <error>
//! end <lines>
//! ```
//! Bytes of a key that are not letters, digits or one of `._:/-` are `%XX`; an empty key is `%`. The error is what is left of the line.

use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::Bytes;
use ebus_core::{Epoch, Error, ErrorKind, Key, NextOffset, PartitionId, Timestamp, Topic};

use super::ParkedKey;

const HEAD: &str = "ebus-parked 1\n";
/// What head and end take.
const FRAME_BYTES: usize = 64;
/// The most that a line takes beside key and topic: five numbers of 20 digits and one of 10, an error of 120 bytes, what is between them.
const LINE_BYTES: usize = 256;
/// The longest key that there shall be a place for: the longest aggregate id, none of whose bytes is escaped.
const KEY_BYTES: usize = 256;

/// The parked keys of a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ParkedSet(BTreeMap<Key, ParkedKey>);

impl ParkedSet {
    /// The most bytes that a key takes in the text, whatever happens to it later.
    pub(crate) fn cost(key: &Key, letters: &Topic) -> usize {
        escaped(key.as_bytes()).len() + letters.as_str().len() + LINE_BYTES
    }

    /// How many bytes of keys fit into a text of `most` bytes.
    pub(crate) fn room(most: usize) -> usize {
        most.saturating_sub(FRAME_BYTES)
    }

    /// How many keys fit for sure into a text of `most` bytes. Those that are longer, or have bytes that are escaped, take more.
    pub(crate) fn fits(most: usize, letters: &Topic) -> usize {
        Self::room(most) / (KEY_BYTES + letters.as_str().len() + LINE_BYTES)
    }

    pub(crate) fn put(&mut self, parked: ParkedKey) {
        self.0.insert(parked.key.clone(), parked);
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        self.0.remove(key);
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&ParkedKey> {
        self.0.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &Key) -> Option<&mut ParkedKey> {
        self.0.get_mut(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &ParkedKey> {
        self.0.values()
    }

    /// Those that are parked.
    pub(crate) fn parked(&self) -> impl Iterator<Item = &ParkedKey> {
        self.iter().filter(|parked| !parked.done)
    }

    /// Forgets the oldest of those that are done, until at most `most` of them are left and the text fits into `bytes`.
    pub(crate) fn forget_done(&mut self, most: usize, bytes: usize) {
        let mut done: Vec<_> =
            self.iter().filter(|one| one.done).map(|one| (one.since, one.key.clone())).collect();
        done.sort();
        let cost: usize = self.iter().map(|one| Self::cost(&one.key, &one.letters.topic)).sum();
        let (mut left, mut cost) = (done.len(), cost + FRAME_BYTES);
        for (_, key) in done {
            if left <= most && cost <= bytes {
                return;
            }
            if let Some(gone) = self.0.remove(&key) {
                cost -= Self::cost(&key, &gone.letters.topic);
                left -= 1;
            }
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut text = HEAD.to_owned();
        for parked in self.0.values() {
            let state = match (parked.done, parked.stopped) {
                (true, _) => "done",
                (false, true) => "stopped",
                (false, false) => "parked",
            };
            // A string takes any text.
            let _ = writeln!(
                text,
                "{} {} {} {} {} {} {} {} {state} {}",
                escaped(parked.key.as_bytes()),
                parked.offset,
                parked.epoch,
                parked.redriven,
                parked.letters.topic,
                parked.letters.partition,
                parked.next_letter,
                parked.since.as_millis(),
                parked.error,
            );
        }
        let _ = writeln!(text, "end {}", self.0.len());
        text.into()
    }

    /// Nobody may guess which keys are parked: whatever is not a whole list is an error.
    pub(crate) fn decode(text: &[u8], partition: &PartitionId) -> Result<Self, Error> {
        parse(text, partition).ok_or_else(|| {
            Error::new(
                ErrorKind::Decode,
                "the list of parked keys cannot be read, so nothing of its partition is handled; restore it, or remove it \
                 if the order of these keys does not matter any more",
            )
        })
    }
}

fn parse(text: &[u8], home: &PartitionId) -> Option<ParkedSet> {
    let text = std::str::from_utf8(text).ok()?;
    let mut lines = text.strip_prefix(HEAD)?.strip_suffix('\n')?.split('\n');
    let count: usize = lines.next_back()?.strip_prefix("end ")?.parse().ok()?;
    let mut set = ParkedSet::default();
    for line in lines {
        let [key, offset, epoch, redriven, topic, partition, next_letter, since, state, error] =
            line.splitn(10, ' ').collect::<Vec<_>>().try_into().ok()?;
        set.put(ParkedKey {
            key: Key::new(unescaped(key)?),
            partition: home.clone(),
            offset: offset.parse().ok()?,
            epoch: Epoch(epoch.parse().ok()?),
            redriven: NextOffset(redriven.parse().ok()?),
            letters: PartitionId::new(Topic::new(topic).ok()?, partition.parse().ok()?),
            next_letter: next_letter.parse().ok()?,
            since: Timestamp::from_millis(since.parse().ok()?),
            error: error.to_owned(),
            stopped: state == "stopped",
            done: match state {
                "parked" | "stopped" => false,
                "done" => true,
                _ => return None,
            },
        });
    }
    (set.0.len() == count).then_some(set)
}

/// Who asks for what: the key, and the message that parked it, so that a late request means no later parking. And when, so
/// that the answer to one request is none to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) key: Key,
    pub(crate) offset: u64,
    /// Nanoseconds since 1970.
    pub(crate) asked: u128,
}

impl Request {
    pub(crate) fn encode(&self) -> Bytes {
        format!("redrive {} {} {}", escaped(self.key.as_bytes()), self.offset, self.asked).into()
    }

    pub(crate) fn decode(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?.strip_prefix("redrive ")?;
        let [key, offset, asked] = text.split(' ').collect::<Vec<_>>().try_into().ok()?;
        Some(Self {
            key: Key::new(unescaped(key)?),
            offset: offset.parse().ok()?,
            asked: asked.parse().ok()?,
        })
    }
}

fn escaped(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "%".into();
    }
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"._:/-".contains(byte) {
            text.push(char::from(*byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

fn unescaped(text: &str) -> Option<Vec<u8>> {
    if text == "%" {
        return Some(Vec::new());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = behind;
    }
    Some(bytes)
}

#[cfg(test)]
#[path = "set_tests.rs"]
mod tests;
