//! The key of a message that somebody else made: what order is kept for, when no record key says it (G2).

use bytes::Bytes;
use ebus_core::{Key, Message};

use crate::{Envelope, rules};

/// Where foreign messages carry the id of their aggregate, in the order in which it is looked for.
const SPELLINGS: [&str; 4] = ["X-Aggregate-ID", "x-aggregate-id", "Aggregate-ID", "aggregate-id"];

/// The key of a foreign message, from the first of these places that has one:
///
/// 1. the aggregate id of the envelope, if the message is one in a format of this build;
/// 2. the first of the headers `X-Aggregate-ID`, `x-aggregate-id`, `Aggregate-ID` and `aggregate-id` whose value is a legal
///    aggregate id;
/// 3. the record key, any bytes;
/// 4. the last token of `subject`, such as `42` of `orders.42`.
///
/// `None` when none of them has: such a message has no order.
///
/// ```
/// use ebus_core::Message;
/// use ebus_envelope::extract_key;
///
/// let message = Message::new("body").with_key("record").with_header("aggregate-id", "order-42");
/// assert_eq!(extract_key(&message, Some("orders.7")), Some("order-42".into()));
/// assert_eq!(extract_key(&Message::new("body"), Some("orders.7")), Some("7".into()));
/// assert_eq!(extract_key(&Message::new("body"), None), None);
/// ```
pub fn extract_key(message: &Message, subject: Option<&str>) -> Option<Key> {
    Envelope::decode(message)
        .ok()
        .map(|envelope| envelope.aggregate_id.into_bytes())
        .or_else(|| from_header(message))
        .map(Key::new)
        .or_else(|| message.key.clone())
        .or_else(|| last_token(subject?).map(Key::from))
}

fn from_header(message: &Message) -> Option<Bytes> {
    SPELLINGS.iter().find_map(|name| {
        let value = message.headers.first(name)?;
        let text = std::str::from_utf8(value).ok()?;
        rules::name("aggregate_id", text).ok()?;
        Some(value.clone())
    })
}

fn last_token(subject: &str) -> Option<&str> {
    subject.rsplit('.').next().filter(|token| !token.is_empty())
}

#[cfg(all(test, feature = "headers"))]
mod tests {
    use super::*;
    use crate::Envelope;

    fn found(message: &Message) -> Option<Key> {
        extract_key(message, Some("orders.subject"))
    }

    #[test]
    fn places_are_looked_at_in_order() {
        let mut message = Message::new("").with_key("record");
        for spelling in SPELLINGS.iter().rev() {
            message = message.with_header(*spelling, format!("by/{spelling}"));
        }
        for spelling in SPELLINGS {
            assert_eq!(found(&message), Some(format!("by/{spelling}").into()));
            message.headers.remove(spelling);
        }
        assert_eq!(found(&message), Some("record".into()));
        message.key = None;
        assert_eq!(found(&message), Some("subject".into()));
        assert_eq!(extract_key(&message, Some("orders.")), None);
    }

    #[test]
    fn an_envelope_goes_before_its_record_key() {
        let message =
            Envelope::event("envelope", "t", 1, &1).and_then(|e| e.encode(crate::Format::Headers)).unwrap();
        // In a case that is none of the four spellings, only the envelope's own reader finds it.
        let headers =
            message.headers.iter().map(|(name, value)| (name.to_uppercase(), value.clone())).collect();
        assert_eq!(found(&message.with_headers(headers).with_key("record")), Some("envelope".into()));
    }

    #[test]
    fn an_illegal_header_is_passed_over() {
        let message = Message::new("").with_header("X-Aggregate-ID", "a b").with_header("aggregate-id", "c");
        assert_eq!(found(&message), Some("c".into()));
    }
}
