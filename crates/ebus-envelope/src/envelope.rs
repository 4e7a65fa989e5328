//! The event's metadata around its payload.

use bytes::Bytes;
use ebus_core::{Error, ErrorKind, Headers, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::rules::{self, Broken};
use crate::text::Text;
use crate::{EventId, formats, traceparent};

/// The content type of what [`Envelope::event`] makes.
pub(crate) const JSON: &str = "application/json";

/// An event: its metadata, and a payload of bytes that is never looked into unless asked and never re-formatted.
///
/// # Fields
/// | Field | Rule |
/// |---|---|
/// | `event_id` | a UUID of version 7; a new one if none is given |
/// | `aggregate_id` | what the event is about, and the message's key: 1 to 256 bytes of `[A-Za-z0-9:_./-]` |
/// | `event_type` | what happened: as `aggregate_id` |
/// | `event_version` | version of the payload's form, from 1 |
/// | `timestamp` | when it happened, in milliseconds; now if none is given |
/// | `trace_id`, `correlation_id`, `tenant_id` | may be absent; 1 to 256 bytes of visible ASCII without spaces |
/// | `content_type` | what the payload is: `type/subtype`, with parameters if need be |
///
/// Headers that are none of the envelope's own travel beside it, `traceparent` among them.
///
/// The `with_*` calls take any value; it is checked where the envelope is encoded, or by [`validate`](Self::validate).
///
/// ```
/// # #[cfg(feature = "headers")] {
/// use ebus_envelope::Envelope;
///
/// let publish = Envelope::event("order-42", "order.placed", 1, &serde_json::json!({ "total": 7 }))?
///     .with_tenant_id("acme")
///     .to("orders")?;
/// assert_eq!(publish.message.headers.first_str("X-Tenant-ID"), Some("acme"));
///
/// let refused = Envelope::event("order 42", "order.placed", 1, &()).unwrap_err();
/// assert!(refused.to_string().contains("illegal aggregate_id: ' ' is not allowed"));
/// # }
/// # Ok::<(), ebus_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    pub(crate) event_id: EventId,
    pub(crate) aggregate_id: Text,
    pub(crate) event_type: Text,
    pub(crate) event_version: u32,
    pub(crate) timestamp: Timestamp,
    pub(crate) trace_id: Option<Text>,
    pub(crate) correlation_id: Option<Text>,
    pub(crate) tenant_id: Option<Text>,
    pub(crate) content_type: Text,
    pub(crate) payload: Bytes,
    pub(crate) headers: Headers,
}

impl Envelope {
    /// An event made now, with `value` as its payload in JSON.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the field that breaks its rule, or `payload` when `value` cannot be written as JSON.
    pub fn event<T: Serialize + ?Sized>(
        aggregate_id: impl Into<String>,
        event_type: impl Into<String>,
        event_version: u32,
        value: &T,
    ) -> Result<Self, Error> {
        let payload = serde_json::to_vec(value).map_err(|error| {
            Broken::new("payload", format!("the value cannot be written as JSON: {error}"))
                .into_error(ErrorKind::ConfigInvalid)
                .with_source(error)
        })?;
        Self::of_bytes(aggregate_id, event_type, event_version, JSON, payload)
    }

    /// An event made now, with these bytes as its payload.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the field that breaks its rule.
    pub fn of_bytes(
        aggregate_id: impl Into<String>,
        event_type: impl Into<String>,
        event_version: u32,
        content_type: impl Into<String>,
        payload: impl Into<Bytes>,
    ) -> Result<Self, Error> {
        let envelope = Self {
            event_id: EventId::now(),
            aggregate_id: aggregate_id.into().into(),
            event_type: event_type.into().into(),
            event_version,
            timestamp: Timestamp::now(),
            trace_id: None,
            correlation_id: None,
            tenant_id: None,
            content_type: content_type.into().into(),
            payload: payload.into(),
            headers: Headers::new(),
        };
        envelope.validate()?;
        Ok(envelope)
    }

    /// With this id instead of a new one.
    #[must_use]
    pub fn with_event_id(mut self, id: EventId) -> Self {
        self.event_id = id;
        self
    }

    /// Made then instead of now.
    #[must_use]
    pub fn with_timestamp(mut self, time: impl Into<Timestamp>) -> Self {
        self.timestamp = time.into();
        self
    }

    /// Part of this trace.
    #[must_use]
    pub fn with_trace_id(mut self, id: impl Into<String>) -> Self {
        self.trace_id = Some(id.into().into());
        self
    }

    /// Belongs together with what else has this id.
    #[must_use]
    pub fn with_correlation_id(mut self, id: impl Into<String>) -> Self {
        self.correlation_id = Some(id.into().into());
        self
    }

    /// Of this tenant.
    #[must_use]
    pub fn with_tenant_id(mut self, id: impl Into<String>) -> Self {
        self.tenant_id = Some(id.into().into());
        self
    }

    /// With one header more beside the envelope.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.append(name, value);
        self
    }

    /// With this W3C `traceparent` header, instead of the one before.
    #[must_use]
    pub fn with_traceparent(mut self, value: impl Into<String>) -> Self {
        self.headers.remove(traceparent::NAME);
        self.headers.append(traceparent::NAME, value.into());
        self
    }

    /// The event's own id, by which its copies are recognised.
    pub fn event_id(&self) -> EventId {
        self.event_id
    }

    /// What the event is about: the message's key.
    pub fn aggregate_id(&self) -> &str {
        self.aggregate_id.as_str()
    }

    /// What happened.
    pub fn event_type(&self) -> &str {
        self.event_type.as_str()
    }

    /// The version of the payload's form, from 1.
    pub fn event_version(&self) -> u32 {
        self.event_version
    }

    /// When it happened.
    pub fn timestamp(&self) -> Timestamp {
        self.timestamp
    }

    /// The trace that it is part of.
    pub fn trace_id(&self) -> Option<&str> {
        self.trace_id.as_ref().map(Text::as_str)
    }

    /// What it belongs together with.
    pub fn correlation_id(&self) -> Option<&str> {
        self.correlation_id.as_ref().map(Text::as_str)
    }

    /// Whose it is.
    pub fn tenant_id(&self) -> Option<&str> {
        self.tenant_id.as_ref().map(Text::as_str)
    }

    /// What the payload is.
    pub fn content_type(&self) -> &str {
        self.content_type.as_str()
    }

    /// The payload's bytes.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The headers beside the envelope.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The W3C `traceparent`, if there is one and it is well formed. One that is not is ignored, as the recommendation says.
    pub fn traceparent(&self) -> Option<&str> {
        let value = self.headers.first_str(traceparent::NAME)?;
        traceparent::check(value).is_ok().then_some(value)
    }

    /// The payload as a value.
    ///
    /// # Errors
    /// `Decode` when the content type is not JSON (`application/json` or a `+json` type), or the payload is no `T`.
    pub fn value<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let essence = rules::essence(self.content_type());
        let suffix =
            essence.len().checked_sub("+json".len()).and_then(|at| essence.get(at..)).unwrap_or_default();
        if !essence.eq_ignore_ascii_case(JSON) && !suffix.eq_ignore_ascii_case("+json") {
            return Err(Broken::new(
                "content_type",
                format!("{essence} is not JSON; read the bytes of the payload instead"),
            )
            .into_error(ErrorKind::Decode));
        }
        serde_json::from_slice(&self.payload).map_err(|error| {
            Error::new(
                ErrorKind::Decode,
                format!("the payload is no {}: {error}", std::any::type_name::<T>()),
            )
            .with_context("field", "payload")
            .with_context("event_type", self.event_type())
            .with_context("event_version", self.event_version)
            .with_source(error)
        })
    }

    /// Checks every field.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the first field that breaks its rule.
    pub fn validate(&self) -> Result<(), Error> {
        self.check()
            .and_then(|()| self.check_headers())
            .map_err(|broken| broken.into_error(ErrorKind::ConfigInvalid))
    }

    pub(crate) fn check(&self) -> Result<(), Broken> {
        rules::name("aggregate_id", self.aggregate_id())?;
        rules::name("event_type", self.event_type())?;
        rules::version(self.event_version)?;
        rules::timestamp(self.timestamp)?;
        for (field, value) in [
            ("trace_id", self.trace_id()),
            ("correlation_id", self.correlation_id()),
            ("tenant_id", self.tenant_id()),
        ] {
            value.map_or(Ok(()), |value| rules::token(field, value))?;
        }
        rules::content_type(self.content_type())
    }

    fn check_headers(&self) -> Result<(), Broken> {
        for (name, value) in self.headers.iter() {
            if name.is_empty() {
                return Err(Broken::new("headers", "a name is empty"));
            }
            if formats::is_own(name) {
                return Err(Broken::new(
                    "headers",
                    format!("{name} is the envelope's own; set its field instead"),
                ));
            }
            if name == traceparent::NAME {
                traceparent::check(&String::from_utf8_lossy(value))?;
            }
        }
        Ok(())
    }
}
