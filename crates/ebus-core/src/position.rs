//! What is committed: the low watermark and what finished above it (G1, G6), as text that every broker can keep.
//!
//! ```text
//! e1.<mark>.<epoch>.<watermark>.<set>.<crc32>
//! ```
//! Numbers are hexadecimal. The set is `-` (empty), `r` and base64 of varints (skip, length, skip, length, ... from the
//! watermark on), or `b` and base64 of a bitmap whose first bit is the watermark: whichever is shorter. All is ASCII
//! because Kafka keeps commit metadata as a string.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::{Epoch, NextOffset, OffsetSet};

const VERSION: &str = "e1";

/// The longest text around the set: version, a mark of 32 digits, two numbers of 16, the kind, dots, the checksum.
pub(crate) const MAX_FRAME_LEN: usize = 2 + 32 + 16 + 16 + 1 + 5 + 8;

/// Which log a position belongs to: changes when a topic is made anew under its old name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LogMark(pub u128);

/// How far a group is in a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Position {
    /// All below it is finished.
    pub watermark: NextOffset,
    /// What is finished above it.
    pub finished: OffsetSet,
}

/// Why a committed text is not a position of this log. The set is then ignored: duplicates, never a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PositionError {
    /// Not written by ebus, or by a version that this one does not know.
    Foreign,
    /// The checksum does not match, or the set is malformed.
    Damaged,
    /// Written for another log, such as a topic that was made anew.
    OtherLog,
    /// Written beside another watermark, such as by a mirror that translated it.
    OtherWatermark,
}

impl fmt::Display for PositionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Foreign => "the committed metadata was not written by this version of ebus",
            Self::Damaged => "the committed metadata is damaged",
            Self::OtherLog => "the committed metadata belongs to another log of this name",
            Self::OtherWatermark => "the committed metadata belongs to another offset",
        })
    }
}

impl std::error::Error for PositionError {}

impl Position {
    /// A position with nothing finished above `watermark`.
    pub fn at(watermark: NextOffset) -> Self {
        Self { watermark, finished: OffsetSet::new() }
    }

    /// As text, for the broker to keep.
    pub fn encode(&self, mark: LogMark, epoch: Epoch) -> String {
        let set = encode_set(self.watermark.0, &self.finished);
        let mut text = format!("{VERSION}.{:x}.{:x}.{:x}.{set}", mark.0, epoch.0, self.watermark.0);
        let checksum = crc32fast::hash(text.as_bytes());
        text.push_str(&format!(".{checksum:08x}"));
        text
    }

    /// From text that a broker kept, and the epoch that wrote it.
    ///
    /// `beside` is the watermark that the broker keeps apart from the text, where it does (Kafka).
    ///
    /// # Errors
    /// The reason why the text does not count; the caller warns and goes on from the bare watermark.
    pub fn decode(
        text: &[u8],
        mark: LogMark,
        beside: Option<NextOffset>,
    ) -> Result<(Self, Epoch), PositionError> {
        let text = std::str::from_utf8(text).map_err(|_| PositionError::Foreign)?;
        let (body, checksum) = text.rsplit_once('.').ok_or(PositionError::Foreign)?;
        let mut fields = body.split('.');
        if fields.next() != Some(VERSION) {
            return Err(PositionError::Foreign);
        }
        let checksum = u32::from_str_radix(checksum, 16).map_err(|_| PositionError::Damaged)?;
        if checksum != crc32fast::hash(body.as_bytes()) {
            return Err(PositionError::Damaged);
        }
        let mut number = || {
            let digits = fields.next().ok_or(PositionError::Damaged)?;
            u128::from_str_radix(digits, 16).map_err(|_| PositionError::Damaged)
        };
        let written_for = LogMark(number()?);
        let epoch = Epoch(u64::try_from(number()?).map_err(|_| PositionError::Damaged)?);
        let watermark = NextOffset(u64::try_from(number()?).map_err(|_| PositionError::Damaged)?);
        let set = fields.next().ok_or(PositionError::Damaged)?;
        if fields.next().is_some() {
            return Err(PositionError::Damaged);
        }
        // First, because a mirror translates the offset and keeps the text: that log is another one too, and was not made anew.
        if beside.is_some_and(|beside| beside != watermark) {
            return Err(PositionError::OtherWatermark);
        }
        if written_for != mark {
            return Err(PositionError::OtherLog);
        }
        let finished = decode_set(watermark.0, set).ok_or(PositionError::Damaged)?;
        Ok((Self { watermark, finished }, epoch))
    }
}

/// Bytes of `value` as a varint.
#[inline]
pub(crate) fn varint_len(value: u64) -> usize {
    if value < 128 {
        return 1;
    }
    (64 - value.leading_zeros() as usize).div_ceil(7)
}

fn encode_set(watermark: u64, set: &OffsetSet) -> String {
    let Some(end) = set.end().filter(|end| *end > watermark) else { return "-".into() };
    let mut runs = Vec::new();
    let mut at = watermark;
    for &(start, stop) in set.runs().iter().filter(|run| run.1 > watermark) {
        let start = start.max(watermark);
        put_varint(&mut runs, start - at);
        put_varint(&mut runs, stop - start);
        at = stop;
    }
    let bitmap_len = usize::try_from((end - watermark).div_ceil(8)).unwrap_or(usize::MAX);
    if runs.len() <= bitmap_len {
        return format!("r{}", URL_SAFE_NO_PAD.encode(runs));
    }
    let mut bitmap = vec![0u8; bitmap_len];
    for &(start, stop) in set.runs() {
        for bit in start.max(watermark) - watermark..stop.saturating_sub(watermark) {
            bitmap[(bit / 8) as usize] |= 1 << (bit % 8);
        }
    }
    format!("b{}", URL_SAFE_NO_PAD.encode(bitmap))
}

fn decode_set(watermark: u64, text: &str) -> Option<OffsetSet> {
    let mut set = OffsetSet::new();
    match text.split_at_checked(1)? {
        ("-", "") => {}
        ("r", encoded) => {
            let bytes = URL_SAFE_NO_PAD.decode(encoded).ok()?;
            let mut rest = bytes.as_slice();
            let mut at = watermark;
            while !rest.is_empty() {
                let start = at.checked_add(take_varint(&mut rest)?)?;
                at = start.checked_add(take_varint(&mut rest)?)?;
                set.push(start, at);
            }
        }
        ("b", encoded) => {
            for (i, byte) in URL_SAFE_NO_PAD.decode(encoded).ok()?.into_iter().enumerate() {
                for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                    let offset = watermark.checked_add(i as u64 * 8 + bit)?;
                    set.push(offset, offset.checked_add(1)?);
                }
            }
        }
        _ => return None,
    }
    Some(set)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(first & 0x7f);
        if part << shift >> shift != part {
            return None;
        }
        value |= part << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MARK: LogMark = LogMark(0xfeed);

    fn position(watermark: u64, offsets: &[u64]) -> Position {
        let mut position = Position::at(NextOffset(watermark));
        for offset in offsets {
            position.finished.push(*offset, offset + 1);
        }
        position
    }

    #[test]
    fn the_text_is_fixed() {
        let text = position(10, &[12, 13, 20]).encode(MARK, Epoch(3));
        assert_eq!(text, "e1.feed.3.a.bDAQ.".to_owned() + &text[text.len() - 8..]);
        assert_eq!(position(10, &[]).encode(LogMark(0), Epoch(1)).split('.').nth(4), Some("-"));
        assert_eq!(position(0, &[1_000_000]).encode(LogMark(0), Epoch(1)).split('.').nth(4), Some("rwIQ9AQ"));
    }

    #[test]
    fn what_is_not_ours_is_named() {
        let text = position(10, &[12]).encode(MARK, Epoch(3));
        let decode = |text: &str| Position::decode(text.as_bytes(), MARK, None).expect_err(text);
        assert_eq!(decode(""), PositionError::Foreign);
        assert_eq!(decode("hello.world"), PositionError::Foreign);
        assert_eq!(decode(&text.replace("e1.", "e2.")), PositionError::Foreign);
        assert_eq!(decode(&text.replace(".a.", ".b.")), PositionError::Damaged);
        assert_eq!(Position::decode(&[0xff, 0xfe], MARK, None), Err(PositionError::Foreign));
        assert_eq!(Position::decode(text.as_bytes(), LogMark(1), None), Err(PositionError::OtherLog));
        let beside = Some(NextOffset(11));
        assert_eq!(Position::decode(text.as_bytes(), MARK, beside), Err(PositionError::OtherWatermark));
    }

    #[test]
    fn p5_what_stands_around_the_set_is_never_longer_than_what_is_kept_free_for_it() {
        let text = Position::at(NextOffset(u64::MAX)).encode(LogMark(u128::MAX), Epoch(u64::MAX));
        assert_eq!(text.len(), MAX_FRAME_LEN);
    }

    #[test]
    fn what_is_finished_below_the_watermark_takes_no_place() {
        let set = |watermark, offsets: &[u64]| encode_set(watermark, &position(0, offsets).finished);
        assert_eq!(set(10, &[3, 9]), "-");
        assert_eq!(set(10, &[9, 1_000_000]), set(10, &[1_000_000]));
        assert_eq!(set(10, &[9, 12, 14]), set(10, &[12, 14]));
    }

    proptest! {
        /// The bound of a ledger is a sum of these.
        #[test]
        fn p5_a_number_takes_as_many_bytes_as_is_said(bits in 0u32..64, below in any::<u64>()) {
            for value in [0, 1, (1 << bits) - 1, 1 << bits, below >> bits] {
                let mut bytes = Vec::new();
                put_varint(&mut bytes, value);
                prop_assert_eq!(bytes.len(), varint_len(value), "{}", value);
                prop_assert_eq!(take_varint(&mut bytes.as_slice()), Some(value));
            }
        }

        /// As runs or as a bitmap, whichever is shorter; and none of what is below the watermark.
        #[test]
        fn p5_the_shorter_of_two_ways(watermark in 0u64..300, runs in prop::collection::vec((1u64..60, 1u64..20), 1..40)) {
            let mut finished = OffsetSet::new();
            let mut at = 0;
            for (gap, len) in runs {
                finished.push(at + gap, at + gap + len);
                at += gap + len;
            }
            let mut above = finished.clone();
            above.forget_below(watermark);
            let text = encode_set(watermark, &finished);
            prop_assert_eq!(decode_set(watermark, &text), Some(above.clone()));
            let (mut bytes, mut before) = (0, watermark);
            for (start, end) in above.runs() {
                bytes += varint_len(start - before) + varint_len(end - start);
                before = *end;
            }
            let bitmap = above.end().map_or(0, |end| (end - watermark).div_ceil(8) as usize);
            prop_assert_eq!(text.len(), 1 + (bytes.min(bitmap) * 4).div_ceil(3), "{}", text);
        }

        #[test]
        fn survives_the_text(watermark in 0u64..1 << 40, gaps in prop::collection::vec((1u64..100, 1u64..9), 0..200)) {
            let mut position = Position::at(NextOffset(watermark));
            let mut at = watermark;
            for (gap, len) in gaps {
                position.finished.push(at + gap, at + gap + len);
                at += gap + len;
            }
            let text = position.encode(MARK, Epoch(7));
            prop_assert!(text.is_ascii());
            prop_assert_eq!(Position::decode(text.as_bytes(), MARK, Some(NextOffset(watermark))), Ok((position, Epoch(7))));
        }

        #[test]
        fn any_bytes_are_an_error_or_a_position(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Position::decode(&bytes, MARK, None);
        }

        #[test]
        fn one_changed_byte_never_passes(at in 0usize..30, to in any::<u8>()) {
            let position = position(1000, &[1002, 1007, 1100]);
            let mut bytes = position.encode(MARK, Epoch(9)).into_bytes();
            let at = at % bytes.len();
            prop_assume!(!bytes[at].eq_ignore_ascii_case(&to));
            bytes[at] = to;
            prop_assert!(Position::decode(&bytes, MARK, None).is_err());
        }
    }
}
