//! The wire formats: how an envelope is written into a message, and how its format is found out again.
#![cfg_attr(
    not(any(feature = "headers", feature = "json")),
    allow(unused, reason = "without a format nothing is written or read")
)]

#[cfg(feature = "headers")]
mod headers;
#[cfg(feature = "json")]
mod json;
pub mod names;

use ebus_core::{Error, ErrorKind, Headers, Message};

use crate::{Envelope, rules};

/// A wire format of envelopes. Each is a feature of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// Metadata in headers, payload untouched: the fast one; the key is known without parsing. The timestamp is the
    /// message's own, so a topic whose broker overwrites it (Kafka's `LogAppendTime`) shows the broker's.
    #[cfg(feature = "headers")]
    Headers,
    /// One JSON object with the payload inside as it is written, so that the payload must be JSON; white space around it is
    /// not part of it. Fields that are not known are ignored, so that a newer writer can be read.
    #[cfg(feature = "json")]
    Json,
}

pub(crate) fn encode(envelope: Envelope, format: Format) -> Result<Message, Error> {
    match format {
        #[cfg(feature = "headers")]
        Format::Headers => Ok(headers::encode(envelope)),
        #[cfg(feature = "json")]
        Format::Json => json::encode(envelope),
    }
}

pub(crate) fn decode_as(message: &Message, format: Format) -> Result<Envelope, Error> {
    match format {
        #[cfg(feature = "headers")]
        Format::Headers => headers::decode(message),
        #[cfg(feature = "json")]
        Format::Json => json::decode(message),
    }
}

pub(crate) fn decode(message: &Message) -> Result<Envelope, Error> {
    match detect(message)? {
        Found::Headers => {
            #[cfg(feature = "headers")]
            return headers::decode(message);
            #[cfg(not(feature = "headers"))]
            return Err(lacks("headers"));
        }
        Found::Json => {
            #[cfg(feature = "json")]
            return json::decode(message);
            #[cfg(not(feature = "json"))]
            return Err(lacks("json"));
        }
    }
}

enum Found {
    Headers,
    Json,
}

fn detect(message: &Message) -> Result<Found, Error> {
    let mut content_type = None;
    for (name, value) in message.headers.iter() {
        if name.eq_ignore_ascii_case(names::EVENT_ID) {
            return Ok(Found::Headers);
        }
        if content_type.is_none() && name.eq_ignore_ascii_case(names::CONTENT_TYPE) {
            content_type = Some(value);
        }
    }
    let Some(content_type) = content_type else { return Ok(Found::Json) };
    let content_type = String::from_utf8_lossy(content_type);
    let essence = rules::essence(&content_type);
    if [names::JSON_ENVELOPE, crate::envelope::JSON].iter().any(|known| essence.eq_ignore_ascii_case(known)) {
        return Ok(Found::Json);
    }
    let shown: String = essence.chars().take(64).collect();
    Err(Error::new(
        ErrorKind::Decode,
        format!(
            "the message is no envelope: it has no header {} and its content type is {shown:?}; publish it with one, or use a \
             handler of raw deliveries",
            names::EVENT_ID
        ),
    )
    .with_context("field", "content_type"))
}

#[cfg(not(all(feature = "headers", feature = "json")))]
fn lacks(format: &str) -> Error {
    Error::new(
        ErrorKind::Decode,
        format!(
            "the message is an envelope in the format {format}, which this build lacks; turn the feature {format} on"
        ),
    )
}

/// Whether this header belongs to the envelope itself.
pub(crate) fn is_own(name: &str) -> bool {
    names::ALL.iter().any(|own| name.eq_ignore_ascii_case(own))
}

/// The headers beside the envelope. Without any, and with nothing but the envelope's own, this allocates nothing.
fn beside(headers: &Headers) -> Headers {
    if headers.iter().all(|(name, _)| is_own(name)) {
        return Headers::new();
    }
    headers.iter().filter(|(name, _)| !is_own(name)).map(|(name, value)| (name, value.clone())).collect()
}
