//! Where a partition is taken over, and where a new group begins (G1, G6).
//!
//! The position travels in the commit's metadata, beside the offset that every Kafka client reads. What is not ours or damaged
//! is ignored with a warning and the bare offset counts; of a topic that was made anew not even that counts. Both cost
//! duplicates and never a loss.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ebus_core::{
    Committed, Epoch, Error, ErrorKind, Group, LogMark, NextOffset, PartitionId, PartitionInfo, Position,
    PositionError, StartPosition, Topic,
};

use crate::sys::committed::{GroupOffset, NewOffset};
use crate::topics::{Control, not_found};

/// How long to wait before a join that found no coordinator asks again.
const AGAIN: Duration = Duration::from_millis(100);

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
    /// Where the other partitions of the topic begin, to be committed together with the claim of this one.
    pub(crate) starts: Vec<(PartitionId, u64, String)>,
}

/// How a topic begins that the group has never read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begin {
    pub(crate) start: StartPosition,
    /// Nobody else decides it: each partition begins by itself.
    pub(crate) alone: bool,
}

/// What a look-up came to.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) taken: Vec<TakeOver>,
    /// Where these begin is decided by the member that owns the first partition of the topic, and is not committed yet.
    pub(crate) undecided: Vec<PartitionId>,
}

/// Looks up where these partitions are to be taken over; blocks.
///
/// Where a topic begins that the group has never read is decided once, for all partitions, by whoever owns the first of them,
/// and committed in one request with that member's claims. Otherwise the second member would find the topic known by the
/// first one's claim, and take its own partitions for ones that were added later; or both would decide, at different times.
pub(crate) fn take_over(
    control: &Control,
    group: &Group,
    partitions: &[PartitionId],
    begin: Begin,
) -> Result<Found, Error> {
    let mut topics: Vec<&Topic> = partitions.iter().map(|id| &id.topic).collect();
    topics.sort_unstable();
    topics.dedup();
    let mut out = Found::default();
    for topic in topics {
        let wanted = partitions.iter().filter(|id| id.topic == *topic);
        take_over_topic(control, group, topic, wanted, begin, &mut out)?;
    }
    Ok(out)
}

fn take_over_topic<'a>(
    control: &Control,
    group: &Group,
    topic: &Topic,
    wanted: impl Iterator<Item = &'a PartitionId> + Clone,
    begin: Begin,
    out: &mut Found,
) -> Result<(), Error> {
    let described = control.existing(topic)?;
    let mark = LogMark(described.id);
    let committed = group_offsets(control, group, topic, described.partitions)?;
    let known = committed.values().any(|found| found.offset.is_some());
    let decides = wanted.clone().any(|id| id.partition == 0);
    if !known && !decides && !begin.alone && begin.start != StartPosition::Earliest {
        out.undecided.extend(wanted.cloned());
        return Ok(());
    }
    // What was added to a known topic is read from its beginning.
    let start = if known { StartPosition::Earliest } else { begin.start };
    // One request each for the whole topic, and none that is not needed.
    let mut begins = None;
    let ranges = control.ranges(topic, described.partitions)?;
    let mut taken = Vec::new();
    for id in wanted.clone() {
        let Some(range) = ranges.get(id.partition as usize).copied() else {
            return Err(not_found(topic).with_context("partition", id.partition));
        };
        let found = committed.get(&id.partition).and_then(|found| Some((found.offset?, found)));
        taken.push(match found {
            Some((offset, found)) => resume(id.clone(), mark, offset, &found.metadata, range),
            None => {
                if begins.is_none() {
                    begins = Some(begin_at(control, topic, &ranges, start)?);
                }
                let at = begins.iter().flatten().nth(id.partition as usize).copied();
                TakeOver {
                    partition: id.clone(),
                    position: Position::at(NextOffset(at.unwrap_or(range.earliest))),
                    epoch: first_epoch(),
                    mark,
                    trouble: None,
                    starts: Vec::new(),
                }
            }
        });
    }
    if !known
        && start != StartPosition::Earliest
        && let Some(first) = taken.iter_mut().find(|one| one.partition.partition == 0)
    {
        first.starts = (0..)
            .zip(begins.iter().flatten())
            .map(|(partition, at)| (PartitionId::new(topic.clone(), partition), *at))
            .filter(|(id, _)| !wanted.clone().any(|mine| mine == id))
            .map(|(id, at)| (id, at, Position::at(NextOffset(at)).encode(mark, first_epoch())))
            .collect();
    }
    out.taken.extend(taken);
    Ok(())
}

/// The epoch of the last owner where nobody knows of one: milliseconds since 1970.
///
/// Metadata is gone when an operator resets a group, when its offsets expire, and when another client has committed. Whoever keeps
/// the highest epoch that it has seen, to refuse former owners, must not refuse all later ones then (G3). Owners change less than
/// a thousand times a second, so that this is above all that were counted from an earlier such moment.
fn first_epoch() -> Epoch {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Epoch(u64::try_from(since.as_millis()).unwrap_or(u64::MAX >> 1))
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
            (Position::at(from), first_epoch())
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
    TakeOver { partition: id, position, epoch, mark, trouble, starts: Vec::new() }
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
    let found = match control.group_offsets(group, topic, partitions) {
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
    ranges: &[PartitionInfo],
    start: StartPosition,
) -> Result<Vec<u64>, Error> {
    let partitions = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
    match start {
        StartPosition::Time(time) => control.at_time(topic, partitions, time.as_millis()),
        StartPosition::Latest => Ok(ranges.iter().map(|range| range.end.0).collect()),
        _ => Ok(ranges.iter().map(|range| range.earliest).collect()),
    }
}

/// Commits where a group begins that has never read this topic; blocks. False when that is up to the group's members.
///
/// The ends are read before the offsets: whoever commits a start after that commits one that is not below what is written
/// here, so that of two members that begin at once neither takes a message from the other.
///
/// A cluster that has just started, or that lost a broker, has no coordinator for the group for a moment: all of it is done again
/// then, the ends included.
pub(crate) fn commit_start(
    control: &Control,
    group: &Group,
    topic: &Topic,
    start: StartPosition,
) -> Result<bool, Error> {
    let end = Instant::now() + control.timeout();
    loop {
        match try_commit_start(control, group, topic, start) {
            Err(error) if error.kind() == ErrorKind::Unavailable && Instant::now() + AGAIN < end => {
                tracing::debug!(%group, %topic, error = %error.chain(), "not ready to join; trying again");
                std::thread::sleep(AGAIN);
            }
            done => return done,
        }
    }
}

fn try_commit_start(
    control: &Control,
    group: &Group,
    topic: &Topic,
    start: StartPosition,
) -> Result<bool, Error> {
    let described = control.ensure(topic)?;
    let begin = begin_at(control, topic, &control.ranges(topic, described.partitions)?, start)?;
    if is_known(control, group, topic, described.partitions)? {
        return Ok(true);
    }
    let offsets: Vec<NewOffset<'_>> = begin
        .iter()
        .zip(0..)
        .map(|(offset, partition)| NewOffset {
            topic: topic.as_str(),
            partition,
            offset: *offset,
            metadata: Position::at(NextOffset(*offset)).encode(LogMark(described.id), first_epoch()),
        })
        .collect();
    match control.commit_for(group, &offsets) {
        Ok(()) => Ok(true),
        // The group has members already: they decide where the topic begins, or this one will when it is one of them.
        Err(error) if matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Unexpected) => {
            tracing::debug!(%group, %topic, error = %error.chain(), "the group has members already");
            Ok(start == StartPosition::Earliest)
        }
        Err(error) => Err(error),
    }
}

/// Whether it is decided where the group begins in these topics; blocks.
pub(crate) fn are_known(control: &Control, group: &Group, topics: &[Topic]) -> Result<bool, Error> {
    for topic in topics {
        if !is_known(control, group, topic, control.existing(topic)?.partitions)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_known(control: &Control, group: &Group, topic: &Topic, partitions: u32) -> Result<bool, Error> {
    let committed = group_offsets(control, group, topic, partitions)?;
    Ok(committed.values().any(|found| found.offset.is_some()))
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
