//! Whether a message whose delivery failed may be stored all the same.

use rdkafka::bindings as rd;
use rdkafka::message::BorrowedMessage;

/// False only when librdkafka is sure that the broker does not have it.
pub(crate) fn may_be_stored(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the message of a delivery report is live as long as it is borrowed.
    let status = unsafe { rd::rd_kafka_message_status(message.ptr()) };
    status != rd::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}

/// Lets a producer fail for good, as a broker can make it.
#[cfg(test)]
pub(crate) fn fail_for_good<C: rdkafka::producer::ProducerContext>(
    producer: &rdkafka::producer::BaseProducer<C>,
    code: rd::rd_kafka_resp_err_t,
) {
    use rdkafka::producer::Producer;
    // SAFETY: the handle is live as long as it is borrowed, and the reason ends with a zero.
    unsafe {
        rd::rd_kafka_test_fatal_error(producer.client().native_ptr(), code, c"made by a test".as_ptr())
    };
}
