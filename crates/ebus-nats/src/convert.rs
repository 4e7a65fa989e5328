//! A message of ebus as a message of NATS and back, exactly (a01).
//!
//! | NATS header | carries |
//! |---|---|
//! | `Ebus-Time` | the timestamp in milliseconds; marks a message as ours |
//! | `Ebus-Key` | the key, where it is plain text; a publisher of other make may set it too |
//! | `Ebus-Key-B64` | any other key, base64url |
//! | `Ebus-Order` | the exact list of headers, only where native headers alone would not bring it back |
//! | all others | the headers, natively |
//! | `Nats-Expected-Stream`, `Nats-Msg-Id` | for the server; never part of the message's own headers |
//!
//! See [`headers`](crate::headers) for `Ebus-Order`. A message without `Ebus-Time` was published by somebody else: its
//! time is the server's, its headers are all but `Ebus-*`, sorted by name, and its key is `Ebus-Key` or none.

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use ebus_core::{Key, Message, Timestamp};

use crate::headers::{self, ORDER, is_plain};

const TIME: &str = "Ebus-Time";
const KEY: &str = "Ebus-Key";
const KEY_B64: &str = "Ebus-Key-B64";

/// What headers and payload take of a message on the wire besides the message itself, at most, without an id: the frame,
/// the expected stream (of up to 200 bytes), time, and the name of the key.
pub(crate) const OVERHEAD: usize = 512;

/// The headers of a message, and how many bytes they are on the wire.
pub(crate) fn encode(message: &Message, stream: &str, id: Option<&str>) -> (HeaderMap, usize) {
    let mut wire = Wire { map: HeaderMap::new(), len: "NATS/1.0\r\n\r\n".len() };
    wire.put_standard(NATS_EXPECTED_STREAM, "Nats-Expected-Stream".len(), stream);
    if let Some(id) = id {
        wire.put_standard(NATS_MESSAGE_ID, "Nats-Msg-Id".len(), id);
    }
    wire.put(TIME, message.timestamp.as_millis().to_string());
    if let Some(key) = &message.key {
        match key.as_str().filter(|text| is_plain(text)) {
            Some(text) => wire.put(KEY, text.to_owned()),
            None => wire.put(KEY_B64, URL_SAFE_NO_PAD.encode(key.as_bytes())),
        }
    }
    headers::encode(&message.headers, |name, value| wire.put(name, value));
    (wire.map, wire.len)
}

struct Wire {
    map: HeaderMap,
    len: usize,
}

impl Wire {
    /// `name` and `value` are plain: anything else would make async-nats panic.
    fn put(&mut self, name: &str, value: String) {
        self.len += name.len() + ": \r\n".len() + value.len();
        self.map.append(name, value);
    }

    fn put_standard(&mut self, name: async_nats::HeaderName, name_len: usize, value: &str) {
        self.len += name_len + ": \r\n".len() + value.len();
        self.map.insert(name, value);
    }
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
    let mut time = None;
    let mut key = None;
    let mut order = None;
    let mut others = 0usize;
    for (name, values) in map.iter() {
        let name: &str = name.as_ref();
        let Some(first) = values.first().map(|value| value.as_str()) else { continue };
        match name {
            TIME => time = first.parse().ok().map(Timestamp::from_millis),
            KEY => key = key.or_else(|| Some(Key::from(first))),
            KEY_B64 => key = URL_SAFE_NO_PAD.decode(first).ok().map(Key::from).or(key),
            ORDER => order = Some(first),
            _ => others += usize::from(!is_servers(name)),
        }
    }
    let ours = time.is_some();
    let list = match order.filter(|_| ours) {
        None if ours && others == 0 => None,
        order => Some(headers::decode(map, order, |name| !(is_own(name) || ours && is_servers(name)))),
    };
    let mut message = Message::made_at(time.unwrap_or_else(stored), payload).with_optional_key(key);
    if let Some(list) = list {
        message = message.with_headers(list);
    }
    message
}

/// Whether this header is ours.
fn is_own(name: &str) -> bool {
    has_prefix(name, "ebus-")
}

/// Whether this header is the server's.
fn is_servers(name: &str) -> bool {
    has_prefix(name, "nats-")
}

/// Whether `name` begins with `prefix`, whatever the case.
pub(crate) fn has_prefix(name: &str, prefix: &str) -> bool {
    name.as_bytes().get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix.as_bytes()))
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
