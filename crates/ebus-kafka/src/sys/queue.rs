//! The queue of one fetched partition, read by the batch.
//!
//! The safe wrapper makes one event with a reference count per message and takes a clock reading for each; here one call
//! takes what is there.

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use rdkafka::bindings as rd;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;

/// Called by librdkafka's threads when the queue was empty and is not any more: must be quick and must not block.
pub(crate) type Wake = Box<dyn Fn() + Send + Sync>;

/// The messages of one partition, kept apart from those of all others.
pub(crate) struct PartitionQueue<C: ConsumerContext> {
    queue: NonNull<rd::rd_kafka_queue_t>,
    /// What the callback points to; it is disabled before this is dropped.
    _wake: Box<Wake>,
    /// The queue must not outlive its client.
    _client: Arc<BaseConsumer<C>>,
}

// SAFETY: librdkafka's queues may be used from any thread; the callback is `Send + Sync`.
unsafe impl<C: ConsumerContext> Send for PartitionQueue<C> {}

unsafe extern "C" fn call_wake(_: *mut rd::rd_kafka_t, opaque: *mut c_void) {
    // SAFETY: `opaque` is the `Wake` that `PartitionQueue` keeps at a fixed place until the callback is disabled.
    let wake = unsafe { &*(opaque as *const Wake) };
    wake();
}

impl<C: ConsumerContext> PartitionQueue<C> {
    /// Splits the messages of a partition off; before it is assigned, so that none goes anywhere else. `None` when librdkafka
    /// does not take the name or the number.
    pub(crate) fn split(
        client: &Arc<BaseConsumer<C>>,
        topic: &str,
        partition: i32,
        wake: Wake,
    ) -> Option<Self> {
        let topic = std::ffi::CString::new(topic).ok()?;
        let wake = Box::new(wake);
        // SAFETY: the client is live, and kept so by the value made here; `wake` has a fixed place in its box and is dropped
        // only after the callback was disabled.
        unsafe {
            let rk = client.client().native_ptr();
            let queue = NonNull::new(rd::rd_kafka_queue_get_partition(rk, topic.as_ptr(), partition))?;
            rd::rd_kafka_queue_forward(queue.as_ptr(), std::ptr::null_mut());
            let opaque = &*wake as *const Wake as *mut c_void;
            rd::rd_kafka_queue_cb_event_enable(queue.as_ptr(), Some(call_wake), opaque);
            Some(Self { queue, _wake: wake, _client: client.clone() })
        }
    }

    /// Splits it off again: to be called before each new assignment of the partition.
    pub(crate) fn rearm(&self) {
        // SAFETY: the queue is live until it is destroyed in `drop`.
        unsafe { rd::rd_kafka_queue_forward(self.queue.as_ptr(), std::ptr::null_mut()) }
    }

    /// Takes up to `most` messages that are there now into `batch`, which must be empty. Does not wait. Fewer than `most`
    /// means that the queue was empty.
    pub(crate) fn take(&self, most: usize, batch: &mut Batch) -> usize {
        batch.clear();
        batch.messages.reserve(most);
        // SAFETY: there is room for `most` pointers; those that are written are messages that the batch owns and destroys.
        unsafe {
            let taken = rd::rd_kafka_consume_batch_queue(
                self.queue.as_ptr(),
                0,
                batch.messages.as_mut_ptr().cast::<*mut rd::rd_kafka_message_t>(),
                most,
            );
            let taken = usize::try_from(taken).unwrap_or(0);
            batch.messages.set_len(taken);
            taken
        }
    }
}

impl<C: ConsumerContext> Drop for PartitionQueue<C> {
    fn drop(&mut self) {
        // SAFETY: the queue is live until it is destroyed here, and the callback is off before its target is dropped: enabling
        // and calling happen under the queue's lock.
        unsafe {
            rd::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), None, std::ptr::null_mut());
            rd::rd_kafka_queue_destroy(self.queue.as_ptr());
        }
    }
}

/// The last version of librdkafka that was looked at for where a message's memory lies: 2.12.1.
const LAYOUT_KNOWN_UP_TO: i32 = 0x020c_01ff;

/// Messages taken from a queue, destroyed when they are cleared or dropped.
pub(crate) struct Batch {
    messages: Vec<NonNull<rd::rd_kafka_message_t>>,
    layout_is_known: bool,
}

impl Default for Batch {
    fn default() -> Self {
        // SAFETY: it takes nothing and gives a number.
        let version = unsafe { rd::rd_kafka_version() };
        Self { messages: Vec::new(), layout_is_known: version <= LAYOUT_KNOWN_UP_TO }
    }
}

// SAFETY: librdkafka's messages may be read and destroyed on any thread.
unsafe impl Send for Batch {}

impl Batch {
    fn clear(&mut self) {
        for message in self.messages.drain(..) {
            // SAFETY: the batch owns its messages, and this one leaves it.
            unsafe { rd::rd_kafka_message_destroy(message.as_ptr()) }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Fetched<'_>> {
        let layout_is_known = self.layout_is_known;
        self.messages.iter().map(move |message| Fetched {
            message: *message,
            layout_is_known,
            _batch: PhantomData,
        })
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.clear();
    }
}

/// One fetched message, or an error in its place.
#[derive(Clone, Copy)]
pub(crate) struct Fetched<'a> {
    message: NonNull<rd::rd_kafka_message_t>,
    layout_is_known: bool,
    _batch: PhantomData<&'a Batch>,
}

impl<'a> Fetched<'a> {
    fn raw(self) -> &'a rd::rd_kafka_message_t {
        // SAFETY: the batch that is borrowed keeps its messages alive.
        unsafe { self.message.as_ref() }
    }

    /// What it says instead of a message.
    pub(crate) fn error(self) -> Option<RDKafkaErrorCode> {
        let code: RDKafkaErrorCode = self.raw().err.into();
        (code != RDKafkaErrorCode::NoError).then_some(code)
    }

    /// Its place; of an end of partition, the place of the next message.
    pub(crate) fn offset(self) -> u64 {
        u64::try_from(self.raw().offset).unwrap_or(0)
    }

    pub(crate) fn key(self) -> Option<&'a [u8]> {
        let raw = self.raw();
        // SAFETY: librdkafka says so many bytes are at this place, for as long as the message lives.
        (!raw.key.is_null()).then(|| unsafe { std::slice::from_raw_parts(raw.key.cast::<u8>(), raw.key_len) })
    }

    /// Empty for a tombstone.
    pub(crate) fn payload(self) -> &'a [u8] {
        let raw = self.raw();
        if raw.payload.is_null() {
            return &[];
        }
        // SAFETY: librdkafka says so many bytes are at this place, for as long as the message lives.
        unsafe { std::slice::from_raw_parts(raw.payload.cast::<u8>(), raw.len) }
    }

    /// Milliseconds since 1970; `None` when the message has no timestamp.
    pub(crate) fn timestamp(self) -> Option<i64> {
        let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is live, and `kind` is written to.
        let millis = unsafe { rd::rd_kafka_message_timestamp(self.message.as_ptr(), &mut kind) };
        (kind != rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && millis != -1)
            .then_some(millis)
    }

    /// Whether it has no headers for sure. librdkafka takes three allocations to find that out: a tenth of what reading costs.
    ///
    /// In a record of format 2, the only one that comes with a leader epoch, the number of headers stands behind the value.
    fn is_bare(self) -> bool {
        let raw = self.raw();
        if !self.layout_is_known || raw.payload.is_null() || raw.len == 0 {
            return false;
        }
        // SAFETY: the message is live. Up to the version that is asked for, librdkafka leaves a value that is not empty where it
        // is in the record (rd_kafka_msgset_reader_msg_v2), which is in one piece, with at least one byte behind the value.
        unsafe {
            rd::rd_kafka_message_leader_epoch(self.message.as_ptr()) >= 0
                && *raw.payload.cast::<u8>().add(raw.len) == 0
        }
    }

    /// Names and values of its headers in order; a name that is not UTF-8 is shown with replacement characters.
    pub(crate) fn headers(self) -> Vec<(String, &'a [u8])> {
        if self.is_bare() {
            return Vec::new();
        }
        let mut headers = std::ptr::null_mut();
        // SAFETY: the message is live; names are C strings and values have the lengths given, all for as long as the message
        // lives.
        unsafe {
            let code: RDKafkaErrorCode =
                rd::rd_kafka_message_headers(self.message.as_ptr(), &mut headers).into();
            if code != RDKafkaErrorCode::NoError || headers.is_null() {
                return Vec::new();
            }
            let count = rd::rd_kafka_header_cnt(headers);
            let mut out = Vec::with_capacity(count);
            for index in 0..count {
                let (mut name, mut value, mut len) = (std::ptr::null(), std::ptr::null(), 0);
                let code: RDKafkaErrorCode =
                    rd::rd_kafka_header_get_all(headers, index, &mut name, &mut value, &mut len).into();
                if code != RDKafkaErrorCode::NoError || name.is_null() {
                    break;
                }
                let name = CStr::from_ptr(name).to_string_lossy().into_owned();
                let value: &[u8] =
                    if value.is_null() { &[] } else { std::slice::from_raw_parts(value.cast::<u8>(), len) };
                out.push((name, value));
            }
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Batch;

    #[test]
    fn the_layout_of_the_librdkafka_in_use_is_known() {
        assert!(Batch::default().layout_is_known, "look at rd_kafka_msgset_reader_msg_v2 of this version");
    }
}
