//! What a group has committed, asked by a handle of that group.
//!
//! Not by the admin interface. librdkafka 2.12.1 keeps the coordinator of each group that admin requests are for; when that broker
//! is dead, it looks for another one only when the connection of some broker comes or goes. So the request times out, as does
//! every later one, and what timed out fires later into freed memory: the process ends by an assertion. And a coordinator that
//! has moved crashes a handle without a group. A handle's own group looks for its coordinator again by itself.

use std::time::Duration;

use super::commit::Commits;
use crate::error::{from_code, from_kafka, invalid};
use ebus_core::{Error, ErrorKind};
use rdkafka::TopicPartitionList;
use rdkafka::bindings as rd;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::Offset;

/// What a group has committed for a partition.
#[derive(Debug, Clone)]
pub(crate) struct GroupOffset {
    pub(crate) partition: i32,
    /// `None` when nothing is committed.
    pub(crate) offset: Option<i64>,
    pub(crate) metadata: Vec<u8>,
}

/// An offset to commit on behalf of a group without members.
#[derive(Debug, Clone)]
pub(crate) struct NewOffset<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) metadata: String,
}

/// What the group of this handle has committed for these partitions of a topic; blocks. The bytes of other consumers are as they
/// are.
pub(crate) fn committed<C: ConsumerContext>(
    handle: &BaseConsumer<C>,
    topic: &str,
    partitions: u32,
    timeout: Duration,
) -> Result<Vec<GroupOffset>, Error> {
    const OPERATION: &str = "read committed positions";
    let count = i32::try_from(partitions).unwrap_or(i32::MAX);
    let mut list = TopicPartitionList::with_capacity(partitions as usize);
    for partition in 0..count {
        list.add_partition(topic, partition);
    }
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: handle and list are live, and the list is only written to by this call, which returns when it is done with it.
    let code = unsafe { rd::rd_kafka_committed(handle.client().native_ptr(), list.ptr(), millis) };
    match code.into() {
        RDKafkaErrorCode::NoError => {}
        code => return Err(from_code(OPERATION, code).with_context("topic", topic)),
    }
    let mut found = Vec::with_capacity(partitions as usize);
    // SAFETY: the list is live and has as many elements as it says; metadata has the size that it says, or is null.
    unsafe {
        let list = &*list.ptr();
        for index in 0..usize::try_from(list.cnt).unwrap_or(0) {
            let element = &*list.elems.add(index);
            let code: RDKafkaErrorCode = element.err.into();
            if code != RDKafkaErrorCode::NoError {
                return Err(from_code(OPERATION, code)
                    .with_context("topic", topic)
                    .with_context("partition", element.partition));
            }
            let metadata = if element.metadata.is_null() || element.metadata_size == 0 {
                Vec::new()
            } else {
                std::slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size).to_vec()
            };
            let offset = (element.offset >= 0).then_some(element.offset);
            found.push(GroupOffset { partition: element.partition, offset, metadata });
        }
    }
    Ok(found)
}

/// Commits offsets for the group of this handle, when it has no members; blocks. A group with members refuses: `Fenced` or
/// `Unexpected`.
pub(crate) fn commit<C: ConsumerContext>(
    handle: &BaseConsumer<C>,
    offsets: &[NewOffset<'_>],
    timeout: Duration,
) -> Result<(), Error> {
    const OPERATION: &str = "commit start positions";
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for new in offsets {
        let partition = i32::try_from(new.partition).map_err(|_| invalid("no such partition"))?;
        let mut element = list.add_partition(new.topic, partition);
        let offset = Offset::Offset(i64::try_from(new.offset).unwrap_or(i64::MAX));
        element.set_offset(offset).map_err(|error| from_kafka(OPERATION, error))?;
        element.set_metadata(&new.metadata);
    }
    let failed = |code| from_code(OPERATION, code);
    let commits = Commits::of(handle).ok_or_else(|| {
        Error::new(ErrorKind::Unexpected, "librdkafka gives no queue").with_operation(OPERATION)
    })?;
    commits.send(handle, &list).map_err(failed)?;
    match commits.poll(timeout) {
        Some(Ok(each)) => each.into_values().flatten().next().map_or(Ok(()), |code| Err(failed(code))),
        Some(Err(code)) => Err(failed(code)),
        None => Err(failed(RDKafkaErrorCode::OperationTimedOut)),
    }
}
