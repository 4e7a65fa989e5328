//! Calls of librdkafka's admin interface: topics with their ids. None that goes to the coordinator of a group (see `committed.rs`).
//!
//! Each call blocks for up to its timeout: for a blocking thread only.

use std::ffi::{CStr, CString, c_char};
use std::ptr::NonNull;
use std::time::Duration;

use ebus_core::Error;
use rdkafka::bindings as rd;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;

use crate::error::{from_code, invalid};

const ERR_LEN: usize = 512;

/// A topic as the cluster has it.
#[derive(Debug, Clone)]
pub(crate) struct Described {
    /// The id that changes when a topic is made anew; 0 on brokers without ids (before 2.8).
    pub(crate) id: u128,
    /// How many partitions it has.
    pub(crate) partitions: u32,
    /// Whether each of them has a leader now.
    pub(crate) led: bool,
}

/// Owns a pointer of librdkafka and the function that frees it.
pub(super) struct Owned<T>(NonNull<T>, unsafe extern "C" fn(*mut T));

impl<T> Owned<T> {
    pub(super) fn new(
        ptr: *mut T,
        free: unsafe extern "C" fn(*mut T),
        operation: &'static str,
    ) -> Result<Self, Error> {
        NonNull::new(ptr)
            .map(|ptr| Self(ptr, free))
            .ok_or_else(|| from_code(operation, RDKafkaErrorCode::InvalidArgument))
    }

    pub(super) fn ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: `new` took ownership of the pointer together with the function that frees it, and nothing else does.
        unsafe { (self.1)(self.0.as_ptr()) }
    }
}

pub(super) fn c_string(text: &str, operation: &'static str) -> Result<CString, Error> {
    CString::new(text)
        .map_err(|_| invalid("a name must not have a zero byte in it").with_operation(operation))
}

fn millis(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)
}

pub(super) type Options = Owned<rd::rd_kafka_AdminOptions_t>;
pub(super) type Queue = Owned<rd::rd_kafka_queue_t>;
pub(super) type Event = Owned<rd::rd_kafka_event_t>;

/// Makes one admin call: `start` enqueues it, the answer is waited for.
pub(super) fn call<C: ClientContext>(
    client: &Client<C>,
    operation: &'static str,
    kind: rd::rd_kafka_admin_op_t,
    timeout: Duration,
    start: impl FnOnce(*mut rd::rd_kafka_t, &Options, &Queue) -> Result<(), Error>,
) -> Result<Event, Error> {
    let rk = client.native_ptr();
    let mut text = [0 as c_char; ERR_LEN];
    // SAFETY: `rk` lives as long as `client`. Both objects are owned by the wrappers from here on.
    let (options, queue) = unsafe {
        (
            Owned::new(
                rd::rd_kafka_AdminOptions_new(rk, kind),
                rd::rd_kafka_AdminOptions_destroy,
                operation,
            )?,
            Owned::new(rd::rd_kafka_queue_new(rk), rd::rd_kafka_queue_destroy, operation)?,
        )
    };
    // SAFETY: `options` is live, and `text` has room for the length given. A time-out that librdkafka refuses leaves its
    // default, and the poll below ends in time anyway.
    unsafe {
        rd::rd_kafka_AdminOptions_set_request_timeout(
            options.ptr(),
            millis(timeout),
            text.as_mut_ptr(),
            ERR_LEN,
        );
    }
    start(rk, &options, &queue)?;
    // SAFETY: `queue` is live. The event is owned by the wrapper from here on.
    let event = unsafe { rd::rd_kafka_queue_poll(queue.ptr(), millis(timeout).saturating_add(1_000)) };
    let event = NonNull::new(event)
        .map(|event| Owned(event, rd::rd_kafka_event_destroy))
        .ok_or_else(|| from_code(operation, RDKafkaErrorCode::OperationTimedOut))?;
    // SAFETY: the event is live.
    let code: RDKafkaErrorCode = unsafe { rd::rd_kafka_event_error(event.ptr()) }.into();
    if code == RDKafkaErrorCode::NoError { Ok(event) } else { Err(from_code(operation, code)) }
}

/// A broker that is there: all of them know the topics, and the controller, which librdkafka would ask, may be away.
pub(super) fn any_broker<C: ClientContext>(
    client: &Client<C>,
    operation: &'static str,
    timeout: Duration,
) -> Result<i32, Error> {
    let mut metadata = std::ptr::null();
    // SAFETY: the client is live; without topics only brokers are asked for. What is written to `metadata` on success is read
    // before it is destroyed here, and the list has as many elements as it says.
    let (code, found) = unsafe {
        let code: RDKafkaErrorCode = rd::rd_kafka_metadata(
            client.native_ptr(),
            0,
            std::ptr::null_mut(),
            &mut metadata,
            millis(timeout),
        )
        .into();
        if code != RDKafkaErrorCode::NoError || metadata.is_null() {
            (code, None)
        } else {
            let count = usize::try_from((*metadata).broker_cnt).unwrap_or(0);
            let answered = (*metadata).orig_broker_id;
            let known = |id: &i32| *id == answered;
            let ids: Vec<i32> = (0..count).map(|index| (*(*metadata).brokers.add(index)).id).collect();
            rd::rd_kafka_metadata_destroy(metadata);
            (code, ids.iter().copied().find(known).or(ids.first().copied()))
        }
    };
    match (code, found) {
        (RDKafkaErrorCode::NoError, Some(broker)) => Ok(broker),
        (RDKafkaErrorCode::NoError, None) => Err(from_code(operation, RDKafkaErrorCode::AllBrokersDown)),
        (code, _) => Err(from_code(operation, code)),
    }
}

/// Lets a call go to this broker. If librdkafka does not take that, the controller is asked.
pub(super) fn ask_broker(options: &Options, broker: i32) {
    let mut text = [0 as c_char; ERR_LEN];
    // SAFETY: `options` is live, and `text` has room for the length given.
    unsafe {
        rd::rd_kafka_AdminOptions_set_broker(options.ptr(), broker, text.as_mut_ptr(), ERR_LEN);
    }
}

/// Looks topics up; `None` for one that does not exist. Never creates any.
pub(crate) fn describe_topics<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    timeout: Duration,
) -> Result<Vec<Option<Described>>, Error> {
    const OPERATION: &str = "describe topics";
    if topics.is_empty() {
        return Ok(Vec::new());
    }
    let names = topics.iter().map(|topic| c_string(topic, OPERATION)).collect::<Result<Vec<_>, _>>()?;
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let kind = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    let broker = any_broker(client, OPERATION, timeout)?;
    let event = call(client, OPERATION, kind, timeout, |rk, options, queue| {
        ask_broker(options, broker);
        // SAFETY: `pointers` are C strings that `names` keeps alive; the collection copies them. The call copies what it
        // needs of collection and options and keeps a reference to the queue.
        unsafe {
            let made = rd::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
            let collection = Owned::new(made, rd::rd_kafka_TopicCollection_destroy, OPERATION)?;
            rd::rd_kafka_DescribeTopics(rk, collection.ptr(), options.ptr(), queue.ptr());
        }
        Ok(())
    })?;
    // SAFETY: the event answers the call above, so that it is a DescribeTopics result or null is returned; all that is read
    // through it lives as long as the event.
    let found = unsafe {
        let result = rd::rd_kafka_event_DescribeTopics_result(event.ptr());
        if result.is_null() {
            return Err(from_code(OPERATION, RDKafkaErrorCode::Inconsistent));
        }
        let mut count = 0;
        let list = rd::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        let mut found = Vec::with_capacity(count);
        for i in 0..count {
            let topic = *list.add(i);
            let name =
                CStr::from_ptr(rd::rd_kafka_TopicDescription_name(topic)).to_string_lossy().into_owned();
            found.push((name, described(topic)));
        }
        found
    };
    let mut out = Vec::with_capacity(topics.len());
    for topic in topics {
        match found.iter().find(|(name, _)| name == topic) {
            Some((_, Ok(described))) => out.push(Some(described.clone())),
            Some((_, Err(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)))
            | None => {
                out.push(None);
            }
            Some((_, Err(code))) => return Err(from_code(OPERATION, *code).with_context("topic", topic)),
        }
    }
    Ok(out)
}

/// # Safety
/// `topic` points to a live topic description.
unsafe fn described(topic: *const rd::rd_kafka_TopicDescription_t) -> Result<Described, RDKafkaErrorCode> {
    // SAFETY: by the contract of this function; what is read through it lives as long as it does, and a null error or id is
    // checked for.
    unsafe {
        let error = rd::rd_kafka_TopicDescription_error(topic);
        if !error.is_null() {
            let code: RDKafkaErrorCode = rd::rd_kafka_error_code(error).into();
            if code != RDKafkaErrorCode::NoError {
                return Err(code);
            }
        }
        let uuid = rd::rd_kafka_TopicDescription_topic_id(topic);
        let id = if uuid.is_null() {
            0
        } else {
            let high = rd::rd_kafka_Uuid_most_significant_bits(uuid) as u64;
            let low = rd::rd_kafka_Uuid_least_significant_bits(uuid) as u64;
            (u128::from(high) << 64) | u128::from(low)
        };
        let mut count = 0;
        let partitions = rd::rd_kafka_TopicDescription_partitions(topic, &mut count);
        let led = (0..count).all(|i| !rd::rd_kafka_TopicPartitionInfo_leader(*partitions.add(i)).is_null());
        Ok(Described { id, partitions: u32::try_from(count).unwrap_or(u32::MAX), led })
    }
}

/// Creates a topic; `Ok(false)` when there is one of this name already.
pub(crate) fn create_topic<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partitions: u32,
    replicas: u16,
    settings: &[(&str, String)],
    timeout: Duration,
) -> Result<bool, Error> {
    const OPERATION: &str = "create topic";
    let name = c_string(topic, OPERATION)?;
    let partitions =
        i32::try_from(partitions).map_err(|_| invalid("too many partitions").with_operation(OPERATION))?;
    let settings = settings
        .iter()
        .map(|(name, value)| Ok((c_string(name, OPERATION)?, c_string(value, OPERATION)?)))
        .collect::<Result<Vec<_>, Error>>()?;
    let kind = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_CREATETOPICS;
    let event = call(client, OPERATION, kind, timeout, |rk, options, queue| {
        let mut text = [0 as c_char; ERR_LEN];
        // SAFETY: `name`, `settings` and `text` outlive the calls, which copy them; the new topic is owned by its wrapper,
        // and CreateTopics copies it and keeps a reference to the queue.
        unsafe {
            rd::rd_kafka_AdminOptions_set_operation_timeout(
                options.ptr(),
                millis(timeout),
                text.as_mut_ptr(),
                ERR_LEN,
            );
            let made = rd::rd_kafka_NewTopic_new(
                name.as_ptr(),
                partitions,
                i32::from(replicas),
                text.as_mut_ptr(),
                ERR_LEN,
            );
            let made = Owned::new(made, rd::rd_kafka_NewTopic_destroy, OPERATION)?;
            for (name, value) in &settings {
                rd::rd_kafka_NewTopic_set_config(made.ptr(), name.as_ptr(), value.as_ptr());
            }
            let mut list = [made.ptr()];
            rd::rd_kafka_CreateTopics(rk, list.as_mut_ptr(), list.len(), options.ptr(), queue.ptr());
        }
        Ok(())
    })?;
    // SAFETY: the event answers the call above; what is read through it lives as long as the event.
    let (code, said) = unsafe {
        let result = rd::rd_kafka_event_CreateTopics_result(event.ptr());
        let mut count = 0;
        let list = if result.is_null() {
            std::ptr::null_mut()
        } else {
            rd::rd_kafka_CreateTopics_result_topics(result, &mut count)
        };
        if count == 0 {
            return Err(from_code(OPERATION, RDKafkaErrorCode::Inconsistent));
        }
        let code: RDKafkaErrorCode = rd::rd_kafka_topic_result_error(*list).into();
        let said = rd::rd_kafka_topic_result_error_string(*list);
        (
            code,
            if said.is_null() { String::new() } else { CStr::from_ptr(said).to_string_lossy().into_owned() },
        )
    };
    match code {
        RDKafkaErrorCode::NoError => Ok(true),
        RDKafkaErrorCode::TopicAlreadyExists => Ok(false),
        code => {
            Err(from_code(OPERATION, code).with_context("topic", topic).with_context("broker_said", said))
        }
    }
}
