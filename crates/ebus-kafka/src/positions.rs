//! Where a partition is taken over, and where a new group begins (G1, G6).
//!
//! The position travels in the commit's metadata, beside the offset that every Kafka client reads. What is not ours or damaged
//! is ignored with a warning and the bare offset counts; of a topic that was made anew not even that counts. Both cost
//! duplicates and never a loss.

use std::collections::HashMap;

use ebus_core::{
    Committed, Epoch, Error, ErrorKind, Group, LogMark, NextOffset, PartitionId, PartitionInfo, Position,
    PositionError, StartPosition, Topic,
};

use crate::sys::admin::{self, GroupOffset, NewOffset};
use crate::topics::{Control, not_found};

/// Where one partition is taken over.
#[derive(Debug)]
pub(crate) struct TakeOver {
    pub(crate) partition: PartitionId,
    pub(crate) position: Position,
    /// The epoch of the last owner.
    pub(crate) epoch: Epoch,
    pub(crate) mark: LogMark,
    /// What was wrong with what the group had committed.
    pub(crate) trouble: Option<Error>,
}

/// Looks up where these partitions are to be taken over; blocks. `start` is for topics that the group has never read.
pub(crate) fn take_over(
    control: &Control,
    group: &Group,
    partitions: &[PartitionId],
    start: StartPosition,
) -> Result<Vec<TakeOver>, Error> {
    let mut topics: Vec<&Topic> = partitions.iter().map(|id| &id.topic).collect();
    topics.sort_unstable();
    topics.dedup();
    let mut out = Vec::with_capacity(partitions.len());
    for topic in topics {
        let described = control.existing(topic)?;
        let mark = LogMark(described.id);
        let committed = group_offsets(control, group, topic, described.partitions)?;
        let known = committed.values().any(|found| found.offset.is_some());
        let begin = if known { StartPosition::Earliest } else { start };
        for id in partitions.iter().filter(|id| id.topic == *topic) {
            let range = control.range(topic, id.partition)?;
            let found = committed.get(&id.partition).and_then(|found| Some((found.offset?, found)));
            let taken = match found {
                Some((offset, found)) => resume(id.clone(), mark, offset, &found.metadata, range),
                None => {
                    let at = begin_at(control, topic, described.partitions, begin)?;
                    let at = at.get(id.partition as usize).copied().unwrap_or(range.earliest);
                    TakeOver {
                        partition: id.clone(),
                        position: Position::at(NextOffset(at)),
                        epoch: Epoch(0),
                        mark,
                        trouble: None,
                    }
                }
            };
            out.push(taken);
        }
    }
    Ok(out)
}

/// Goes on where the group has committed, as far as that is there.
fn resume(id: PartitionId, mark: LogMark, offset: i64, metadata: &[u8], range: PartitionInfo) -> TakeOver {
    let committed = NextOffset(u64::try_from(offset).unwrap_or(0));
    let mut trouble = None;
    let (mut position, epoch) = match Position::decode(metadata, mark, Some(committed)) {
        Ok(found) => found,
        Err(error) => {
            if !metadata.is_empty() {
                trouble = Some(ignored(&id, error));
            }
            // The offset is one of a log that is no more: in the new one it would pass over what nobody has read.
            let from = if error == PositionError::OtherLog { NextOffset(range.earliest) } else { committed };
            (Position::at(from), Epoch(0))
        }
    };
    let wrong = if position.watermark != committed {
        None
    } else if committed.0 < range.earliest {
        Some("the committed offset is below the log; reading goes on at the first message that is there")
    } else if committed > range.end {
        Some("the committed offset is beyond the log; reading begins at the first message that is there")
    } else {
        None
    };
    if let Some(wrong) = wrong {
        trouble = Some(
            Error::new(ErrorKind::NotFound, wrong)
                .with_operation("consume")
                .with_context("partition", &id)
                .with_context("committed", committed)
                .with_context("earliest", range.earliest)
                .with_context("end", range.end),
        );
        if committed > range.end {
            position = Position::at(NextOffset(range.earliest));
        } else {
            position.watermark = NextOffset(range.earliest);
            position.finished.forget_below(range.earliest);
        }
    }
    TakeOver { partition: id, position, epoch, mark, trouble }
}

fn ignored(id: &PartitionId, error: PositionError) -> Error {
    Error::new(ErrorKind::Decode, "what finished above the committed offset is not known; it runs again")
        .with_operation("consume")
        .with_context("partition", id)
        .with_source(error)
}

fn group_offsets(
    control: &Control,
    group: &Group,
    topic: &Topic,
    partitions: u32,
) -> Result<HashMap<u32, GroupOffset>, Error> {
    let all: Vec<(&str, u32)> = (0..partitions).map(|partition| (topic.as_str(), partition)).collect();
    let found =
        match admin::group_offsets(control.client(), group.as_str(), all.into_iter(), control.timeout()) {
            Ok(found) => found,
            // A group that never was has no offsets.
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
    Ok(found.into_iter().filter_map(|found| Some((u32::try_from(found.partition).ok()?, found))).collect())
}

fn begin_at(
    control: &Control,
    topic: &Topic,
    partitions: u32,
    start: StartPosition,
) -> Result<Vec<u64>, Error> {
    match start {
        StartPosition::Time(time) => control.at_time(topic, partitions, time.as_millis()),
        StartPosition::Latest => (0..partitions)
            .map(|partition| control.range(topic, partition).map(|range| range.end.0))
            .collect(),
        _ => (0..partitions)
            .map(|partition| control.range(topic, partition).map(|range| range.earliest))
            .collect(),
    }
}

/// Commits where a group begins that has never read this topic; blocks. Does nothing when it has.
pub(crate) fn commit_start(
    control: &Control,
    group: &Group,
    topic: &Topic,
    start: StartPosition,
) -> Result<(), Error> {
    let described = control.ensure(topic)?;
    let committed = group_offsets(control, group, topic, described.partitions)?;
    if committed.values().any(|found| found.offset.is_some()) {
        return Ok(());
    }
    let begin = begin_at(control, topic, described.partitions, start)?;
    let offsets: Vec<NewOffset<'_>> = begin
        .iter()
        .zip(0..)
        .map(|(offset, partition)| NewOffset {
            topic: topic.as_str(),
            partition,
            offset: *offset,
            metadata: Position::at(NextOffset(*offset)).encode(LogMark(described.id), Epoch(0)),
        })
        .collect();
    match admin::alter_group_offsets(control.client(), group.as_str(), &offsets, control.timeout()) {
        Ok(()) => Ok(()),
        // Another member was quicker: the group is alive, and begins where that one says.
        Err(error) if matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Unexpected) => {
            tracing::debug!(%group, %topic, error = %error.chain(), "the group has members already");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// What a group has committed for every partition of a topic; blocks.
pub(crate) fn committed(control: &Control, group: &Group, topic: &Topic) -> Result<Vec<Committed>, Error> {
    let described = control.describe(topic)?.ok_or_else(|| not_found(topic))?;
    let found = group_offsets(control, group, topic, described.partitions)?;
    Ok((0..described.partitions)
        .map(|partition| {
            let Some((offset, found)) = found.get(&partition).and_then(|found| Some((found.offset?, found)))
            else {
                return Committed::new(partition, None, Epoch(0));
            };
            let at = NextOffset(u64::try_from(offset).unwrap_or(0));
            match Position::decode(&found.metadata, LogMark(described.id), Some(at)) {
                Ok((position, epoch)) => Committed::new(partition, Some(position), epoch),
                Err(_) => Committed::new(partition, Some(Position::at(at)), Epoch(0)),
            }
        })
        .collect())
}
