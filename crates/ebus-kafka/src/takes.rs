//! What a topic takes, so that a message that its brokers would refuse is refused before it is sent (G7, G8).
//!
//! A broker that refuses a message for good makes librdkafka begin a new producer epoch, and send under it whatever else has no
//! answer yet: if the network has failed for that at the same time, the broker cannot tell that it has it already. Besides, all
//! messages of a batch are refused with one of them.

use ebus_core::{Error, ErrorKind, Message};

/// The bytes of a batch before its first record, since message format 2.
const BATCH: usize = 61;

/// What the brokers take of one topic, as far as they tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Takes {
    /// `max.message.bytes`: the largest batch, which has one message at least.
    pub(crate) most_bytes: Option<usize>,
    /// It is compacted.
    pub(crate) needs_key: bool,
}

impl Takes {
    /// Whether a message may be sent.
    ///
    /// Its size counts before compression: what is taken must not depend on what else is in it.
    ///
    /// # Errors
    /// `TooLarge`; `Unsupported` without the key that a compacted topic needs.
    pub(crate) fn check(self, message: &Message) -> Result<(), Error> {
        if let Some(most) = self.most_bytes
            && let bytes = batch_len(message)
            && bytes > most
        {
            let text = format!(
                "the message has {bytes} bytes as a batch of its own, before compression; its topic takes {most}: raise the topic's \
                max.message.bytes"
            );
            return Err(Error::new(ErrorKind::TooLarge, text).with_operation("publish"));
        }
        if self.needs_key && message.key.is_none() {
            let text = "the topic is compacted, and takes no message without a key";
            return Err(Error::new(ErrorKind::Unsupported, text).with_operation("publish"));
        }
        Ok(())
    }
}

/// The bytes of a batch that has only this message, not compressed.
fn batch_len(message: &Message) -> usize {
    let sized = |len: usize| varint_len(len) + len;
    let key = message.key.as_ref().map_or(1, |key| sized(key.as_bytes().len()));
    let headers: usize =
        message.headers.iter().map(|(name, value)| sized(name.len()) + sized(value.len())).sum();
    // Attributes, and the distances of time and offset to those of the batch, which are 0.
    let record = 3 + key + sized(message.payload.len()) + varint_len(message.headers.len()) + headers;
    BATCH + sized(record)
}

/// Bytes of a number that is not negative, as Kafka writes it: 7 bits a byte, one of all for the sign.
fn varint_len(number: usize) -> usize {
    let bits = usize::BITS - number.leading_zeros() + 1;
    bits.div_ceil(7).max(1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_as_many_bytes_as_kafka_writes() {
        for (number, bytes) in
            [(0, 1), (63, 1), (64, 2), (8_191, 2), (8_192, 3), (1_048_575, 3), (1_048_576, 4)]
        {
            assert_eq!(varint_len(number), bytes, "{number}");
        }
    }

    #[test]
    fn p7_what_a_topic_does_not_take_is_refused() {
        let message = Message::new(vec![0; 100]);
        // 61, the length of the record, and in it 3, no key, 2 and 100 of the payload, no headers.
        let len = 61 + 2 + 3 + 1 + 2 + 100 + 1;
        let takes = |most_bytes, needs_key| Takes { most_bytes, needs_key };
        assert!(takes(Some(len), false).check(&message).is_ok());
        let error = takes(Some(len - 1), false).check(&message).expect_err("a byte too many");
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(Takes::default().check(&message).is_ok(), "what is not known the broker says");
        let error = takes(None, true).check(&message).expect_err("no key");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(takes(None, true).check(&message.with_key("k")).is_ok());
    }
}
