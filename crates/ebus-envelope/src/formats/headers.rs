//! The format `headers`: metadata in headers, payload untouched, timestamp and key in the message's own places.

use bytes::Bytes;
use ebus_core::{Error, ErrorKind, Headers, Key, Message};

use super::{beside, names};
use crate::envelope::JSON;
use crate::rules::Broken;
use crate::text::Text;
use crate::{Envelope, EventId};

pub(super) fn encode(envelope: Envelope) -> Message {
    let key = envelope.aggregate_id.clone().into_bytes();
    let own = [
        (names::EVENT_ID, Some(Bytes::from(envelope.event_id.to_string()))),
        (names::AGGREGATE_ID, Some(key.clone())),
        (names::EVENT_TYPE, Some(envelope.event_type.into_bytes())),
        (names::EVENT_VERSION, Some(Bytes::from(envelope.event_version.to_string()))),
        (names::TRACE_ID, envelope.trace_id.map(Text::into_bytes)),
        (names::CORRELATION_ID, envelope.correlation_id.map(Text::into_bytes)),
        (names::TENANT_ID, envelope.tenant_id.map(Text::into_bytes)),
        (names::CONTENT_TYPE, Some(envelope.content_type.into_bytes())),
    ];
    let own = own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let beside = envelope.headers.iter().map(|(name, value)| (name.to_owned(), value.clone()));
    Message::new(envelope.payload)
        .with_key(Key::new(key))
        .with_headers(own.chain(beside).collect())
        .with_timestamp(envelope.timestamp)
}

pub(super) fn decode(message: &Message) -> Result<Envelope, Error> {
    read(message).map_err(|broken| broken.into_error(ErrorKind::Decode))
}

/// The values of the envelope's own headers, in the order of [`names::ALL`].
struct Found<'a>([Option<&'a Bytes>; names::ALL.len()]);

/// The fields that these headers hold, in the same order.
const FIELDS: [&str; names::ALL.len()] = [
    "event_id",
    "aggregate_id",
    "event_type",
    "event_version",
    "trace_id",
    "correlation_id",
    "tenant_id",
    "content_type",
];

impl<'a> Found<'a> {
    fn of(headers: &'a Headers) -> Result<Self, Broken> {
        let mut found = [None; names::ALL.len()];
        for (name, value) in headers.iter() {
            let Some(i) = names::ALL.iter().position(|own| name.eq_ignore_ascii_case(own)) else { continue };
            if found[i].replace(value).is_some() {
                return Err(Broken::new(FIELDS[i], format!("the header {} stands twice", names::ALL[i])));
            }
        }
        Ok(Self(found))
    }

    fn optional(&self, i: usize) -> Result<Option<Text>, Broken> {
        let Some(value) = self.0[i] else { return Ok(None) };
        Text::new(value.clone())
            .map(Some)
            .ok_or_else(|| Broken::new(FIELDS[i], format!("the header {} is not UTF-8", names::ALL[i])))
    }

    fn required(&self, i: usize) -> Result<Text, Broken> {
        self.optional(i)?
            .ok_or_else(|| Broken::new(FIELDS[i], format!("the header {} is missing", names::ALL[i])))
    }
}

fn read(message: &Message) -> Result<Envelope, Broken> {
    let found = Found::of(&message.headers)?;
    let envelope = Envelope {
        event_id: EventId::parse(found.required(0)?.as_str())
            .map_err(|rule| Broken::new("event_id", rule))?,
        aggregate_id: found.required(1)?,
        event_type: found.required(2)?,
        event_version: version(found.required(3)?.as_str())?,
        trace_id: found.optional(4)?,
        correlation_id: found.optional(5)?,
        tenant_id: found.optional(6)?,
        content_type: match found.optional(7)? {
            Some(text) => text,
            None => Text::from_static(JSON),
        },
        timestamp: message.timestamp,
        payload: message.payload.clone(),
        headers: beside(&message.headers),
    };
    envelope.check()?;
    Ok(envelope)
}

/// Digits without sign and leading zero: one version has one spelling.
fn version(text: &str) -> Result<u32, Broken> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    match text.parse() {
        Ok(version) if plain => Ok(version),
        _ => Err(Broken::new(
            "event_version",
            "it must be a whole number from 1 to 4294967295 in decimal digits",
        )),
    }
}
