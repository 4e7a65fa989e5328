//! The format `json`: one JSON object, the payload inside as it was written.
//!
//! Each field is taken as raw JSON first and read by itself, so that an error can name its field.

use bytes::Bytes;
use ebus_core::{Error, ErrorKind, Key, Message};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{beside, names};
use crate::rules::Broken;
use crate::text::Text;
use crate::{Envelope, EventId};

#[derive(Serialize)]
struct Written<'a> {
    event_id: String,
    aggregate_id: &'a str,
    event_type: &'a str,
    event_version: u32,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant_id: Option<&'a str>,
    content_type: &'a str,
    payload: &'a RawValue,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Read<'a> {
    #[serde(borrow, deserialize_with = "present")]
    event_id: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    aggregate_id: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    event_type: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    event_version: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    trace_id: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    correlation_id: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    tenant_id: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    content_type: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    payload: Option<&'a RawValue>,
}

/// A field that is there, `null` too: for the payload `null` is a value.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

pub(super) fn encode(envelope: Envelope) -> Result<Message, Error> {
    write(&envelope).map_err(|broken| broken.into_error(ErrorKind::ConfigInvalid)).map(|body| {
        let own = std::iter::once((
            names::CONTENT_TYPE.to_owned(),
            Bytes::from_static(names::JSON_ENVELOPE.as_bytes()),
        ));
        let beside = envelope.headers.iter().map(|(name, value)| (name.to_owned(), value.clone()));
        Message::new(body)
            .with_headers(own.chain(beside).collect())
            .with_timestamp(envelope.timestamp)
            .with_key(Key::new(envelope.aggregate_id.into_bytes()))
    })
}

fn write(envelope: &Envelope) -> Result<Vec<u8>, Broken> {
    let payload: &RawValue = serde_json::from_slice(&envelope.payload).map_err(|error| {
        Broken::new(
            "payload",
            format!("it is not JSON, which the format json needs ({error}); use the format headers"),
        )
    })?;
    let written = Written {
        event_id: envelope.event_id.to_string(),
        aggregate_id: envelope.aggregate_id(),
        event_type: envelope.event_type(),
        event_version: envelope.event_version,
        timestamp: time_text(envelope.timestamp)?,
        trace_id: envelope.trace_id(),
        correlation_id: envelope.correlation_id(),
        tenant_id: envelope.tenant_id(),
        content_type: envelope.content_type(),
        payload,
    };
    serde_json::to_vec(&written)
        .map_err(|error| Broken::new("payload", format!("the envelope cannot be written as JSON: {error}")))
}

pub(super) fn decode(message: &Message) -> Result<Envelope, Error> {
    let begin = message.payload.iter().find(|byte| !byte.is_ascii_whitespace());
    if begin.is_some_and(|byte| *byte != b'{') {
        // The derived reader would also take an array of the fields.
        return Err(Error::new(
            ErrorKind::Decode,
            "the message is no envelope in the format json: it is no JSON object",
        )
        .with_context("field", "envelope"));
    }
    let read: Read<'_> = serde_json::from_slice(&message.payload).map_err(|error| {
        Error::new(ErrorKind::Decode, format!("the message is no envelope in the format json: {error}"))
            .with_context("field", "envelope")
            .with_source(error)
    })?;
    fields(&read, message).map_err(|broken| broken.into_error(ErrorKind::Decode))
}

fn fields(read: &Read<'_>, message: &Message) -> Result<Envelope, Broken> {
    let body = &message.payload;
    let id = required("event_id", read.event_id).and_then(|raw| text(body, "event_id", raw))?;
    let envelope = Envelope {
        event_id: EventId::parse(id.as_str()).map_err(|rule| Broken::new("event_id", rule))?,
        aggregate_id: text(body, "aggregate_id", required("aggregate_id", read.aggregate_id)?)?,
        event_type: text(body, "event_type", required("event_type", read.event_type)?)?,
        event_version: version(required("event_version", read.event_version)?)?,
        timestamp: time(&text(body, "timestamp", required("timestamp", read.timestamp)?)?)?,
        trace_id: optional(body, "trace_id", read.trace_id)?,
        correlation_id: optional(body, "correlation_id", read.correlation_id)?,
        tenant_id: optional(body, "tenant_id", read.tenant_id)?,
        content_type: text(body, "content_type", required("content_type", read.content_type)?)?,
        payload: body.slice_ref(required("payload", read.payload)?.get().as_bytes()),
        headers: beside(&message.headers),
    };
    envelope.check()?;
    Ok(envelope)
}

fn required<'a>(field: &'static str, raw: Option<&'a RawValue>) -> Result<&'a RawValue, Broken> {
    raw.ok_or_else(|| Broken::new(field, "it is missing"))
}

fn optional(body: &Bytes, field: &'static str, raw: Option<&RawValue>) -> Result<Option<Text>, Broken> {
    raw.filter(|raw| raw.get() != "null").map(|raw| text(body, field, raw)).transpose()
}

/// A string. One without escapes shares the message's bytes.
fn text(body: &Bytes, field: &'static str, raw: &RawValue) -> Result<Text, Broken> {
    if let Ok(plain) = serde_json::from_str::<&str>(raw.get()) {
        return Ok(Text::of(body.slice_ref(plain.as_bytes()), plain));
    }
    serde_json::from_str::<String>(raw.get())
        .map(Text::from)
        .map_err(|_| Broken::new(field, "it must be a string"))
}

fn version(raw: &RawValue) -> Result<u32, Broken> {
    serde_json::from_str(raw.get())
        .map_err(|_| Broken::new("event_version", "it must be a whole number from 1 to 4294967295"))
}

/// Always with milliseconds and `Z`: one moment has one spelling.
fn time_text(time: ebus_core::Timestamp) -> Result<String, Broken> {
    Timestamp::from_millisecond(time.as_millis())
        .map(|time| format!("{time:.3}"))
        .map_err(|error| Broken::new("timestamp", error.to_string()))
}

/// RFC 3339 with any offset; what is below a millisecond is cut off.
fn time(text: &Text) -> Result<ebus_core::Timestamp, Broken> {
    let broken = |why: &str| {
        Broken::new("timestamp", format!("it must be RFC 3339, such as 2026-01-31T12:00:00.000Z{why}"))
    };
    let (head, fraction, zone) = shape(text.as_str()).ok_or_else(|| broken(""))?;
    let millis: String = fraction.chars().chain("000".chars()).take(3).collect();
    let time: Timestamp =
        format!("{head}.{millis}{zone}").parse().map_err(|error| broken(&format!(": {error}")))?;
    Ok(ebus_core::Timestamp::from_millis(time.as_millisecond()))
}

/// `YYYY-MM-DDThh:mm:ss`, the digits of its fraction, and `Z` or an offset: jiff reads more than RFC 3339 allows.
fn shape(text: &str) -> Option<(&str, &str, &str)> {
    fn fits(text: &str, shape: &str) -> bool {
        text.len() == shape.len()
            && text.bytes().zip(shape.bytes()).all(|(byte, want)| match want {
                b'0' => byte.is_ascii_digit(),
                _ => byte.eq_ignore_ascii_case(&want),
            })
    }
    let (head, rest) = text.split_at_checked(19)?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        None => ("", rest),
        Some(rest) => rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count()),
    };
    let whole = fits(head, "0000-00-00T00:00:00") && (rest == zone || !fraction.is_empty());
    (whole && ["Z", "+00:00", "-00:00"].iter().any(|form| fits(zone, form))).then_some((head, fraction, zone))
}
