//! Where the partitions of a topic begin and end, all of them by one call for each end: the safe wrapper asks for one
//! partition at a time, and a group that takes hundreds over would wait for each.

use std::ffi::CStr;
use std::time::Duration;

use ebus_core::Error;
use rdkafka::bindings as rd;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::admin::{c_string, call};
use crate::error::{from_code, from_kafka};

const OPERATION: &str = "read offsets";

/// Which end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// Its first offset.
    First,
    /// The offset after the last that a reader of committed messages gets.
    Next,
}

/// The offsets at one end of each partition; blocks.
pub(crate) fn ends<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partitions: u32,
    end: End,
    timeout: Duration,
) -> Result<Vec<u64>, Error> {
    c_string(topic, OPERATION)?;
    let count = usize::try_from(partitions).unwrap_or(usize::MAX);
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut list = TopicPartitionList::with_capacity(count);
    for partition in 0..i32::try_from(partitions).unwrap_or(i32::MAX) {
        let spec = match end {
            End::First => Offset::Beginning,
            End::Next => Offset::End,
        };
        list.add_partition_offset(topic, partition, spec).map_err(|error| from_kafka(OPERATION, error))?;
    }
    let kind = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
    let event = call(client, OPERATION, kind, timeout, |rk, options, queue| {
        // SAFETY: `list` outlives the call, which copies it and what it needs of the options, and keeps a reference to the
        // queue. The error of a level that is not taken is destroyed; the default level is the stricter one for us.
        unsafe {
            let error = rd::rd_kafka_AdminOptions_set_isolation_level(
                options.ptr(),
                rd::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED,
            );
            if !error.is_null() {
                rd::rd_kafka_error_destroy(error);
            }
            rd::rd_kafka_ListOffsets(rk, list.ptr(), options.ptr(), queue.ptr());
        }
        Ok(())
    })?;
    let mut out = vec![None; count];
    // SAFETY: the event answers the call above, or null is returned; what is read through it lives as long as the event.
    unsafe {
        let result = rd::rd_kafka_event_ListOffsets_result(event.ptr());
        let mut found = 0;
        let infos = if result.is_null() {
            std::ptr::null_mut()
        } else {
            rd::rd_kafka_ListOffsets_result_infos(result, &mut found)
        };
        for index in 0..found {
            let element = &*rd::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(index));
            let code: RDKafkaErrorCode = element.err.into();
            if code != RDKafkaErrorCode::NoError {
                return Err(from_code(OPERATION, code)
                    .with_context("topic", CStr::from_ptr(element.topic).to_string_lossy())
                    .with_context("partition", element.partition));
            }
            let place = usize::try_from(element.partition).ok().and_then(|partition| out.get_mut(partition));
            if let (Some(place), Ok(offset)) = (place, u64::try_from(element.offset)) {
                *place = Some(offset);
            }
        }
    }
    let all: Option<Vec<u64>> = out.into_iter().collect();
    all.ok_or_else(|| from_code(OPERATION, RDKafkaErrorCode::Inconsistent).with_context("topic", topic))
}
