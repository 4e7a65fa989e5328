//! The settings of a topic, as its brokers have them.

use std::collections::HashMap;
use std::ffi::CStr;
use std::time::Duration;

use ebus_core::Error;
use rdkafka::bindings as rd;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;

use super::admin::{Owned, any_broker, ask_broker, c_string, call};
use crate::error::from_code;

/// The settings of a topic by name; blocks. Needs the right to describe them.
pub(crate) fn topic_configs<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<HashMap<String, String>, Error> {
    const OPERATION: &str = "describe topic settings";
    let name = c_string(topic, OPERATION)?;
    let kind = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS;
    let broker = any_broker(client, OPERATION, timeout)?;
    let event = call(client, OPERATION, kind, timeout, |rk, options, queue| {
        ask_broker(options, broker);
        // SAFETY: `name` is a C string that outlives the calls. The resource is owned by its wrapper; the call copies it and what
        // it needs of the options, and keeps a reference to the queue.
        unsafe {
            let topic = rd::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
            let made = rd::rd_kafka_ConfigResource_new(topic, name.as_ptr());
            let made = Owned::new(made, rd::rd_kafka_ConfigResource_destroy, OPERATION)?;
            let mut list = [made.ptr()];
            rd::rd_kafka_DescribeConfigs(rk, list.as_mut_ptr(), list.len(), options.ptr(), queue.ptr());
        }
        Ok(())
    })?;
    // SAFETY: the event answers the call above, or null is returned; what is read through it lives as long as the event, and a
    // value that is not told is null.
    unsafe {
        let result = rd::rd_kafka_event_DescribeConfigs_result(event.ptr());
        let mut count = 0;
        let list = if result.is_null() {
            std::ptr::null_mut()
        } else {
            rd::rd_kafka_DescribeConfigs_result_resources(result, &mut count)
        };
        if count == 0 {
            return Err(from_code(OPERATION, RDKafkaErrorCode::Inconsistent));
        }
        let code: RDKafkaErrorCode = rd::rd_kafka_ConfigResource_error(*list).into();
        if code != RDKafkaErrorCode::NoError {
            return Err(from_code(OPERATION, code).with_context("topic", topic));
        }
        let mut count = 0;
        let entries = rd::rd_kafka_ConfigResource_configs(*list, &mut count);
        let mut found = HashMap::with_capacity(count);
        for index in 0..count {
            let entry = *entries.add(index);
            let value = rd::rd_kafka_ConfigEntry_value(entry);
            if !value.is_null() {
                let text = |text| CStr::from_ptr(text).to_string_lossy().into_owned();
                found.insert(text(rd::rd_kafka_ConfigEntry_name(entry)), text(value));
            }
        }
        Ok(found)
    }
}
