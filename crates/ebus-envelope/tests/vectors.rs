//! The vectors under `tests/vectors`, both ways, byte by byte.
#![cfg(all(feature = "headers", feature = "json"))]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use ebus_core::{Error, Headers, Message, Timestamp};
use ebus_envelope::{Envelope, EventId, Format};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    #[allow(dead_code, reason = "for readers of the vector")]
    about: String,
    #[serde(default)]
    decode_only: bool,
    envelope: Option<Wanted>,
    message: Option<Wire>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    event_id: String,
    aggregate_id: String,
    event_type: String,
    event_version: u32,
    timestamp_ms: i64,
    trace_id: Option<String>,
    correlation_id: Option<String>,
    tenant_id: Option<String>,
    content_type: String,
    payload: Octets,
    #[serde(default)]
    headers: Vec<(String, Octets)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    key: Option<String>,
    timestamp_ms: i64,
    headers: Vec<(String, Octets)>,
    payload: Octets,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refusal {
    kind: String,
    field: String,
    says: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Octets {
    Text(String),
    Binary { hex: String },
}

impl Octets {
    fn bytes(&self) -> Bytes {
        match self {
            Self::Text(text) => Bytes::from(text.clone()),
            Self::Binary { hex } => hex
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("hex"), 16).expect("hex"))
                .collect(),
        }
    }
}

fn headers(list: &[(String, Octets)]) -> Headers {
    list.iter().map(|(name, value)| (name.clone(), value.bytes())).collect()
}

impl Wire {
    fn message(&self) -> Message {
        Message::new(self.payload.bytes())
            .with_optional_key(self.key.as_deref().map(Into::into))
            .with_headers(headers(&self.headers))
            .with_timestamp(Timestamp::from_millis(self.timestamp_ms))
    }
}

impl Wanted {
    /// Fields that the constructor refuses are refused here already: part of the same promise.
    fn envelope(&self) -> Result<Envelope, Error> {
        let id: EventId = self.event_id.parse()?;
        let mut envelope = Envelope::of_bytes(
            &self.aggregate_id,
            &self.event_type,
            self.event_version,
            &self.content_type,
            self.payload.bytes(),
        )?
        .with_event_id(id)
        .with_timestamp(Timestamp::from_millis(self.timestamp_ms));
        if let Some(id) = &self.trace_id {
            envelope = envelope.with_trace_id(id);
        }
        if let Some(id) = &self.correlation_id {
            envelope = envelope.with_correlation_id(id);
        }
        if let Some(id) = &self.tenant_id {
            envelope = envelope.with_tenant_id(id);
        }
        Ok(self
            .headers
            .iter()
            .fold(envelope, |envelope, (name, value)| envelope.with_header(name, value.bytes())))
    }
}

fn cases(format: &str, kind: &str) -> Vec<(PathBuf, Case)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(format).join(kind);
    let mut cases: Vec<_> = std::fs::read_dir(&dir)
        .expect("the vectors are there")
        .map(|entry| entry.expect("readable").path())
        .map(|path| {
            (path.clone(), serde_json::from_slice(&std::fs::read(path).expect("readable")).expect("a vector"))
        })
        .collect();
    cases.sort_by(|a: &(PathBuf, Case), b| a.0.cmp(&b.0));
    assert!(cases.len() >= 7, "the vectors of {} are gone", dir.display());
    cases
}

fn valid_ones_hold_both_ways(name: &str, format: Format) {
    for (path, case) in cases(name, "valid") {
        let path = path.display();
        let envelope =
            case.envelope.expect("an envelope").envelope().unwrap_or_else(|e| panic!("{path}: {e}"));
        let message = case.message.expect("a message").message();
        assert_eq!(
            Envelope::decode_as(&message, format).unwrap_or_else(|e| panic!("{path}: {e}")),
            envelope,
            "{path}"
        );
        assert_eq!(Envelope::decode(&message).unwrap_or_else(|e| panic!("{path}: {e}")), envelope, "{path}");
        if !case.decode_only {
            assert_eq!(envelope.encode(format).unwrap_or_else(|e| panic!("{path}: {e}")), message, "{path}");
        }
    }
}

fn invalid_ones_name_their_field(name: &str, format: Format) {
    for (path, case) in cases(name, "invalid") {
        let path = path.display();
        let wanted = case.error.expect("an error");
        let error = match (case.message, case.envelope) {
            (Some(wire), None) => Envelope::decode_as(&wire.message(), format).map(|_| ()),
            (None, Some(envelope)) => {
                envelope.envelope().and_then(|envelope| envelope.encode(format)).map(|_| ())
            }
            _ => panic!("{path}: give a message or an envelope"),
        }
        .expect_err(&format!("{path} is taken"));
        assert_eq!(error.kind().as_str(), wanted.kind, "{path}: {error}");
        assert_eq!(
            error.context().find(|(name, _)| *name == "field"),
            Some(("field", wanted.field.as_str())),
            "{path}: {error}"
        );
        assert!(error.to_string().contains(&wanted.says), "{path}: {error}");
    }
}

#[test]
fn headers_hold_both_ways() {
    valid_ones_hold_both_ways("headers", Format::Headers);
}

#[test]
fn headers_refuse_by_field() {
    invalid_ones_name_their_field("headers", Format::Headers);
}

#[test]
fn json_holds_both_ways() {
    valid_ones_hold_both_ways("json", Format::Json);
}

#[test]
fn json_refuses_by_field() {
    invalid_ones_name_their_field("json", Format::Json);
}
