//! What each field of an envelope may hold, in one place: the same rules at encode and at decode, each refusal naming its
//! field.
//!
//! | Field | Rule |
//! |---|---|
//! | `event_id` | a UUID of version 7, 36 characters |
//! | `aggregate_id`, `event_type` | 1 to 256 bytes of `[A-Za-z0-9:_./-]` |
//! | `event_version` | 1 to 4294967295 |
//! | `timestamp` | in the years 0 to 9998, UTC |
//! | `trace_id`, `correlation_id`, `tenant_id` | absent, or 1 to 256 bytes of visible ASCII without spaces |
//! | `content_type` | `type/subtype` with parameters: 1 to 256 bytes of printable ASCII, no space at the ends |
//! | `traceparent` | as W3C Trace Context version 00 writes it; checked at encode, ignored if wrong at decode |
//! | other headers | any name that is neither empty nor one of the envelope's own |

use ebus_core::{Error, ErrorKind, Timestamp};

const MAX_LEN: usize = 256;
/// 0000-01-01T00:00:00.000Z, the first moment that RFC 3339 can write.
const EARLIEST_MILLIS: i64 = -62_167_219_200_000;
/// 9998-12-31T23:59:59.999Z: with any offset this still has a year of four digits.
const LATEST_MILLIS: i64 = 253_370_764_799_999;

/// A field that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    field: &'static str,
    rule: String,
}

impl Broken {
    pub(crate) fn new(field: &'static str, rule: impl Into<String>) -> Self {
        Self { field, rule: rule.into() }
    }

    /// `ConfigInvalid` for what the caller gave, `Decode` for what the wire gave.
    pub(crate) fn into_error(self, kind: ErrorKind) -> Error {
        Error::new(kind, format!("illegal {}: {}", self.field, self.rule)).with_context("field", self.field)
    }
}

/// `aggregate_id` and `event_type`.
pub(crate) fn name(field: &'static str, text: &str) -> Result<(), Broken> {
    length(field, text)?;
    let legal = |c: &char| c.is_ascii_alphanumeric() || matches!(c, ':' | '_' | '.' | '/' | '-');
    match text.chars().find(|c| !legal(c)) {
        None => Ok(()),
        Some(c) => Err(Broken::new(
            field,
            format!("{c:?} is not allowed; use letters, digits, ':', '_', '.', '/' and '-'"),
        )),
    }
}

/// `trace_id`, `correlation_id` and `tenant_id`.
pub(crate) fn token(field: &'static str, text: &str) -> Result<(), Broken> {
    length(field, text)?;
    match text.chars().find(|c| !c.is_ascii_graphic()) {
        None => Ok(()),
        Some(c) => Err(Broken::new(field, format!("{c:?} is not allowed; use visible ASCII without spaces"))),
    }
}

pub(crate) fn content_type(text: &str) -> Result<(), Broken> {
    const FIELD: &str = "content_type";
    length(FIELD, text)?;
    if let Some(c) = text.chars().find(|c| !c.is_ascii_graphic() && *c != ' ') {
        return Err(Broken::new(FIELD, format!("{c:?} is not allowed; use printable ASCII")));
    }
    let (kind, subtype) = essence(text).split_once('/').unwrap_or_default();
    if kind.is_empty() || subtype.is_empty() || text.trim() != text {
        return Err(Broken::new(FIELD, "it must be type/subtype, such as application/json"));
    }
    Ok(())
}

pub(crate) fn version(version: u32) -> Result<(), Broken> {
    if version == 0 { Err(Broken::new("event_version", "it is 0; versions begin at 1")) } else { Ok(()) }
}

pub(crate) fn timestamp(time: Timestamp) -> Result<(), Broken> {
    if (EARLIEST_MILLIS..=LATEST_MILLIS).contains(&time.as_millis()) {
        return Ok(());
    }
    Err(Broken::new(
        "timestamp",
        format!("{} ms is outside of the years 0 to 9998; give milliseconds since 1970", time.as_millis()),
    ))
}

/// The content type without its parameters.
pub(crate) fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

fn length(field: &'static str, text: &str) -> Result<(), Broken> {
    match text.len() {
        0 => Err(Broken::new(field, "it is empty; give at least one character")),
        1..=MAX_LEN => Ok(()),
        len => Err(Broken::new(field, format!("it has {len} bytes; at most {MAX_LEN} are allowed"))),
    }
}
