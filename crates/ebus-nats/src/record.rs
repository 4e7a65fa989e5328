//! A group's record of one partition: who owns it, under which epoch, and how far the group is (G1, G3, G6). And the
//! group's manifest, which tells a new group from a record that is gone.
//!
//! Both are JSON, for operators to read.

use std::collections::BTreeMap;

use ebus_core::{Epoch, Error, ErrorKind, LogMark, NextOffset, Position, PositionError};
use serde::{Deserialize, Serialize};

/// The form that this version writes and reads.
const VERSION: u32 = 1;

/// The longest text of a position where the user names none: room for the default span with gaps of up to 16,383 between
/// offsets, as the partition subjects of one stream have. A sixteenth of the message that a server takes by default
/// (`max_payload`, 1 MiB).
pub(crate) const MAX_POSITION_LEN: usize = 64 << 10;

/// What the group knows of one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) v: u32,
    /// When the stream was made, in hexadecimal nanoseconds: another stream under the same name is another log.
    pub(crate) stream: String,
    /// Who owns the partition; empty when it was released.
    pub(crate) owner: String,
    pub(crate) epoch: u64,
    /// Counts the writes of an epoch: tells whether a write whose reply was lost is the one that is stored.
    pub(crate) write: u64,
    /// The watermark by itself: it counts where the position's text does not.
    pub(crate) watermark: u64,
    pub(crate) position: String,
    /// How long the owner says that his ownership lasts without a word.
    pub(crate) lease_ms: u64,
    /// The instance of the owner's consumer, for the next owner to remove.
    pub(crate) consumer: u32,
}

/// What the bytes of a record say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    Record(Record),
    /// Not a record: the group begins again at the first message, which repeats and loses nothing.
    Damaged,
}

impl Record {
    pub(crate) fn new(mark: LogMark, position: &Position, epoch: Epoch, owner: &str) -> Self {
        Self {
            v: VERSION,
            stream: format!("{:x}", mark.0),
            owner: owner.to_owned(),
            epoch: epoch.0,
            write: 0,
            watermark: position.watermark.0,
            position: position.encode(mark, epoch),
            lease_ms: 0,
            consumer: 0,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default() // a struct of numbers and strings always is JSON
    }

    /// # Errors
    /// `Unsupported` for the record of a newer version: it must not be overwritten.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Stored, Error> {
        check_version(bytes)?;
        Ok(serde_json::from_slice(bytes).map_or(Stored::Damaged, Stored::Record))
    }

    pub(crate) fn is_of(&self, mark: LogMark) -> bool {
        u128::from_str_radix(&self.stream, 16) == Ok(mark.0)
    }

    /// The position, and why its set of what finished above the watermark does not count, if it does not.
    pub(crate) fn position(&self, mark: LogMark) -> (Position, Option<PositionError>) {
        let watermark = NextOffset(self.watermark);
        match Position::decode(self.position.as_bytes(), mark, Some(watermark)) {
            Ok((position, _)) => (position, None),
            Err(why) => (Position::at(watermark), Some(why)),
        }
    }
}

/// What a group has set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    v: u32,
    /// By name of the topic.
    pub(crate) topics: BTreeMap<String, Entry>,
}

/// A topic whose records were all made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    stream: String,
    pub(crate) partitions: u32,
}

impl Entry {
    pub(crate) fn new(mark: LogMark, partitions: u32) -> Self {
        Self { stream: format!("{:x}", mark.0), partitions }
    }
}

impl Default for Manifest {
    fn default() -> Self {
        Self { v: VERSION, topics: BTreeMap::new() }
    }
}

impl Manifest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default() // maps with keys of text always are JSON
    }

    /// # Errors
    /// `Decode` when it is damaged, `Unsupported` when a newer version wrote it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        check_version(bytes)?;
        serde_json::from_slice(bytes).map_err(|why| {
            Error::new(
                ErrorKind::Decode,
                "the group's manifest is damaged; if the group may begin anew, delete its keys from the bucket",
            )
            .with_source(why)
        })
    }
}

fn check_version(bytes: &[u8]) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    match serde_json::from_slice::<Version>(bytes) {
        Ok(Version { v }) if v > VERSION => Err(Error::new(
            ErrorKind::Unsupported,
            format!("the group's state has version {v}, this is version {VERSION}; use the newer ebus"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MARK: LogMark = LogMark(0x18_f00d);

    fn record() -> Record {
        let mut position = Position::at(NextOffset(10));
        position.finished.push(12, 14);
        Record { lease_ms: 3_000, consumer: 2, write: 7, ..Record::new(MARK, &position, Epoch(3), "me") }
    }

    /// A head that is stuck, and behind it the default span, every second message of it done.
    #[test]
    fn p4_the_default_span_fits_a_record_with_gaps() {
        let limits = ebus_core::LedgerLimits::default().or_max_position_len(MAX_POSITION_LEN);
        let mut ledger = ebus_core::Ledger::new(&Position::at(NextOffset(1 << 40)), limits);
        for message in 0..16_384u64 {
            let offset = (1 << 40) + message * 4_096;
            assert!(ledger.has_room(offset), "{message}");
            ledger.track(offset).expect("ascending");
            let _ = message % 2 == 0 && message > 0 && ledger.finish(offset);
        }
        let position = ledger.position();
        let record = Record::new(LogMark(1), &position, Epoch(7), "member");
        let bytes = record.encode();
        assert!(
            position.finished.runs().len() == 8_191 && bytes.len() <= MAX_POSITION_LEN,
            "{}",
            bytes.len()
        );
        let Ok(Stored::Record(read)) = Record::decode(&bytes) else { panic!("own") };
        assert_eq!(read.position(LogMark(1)), (position, None));
    }

    #[test]
    fn a_record_comes_back() {
        let record = record();
        assert_eq!(Record::decode(&record.encode()).expect("own"), Stored::Record(record.clone()));
        let (position, why) = record.position(MARK);
        assert_eq!(
            (position.watermark, position.finished.runs(), why),
            (NextOffset(10), &[(12, 14)][..], None)
        );
        assert!(record.is_of(MARK) && !record.is_of(LogMark(1)));
    }

    #[test]
    fn e06_a_damaged_position_is_its_bare_watermark() {
        let record = Record { position: "e1.x".into(), ..record() };
        let (position, why) = record.position(MARK);
        assert_eq!(position, Position::at(NextOffset(10)));
        assert!(why.is_some());
    }

    #[test]
    fn what_a_newer_version_wrote_is_left_alone() {
        let bytes = String::from_utf8(record().encode()).expect("json").replace("\"v\":1", "\"v\":2");
        assert_eq!(Record::decode(bytes.as_bytes()).expect_err("newer").kind(), ErrorKind::Unsupported);
        assert_eq!(Manifest::decode(b"{\"v\":9}").expect_err("newer").kind(), ErrorKind::Unsupported);
        assert_eq!(Manifest::decode(b"[]").expect_err("damaged").kind(), ErrorKind::Decode);
    }

    #[test]
    fn a_manifest_comes_back() {
        let mut manifest = Manifest::default();
        manifest.topics.insert("orders".into(), Entry::new(MARK, 4));
        assert_eq!(Manifest::decode(&manifest.encode()).expect("own"), manifest);
    }

    proptest! {
        #[test]
        fn e06_any_bytes_are_a_record_or_damaged(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(Record::decode(&bytes).expect("no version"), Stored::Damaged);
        }
    }
}
