//! Whether a message whose delivery failed may be stored all the same.

use rdkafka::bindings as rd;
use rdkafka::message::BorrowedMessage;

/// False only when librdkafka is sure that the broker does not have it.
pub(crate) fn may_be_stored(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the message of a delivery report is live as long as it is borrowed.
    let status = unsafe { rd::rd_kafka_message_status(message.ptr()) };
    status != rd::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}
