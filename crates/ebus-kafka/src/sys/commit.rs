//! Commits whose answer comes through a queue of their own.
//!
//! The safe wrapper either blocks until the answer is there, or commits asynchronously and never hears it: librdkafka calls the
//! commit callback only when one is set by its old interface, and the wrapper uses the new one.

use std::collections::HashMap;
use std::ffi::CStr;
use std::ptr::NonNull;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::bindings as rd;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;

/// What a commit came to, by topic and partition.
pub(crate) type Answer = Result<HashMap<(String, i32), Option<RDKafkaErrorCode>>, RDKafkaErrorCode>;

/// Where answers to commits come. To be dropped before its client.
pub(crate) struct Commits {
    queue: NonNull<rd::rd_kafka_queue_t>,
}

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl Send for Commits {}

impl Commits {
    pub(crate) fn of<C: ConsumerContext>(client: &BaseConsumer<C>) -> Option<Self> {
        // SAFETY: the client is live; the queue is owned by the value made here.
        let queue = unsafe { rd::rd_kafka_queue_new(client.client().native_ptr()) };
        NonNull::new(queue).map(|queue| Self { queue })
    }

    /// Sends a commit; its answer comes by [`poll`](Self::poll). Does not wait.
    pub(crate) fn send<C: ConsumerContext>(
        &self,
        client: &BaseConsumer<C>,
        list: &TopicPartitionList,
    ) -> Result<(), RDKafkaErrorCode> {
        // SAFETY: client, list and queue are live; the list is copied. Without a callback the answer is an event.
        let code = unsafe {
            rd::rd_kafka_commit_queue(
                client.client().native_ptr(),
                list.ptr(),
                self.queue.as_ptr(),
                None,
                std::ptr::null_mut(),
            )
        };
        match code.into() {
            RDKafkaErrorCode::NoError => Ok(()),
            code => Err(code),
        }
    }

    /// The next answer, if it is there or comes within this time; zero does not wait.
    pub(crate) fn poll(&self, within: Duration) -> Option<Answer> {
        let millis = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is live; the event is owned here and destroyed below, after all that is read through it.
        unsafe {
            let event = NonNull::new(rd::rd_kafka_queue_poll(self.queue.as_ptr(), millis))?;
            let answer = if rd::rd_kafka_event_type(event.as_ptr()) == rd::RD_KAFKA_EVENT_OFFSET_COMMIT {
                Some(read(event))
            } else {
                None
            };
            rd::rd_kafka_event_destroy(event.as_ptr());
            answer
        }
    }
}

/// # Safety
/// `event` is a live event of type offset commit.
unsafe fn read(event: NonNull<rd::rd_kafka_event_t>) -> Answer {
    // SAFETY: by the contract of this function; names and elements live as long as the event, and null is checked for.
    unsafe {
        let code: RDKafkaErrorCode = rd::rd_kafka_event_error(event.as_ptr()).into();
        if code != RDKafkaErrorCode::NoError {
            return Err(code);
        }
        let list = rd::rd_kafka_event_topic_partition_list(event.as_ptr());
        if list.is_null() {
            return Ok(HashMap::new());
        }
        let count = usize::try_from((*list).cnt).unwrap_or(0);
        Ok((0..count)
            .map(|i| {
                let element = &*(*list).elems.add(i);
                let topic = CStr::from_ptr(element.topic).to_string_lossy().into_owned();
                let code: RDKafkaErrorCode = element.err.into();
                ((topic, element.partition), (code != RDKafkaErrorCode::NoError).then_some(code))
            })
            .collect())
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        // SAFETY: the queue is live until it is destroyed here.
        unsafe { rd::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}
