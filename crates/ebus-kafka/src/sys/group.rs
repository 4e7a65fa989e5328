//! Whether a group is in a rebalance, and who its members are, asked over another connection than the member's own: a broker
//! answers nothing on a connection that waits for a rebalance.

use std::ffi::CStr;
use std::time::Duration;

use ebus_core::Error;
use rdkafka::bindings as rd;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;

use super::admin::c_string;
use crate::error::from_code;

/// A group as its coordinator has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GroupState {
    /// Its members are joining, or wait for what they are assigned.
    pub(crate) rebalances: bool,
    /// Their member ids.
    pub(crate) members: Vec<String>,
}

/// Looks a group up; blocks.
///
/// By the older of two calls: the admin interface of librdkafka 2.12.1 ends the process by an assertion when a coordinator does
/// not take its request. This one asks every broker, and what a broker that is down does not say is not waited for longer.
pub(crate) fn group_state<C: ClientContext>(
    client: &Client<C>,
    group: &str,
    timeout: Duration,
) -> Result<GroupState, Error> {
    const OPERATION: &str = "describe group";
    let name = c_string(group, OPERATION)?;
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let mut list = std::ptr::null();
    // SAFETY: client and name outlive the call; a list that it gives is ours, with as many groups and members as it says and
    // texts that live as long as the list, and is destroyed after all of it was copied.
    unsafe {
        let code = rd::rd_kafka_list_groups(client.native_ptr(), name.as_ptr(), &mut list, millis);
        if list.is_null() {
            let code: RDKafkaErrorCode = code.into();
            return Err(from_code(OPERATION, code));
        }
        let owned = |text: *const std::ffi::c_char| {
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        let mut found = GroupState::default();
        for index in 0..usize::try_from((*list).group_cnt).unwrap_or(0) {
            let one = &*(*list).groups.add(index);
            if owned(one.group) != group {
                continue;
            }
            found.rebalances = matches!(&*owned(one.state), "PreparingRebalance" | "CompletingRebalance");
            let members = usize::try_from(one.member_cnt).unwrap_or(0);
            found.members = (0..members).map(|index| owned((*one.members.add(index)).member_id)).collect();
        }
        rd::rd_kafka_group_list_destroy(list);
        Ok(found)
    }
}

/// The id that the coordinator gave to this member; `None` while it has none.
pub(crate) fn member_id<C: ClientContext>(client: &Client<C>) -> Option<String> {
    let rk = client.native_ptr();
    // SAFETY: the client is live; the text is ours, and freed after it was copied.
    let id = unsafe {
        let text = rd::rd_kafka_memberid(rk);
        if text.is_null() {
            return None;
        }
        let id = CStr::from_ptr(text).to_string_lossy().into_owned();
        rd::rd_kafka_mem_free(rk, text.cast());
        id
    };
    (!id.is_empty()).then_some(id)
}
