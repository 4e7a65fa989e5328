//! Names of headers and content types on the wire.

/// Header of the event's id; what has it is an envelope in the format `headers`.
pub const EVENT_ID: &str = "X-Event-ID";
/// Header of the aggregate id.
pub const AGGREGATE_ID: &str = "X-Aggregate-ID";
/// Header of the event's type.
pub const EVENT_TYPE: &str = "X-Event-Type";
/// Header of the version of the payload's form.
pub const EVENT_VERSION: &str = "X-Event-Version";
/// Header of the trace's id.
pub const TRACE_ID: &str = "X-Trace-ID";
/// Header of the correlation id.
pub const CORRELATION_ID: &str = "X-Correlation-ID";
/// Header of the tenant's id.
pub const TENANT_ID: &str = "X-Tenant-ID";
/// Header of the content type: of the payload in the format `headers`, [`JSON_ENVELOPE`] in the format `json`.
pub const CONTENT_TYPE: &str = "Content-Type";
/// Content type of an envelope in the format `json`.
pub const JSON_ENVELOPE: &str = "application/vnd.ebus.envelope+json";

pub(crate) const ALL: [&str; 8] =
    [EVENT_ID, AGGREGATE_ID, EVENT_TYPE, EVENT_VERSION, TRACE_ID, CORRELATION_ID, TENANT_ID, CONTENT_TYPE];
