//! What a group keeps per partition, and what of it counts when somebody takes over (G1, G6, G9).

use ebus_core::{Epoch, Error, ErrorKind, Group, NextOffset, Position, PositionError};

use crate::log::Log;

/// A committed position as brokers keep it: an offset, a text beside it, and the epoch that wrote it.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) watermark: u64,
    pub(crate) text: Vec<u8>,
    /// The highest epoch that was ever given out, whatever the text says.
    pub(crate) epoch: Epoch,
}

impl Kept {
    pub(crate) fn new(log: &Log, position: &Position, epoch: Epoch) -> Self {
        let text = position.encode(log.mark, epoch).into_bytes();
        Self { watermark: position.watermark.0, text, epoch }
    }

    /// Where to go on in `log`, and what had to be ignored for that.
    ///
    /// A text that is damaged or foreign leaves the bare offset. A text of another log, or an offset beyond the end, says
    /// that the topic was made anew: its beginning. An offset whose messages are gone: the first that are there.
    pub(crate) fn position(&self, group: &Group, log: &Log) -> (Position, Option<Error>) {
        let (trimmed_to, end) = log.bounds();
        let trouble = |message: String| {
            let error = Error::new(ErrorKind::Decode, message)
                .with_operation("assign")
                .with_context("group", group)
                .with_context("partition", &log.id);
            tracing::warn!(%error, "the committed position does not count as it stands");
            Some(error)
        };
        let beside = NextOffset(self.watermark);
        let (mut position, mut error) = match Position::decode(&self.text, log.mark, Some(beside)) {
            Ok((position, _)) => (position, None),
            Err(why @ PositionError::OtherLog) => {
                let error = trouble(format!("{why}; the group begins at offset {trimmed_to}"));
                (Position::at(NextOffset(trimmed_to)), error)
            }
            Err(why) => {
                let error = trouble(format!("{why}; what finished above offset {beside} runs again"));
                (Position::at(beside), error)
            }
        };
        if position.watermark.0 > end {
            let at = position.watermark;
            error = trouble(format!(
                "offset {at} is beyond the end of the log, {end}; the group begins at offset {trimmed_to}"
            ));
            position = Position::at(NextOffset(trimmed_to));
        }
        if position.watermark.0 < trimmed_to {
            let at = position.watermark;
            error = trouble(format!("offsets {at} to {trimmed_to} are gone; the group goes on after them"));
            position.watermark = NextOffset(trimmed_to);
            position.finished.forget_below(trimmed_to);
        }
        (position, error)
    }
}
