//! A message of ebus as a message of NATS and back, exactly (a01).
//!
//! | NATS header | carries |
//! |---|---|
//! | `Nats-Msg-Id` | for the server, the caller's id or one of ours; never part of the message's own headers. One of ours is `Ebus <time and key> <what is unique>`, and marks a message as ours |
//! | `Ebus-Id` | one of our ids that the server does not look at, in a batch that can be fenced (`pump/remains.rs`) |
//! | `Ebus` | time and key, where the id is the caller's, or the key too long to be part of one |
//! | `Ebus-Order` | the exact list of headers, only where native headers alone would not bring it back |
//! | all others | the headers, natively |
//!
//! Time and key are the timestamp in milliseconds, then the key: after a space as it is, where it is plain text; after `=` any other,
//! base64url; neither without a key. One header for id, time and key, because each is an entry of a map on both sides, and is stored:
//! three of them made publishing a fifth slower. See [`headers`](crate::headers) for `Ebus-Order`. A message without legal time
//! and key was published by somebody else: its time is the server's, its headers are all but ours, sorted by name, and its key is
//! `Ebus-Key` or none.

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
/// An id of ours that the server does not look at.
pub(crate) const TAG: HeaderName = HeaderName::from_static("Ebus-Id");
/// The key of a message of other make.
const KEY: &str = "Ebus-Key";

/// What headers and payload take of a message on the wire besides the message itself, at most, without an id: the frame,
/// time, and the names.
pub(crate) const OVERHEAD: usize = 512;

/// What an id of ours with time and key begins with.
const MARK: &str = "Ebus ";
/// What makes an id of ours unique, at most: a space, what is the publisher's, a number.
const UNIQUE: usize = 1 + 11 + 20;
/// The longest key, in bytes, that is part of an id: the server keeps ids in memory for the stream's duplicate window.
const MOST_OF_KEY: usize = 64;

/// What a header takes besides its name and its value.
const SEPARATORS: usize = ": \r\n".len();

/// The headers of a message.
pub(crate) struct Encoded {
    /// Without an id of ours.
    pub(crate) headers: HeaderMap,
    /// What an id of ours begins with; see [`complete_id`].
    pub(crate) own: String,
    /// How many bytes they are on the wire, at most: exactly, with an id of the caller's.
    pub(crate) len: usize,
}

/// The headers of a message with this id of the caller's, or to be sent with one of ours.
pub(crate) fn encode(message: &Message, id: Option<&str>) -> Encoded {
    let mut map = HeaderMap::new();
    let mut len = "NATS/1.0\r\n\r\n".len() + "Nats-Msg-Id".len() + SEPARATORS;
    let own = if id.is_none() { begin_id(message) } else { String::new() };
    if own.is_empty() {
        let value = encode_own("", message, 0);
        len += EBUS.len() + SEPARATORS + value.len();
        map.insert(EBUS_NAME, value);
    }
    match id {
        Some(id) => {
            len += id.len();
            map.insert(NATS_MESSAGE_ID, id);
        }
        None => len += own.len() + UNIQUE,
    }
    if !message.headers.is_empty() {
        // `name` and `value` are plain: anything else would make async-nats panic.
        headers::encode(&message.headers, |name, value| {
            len += name.len() + SEPARATORS + value.len();
            map.append(name, value);
        });
    }
    Encoded { headers: map, own, len }
}

/// What an id of ours for this message begins with, with room for the rest; empty if its key is too long for that.
fn begin_id(message: &Message) -> String {
    match &message.key {
        Some(key) if key.as_bytes().len() > MOST_OF_KEY => String::new(),
        _ => encode_own(MARK, message, UNIQUE),
    }
}

/// The id of the message sent under this number: unique among all publishers, because the prefix is.
pub(crate) fn complete_id(mut own: String, prefix: &str, number: u64) -> String {
    if !own.is_empty() {
        own.push(' ');
    }
    own.push_str(prefix);
    digits::push(&mut own, number);
    own
}

/// The id that this message was sent with under this number.
pub(crate) fn own_id(message: &Message, prefix: &str, number: u64) -> String {
    complete_id(begin_id(message), prefix, number)
}

/// Time and key, after `head`, with room for `more` bytes.
fn encode_own(head: &str, message: &Message, more: usize) -> String {
    let key = message.key.as_ref().map_or(&[][..], Key::as_bytes);
    let mut own = String::with_capacity(head.len() + MILLIS + 1 + key.len() + more);
    own.push_str(head);
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

/// Time and key in an id of ours.
fn in_id(id: &str) -> Option<&str> {
    id.strip_prefix(MARK)?.rsplit_once(' ').map(|(own, _)| own)
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
    let id = id_of(map).and_then(in_id);
    // Beside it the id is the caller's, whatever stands in it.
    let beside = if id.is_none() || map.len() > 1 { map.get(EBUS_NAME) } else { None };
    let own = beside.map(|own| own.as_str()).or(id);
    let Some((time, key)) = own.and_then(decode_own) else {
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

/// The id of a message, or its tag: what makes it unique, if it is ours.
pub(crate) fn id_of(map: &HeaderMap) -> Option<&str> {
    let id = if map.len() == 1 {
        // Nearly all of ours: looked at without hashing a name or two.
        let one = map.iter().next().filter(|(name, _)| **name == NATS_MESSAGE_ID || **name == TAG);
        one.and_then(|(_, values)| values.first())
    } else {
        map.get(NATS_MESSAGE_ID).or_else(|| map.get(TAG))
    };
    id.map(|id| id.as_str())
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
