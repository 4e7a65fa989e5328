//! A message of ebus as a message of NATS and back, exactly (a01).
//!
//! | NATS header | carries |
//! |---|---|
//! | `Ebus` | the timestamp in milliseconds, then the key: after a space as it is, where it is plain text; after `=` any other, base64url; neither without a key. It marks a message as ours |
//! | `Ebus-Order` | the exact list of headers, only where native headers alone would not bring it back |
//! | all others | the headers, natively |
//! | `Nats-Msg-Id` | for the server, the caller's or one of ours; never part of the message's own headers |
//!
//! One header for both, because each is an entry of a map on both sides, and is stored: three of them made publishing a fifth
//! slower. See [`headers`](crate::headers) for `Ebus-Order`. A message without a legal `Ebus` was published by somebody
//! else: its time is the server's, its headers are all but ours, sorted by name, and its key is `Ebus-Key` or none.

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::{HeaderMap, HeaderName};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use ebus_core::{Key, Message, Timestamp};

use crate::digits;
use crate::headers::{self, ORDER, is_plain};

/// Time and key of a message of ours.
const EBUS: &str = "Ebus";
const EBUS_NAME: HeaderName = HeaderName::from_static(EBUS);
/// The key of a message of other make.
const KEY: &str = "Ebus-Key";

/// What headers and payload take of a message on the wire besides the message itself, at most, without an id: the frame,
/// time, and the names.
pub(crate) const OVERHEAD: usize = 512;

/// What an id of ours takes in the headers, at most.
pub(crate) const OWN_ID: usize = "Nats-Msg-Id".len() + SEPARATORS + 11 + 20;

/// What a header takes besides its name and its value.
const SEPARATORS: usize = ": \r\n".len();

/// The headers of a message, and how many bytes they are on the wire.
pub(crate) fn encode(message: &Message, id: Option<&str>) -> (HeaderMap, usize) {
    let mut map = HeaderMap::new();
    let mut len = "NATS/1.0\r\n\r\n".len();
    let own = encode_own(message);
    len += EBUS.len() + SEPARATORS + own.len();
    map.insert(EBUS_NAME, own);
    if let Some(id) = id {
        len += "Nats-Msg-Id".len() + SEPARATORS + id.len();
        map.insert(NATS_MESSAGE_ID, id);
    }
    if !message.headers.is_empty() {
        // `name` and `value` are plain: anything else would make async-nats panic.
        headers::encode(&message.headers, |name, value| {
            len += name.len() + SEPARATORS + value.len();
            map.append(name, value);
        });
    }
    (map, len)
}

/// Time and key as the value of their header.
fn encode_own(message: &Message) -> String {
    let key = message.key.as_ref().map_or(&[][..], Key::as_bytes);
    let mut own = String::with_capacity(MILLIS + 1 + key.len());
    let millis = message.timestamp.as_millis();
    if millis < 0 {
        own.push('-');
    }
    digits::push(&mut own, millis.unsigned_abs());
    if let Some(key) = &message.key {
        match key.as_str().filter(|text| !text.is_empty() && is_plain(text)) {
            Some(text) => {
                own.push(' ');
                own.push_str(text);
            }
            None => {
                own.push('=');
                URL_SAFE_NO_PAD.encode_string(key.as_bytes(), &mut own);
            }
        }
    }
    own
}

/// Digits of a time in milliseconds for the next 200 years.
const MILLIS: usize = 13;

/// Time and key of a message of ours; `None` for what we did not write.
fn decode_own(own: &str) -> Option<(Timestamp, Option<Key>)> {
    let digits = own.bytes().position(|byte| byte == b' ' || byte == b'=').unwrap_or(own.len());
    let time = own[..digits].parse().ok().map(Timestamp::from_millis)?;
    let key = match own.as_bytes().get(digits) {
        None => None,
        Some(b' ') => Some(Key::from(&own[digits + 1..])),
        Some(_) => Some(Key::from(URL_SAFE_NO_PAD.decode(&own[digits + 1..]).ok()?)),
    };
    Some((time, key))
}

/// Whether an id can stand in a header: what else would be sent is another message.
pub(crate) fn is_legal_id(id: &str) -> bool {
    !id.is_empty() && is_plain(id)
}

/// The message of ebus in a message of NATS that the server stored at `stored`.
pub(crate) fn decode(map: Option<&HeaderMap>, payload: Bytes, stored: impl FnOnce() -> Timestamp) -> Message {
    let Some(map) = map.filter(|map| !map.is_empty()) else {
        return Message::made_at(stored(), payload);
    };
    let Some((time, key)) = map.get(EBUS_NAME).and_then(|own| decode_own(own.as_str())) else {
        return decode_foreign(map, payload, stored());
    };
    let message = Message::made_at(time, payload).with_optional_key(key);
    if map.len() == 1 {
        return message;
    }
    let order = map.get(ORDER).map(|order| order.as_str());
    if order.is_none() && map.iter().all(|(name, _)| is_own(name.as_ref()) || is_servers(name.as_ref())) {
        return message;
    }
    message.with_headers(headers::decode(map, order, |name| !is_own(name) && !is_servers(name)))
}

fn decode_foreign(map: &HeaderMap, payload: Bytes, stored: Timestamp) -> Message {
    let key = map.get(KEY).map(|key| Key::from(key.as_str()));
    let list = headers::decode(map, None, |name| !is_own(name));
    Message::made_at(stored, payload).with_optional_key(key).with_headers(list)
}

/// Whether this header is ours.
pub(crate) fn is_own(name: &str) -> bool {
    has_prefix(name, EBUS) && matches!(name.as_bytes().get(EBUS.len()), None | Some(b'-'))
}

/// Whether this header is the server's.
pub(crate) fn is_servers(name: &str) -> bool {
    has_prefix(name, "nats-")
}

/// Whether `name` begins with `prefix`, whatever the case.
fn has_prefix(name: &str, prefix: &str) -> bool {
    name.as_bytes().get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix.as_bytes()))
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
