//! What async-nats and the server say, as errors of ebus (G8, G9).

use std::fmt::Display;

use async_nats::jetstream::ErrorCode;
use async_nats::{ConnectError, ConnectErrorKind};
use ebus_core::{Error, ErrorKind, Topic};

/// What a code of the JetStream API (or, where it is not known, its status) means.
fn meaning(code: u64, status: u64) -> (ErrorKind, &'static str) {
    match code {
        10059 => (ErrorKind::NotFound, "no such stream; create the topic first"),
        10014 => (ErrorKind::NotFound, "no such consumer"),
        10037 => (ErrorKind::NotFound, "no such message"),
        10039 | 10076 => {
            (ErrorKind::Unsupported, "JetStream is not enabled for this account; enable it on the server")
        }
        10054 => (
            ErrorKind::TooLarge,
            "the message is larger than the stream allows; raise its max_msg_size or split it",
        ),
        10058 => (ErrorKind::ConfigInvalid, "a stream of this name exists with other settings"),
        10065 => {
            (ErrorKind::ConfigInvalid, "another stream has these subjects already; choose another topic name")
        }
        10060 => (
            ErrorKind::Unexpected,
            "the subject belongs to another stream than the topic's; nothing was stored",
        ),
        10071 => (ErrorKind::Fenced, "somebody else has written the record"),
        10074 => (ErrorKind::Unsupported, "replicas need a cluster; the server runs alone"),
        10005 => (ErrorKind::Unsupported, "the cluster has not enough nodes for this many replicas"),
        10002 | 10023 | 10047 | 10077 | 10122 => {
            (ErrorKind::Overloaded, "the server refused to store more; raise its limits or the stream's")
        }
        10205..=10208 | 10211 => (
            ErrorKind::Unavailable,
            "the server did not take the message as one of a batch; nothing was stored",
        ),
        10158 => (
            ErrorKind::Timeout,
            "a message of this id is on its way to the stream's replicas, and may be stored",
        ),
        10084 => (
            ErrorKind::Unsupported,
            "a stream with work-queue retention cannot be read by partition; use limits",
        ),
        10003 => (ErrorKind::Unexpected, "the server does not understand the request; it may be too old"),
        10004 | 10008 | 10009 => {
            (ErrorKind::Unavailable, "JetStream does not answer for this stream now; try again")
        }
        _ => match status {
            503 => (ErrorKind::Unavailable, "JetStream does not answer now; try again"),
            404 => (ErrorKind::NotFound, "it does not exist"),
            _ => (ErrorKind::Unexpected, "the server refused the request"),
        },
    }
}

/// An error of the JetStream API.
pub(crate) fn api(error: &async_nats::jetstream::Error, operation: &'static str) -> Error {
    let (kind, hint) = meaning(error.error_code().0, error.code() as u64);
    Error::new(kind, hint).with_operation(operation).with_source(error.clone())
}

/// A publish that the server refused: nothing was stored.
pub(crate) fn refused(code: u64, status: u64, description: &str, operation: &'static str) -> Error {
    let (kind, hint) = meaning(code, status);
    Error::new(kind, hint)
        .with_operation(operation)
        .with_context("server", format_args!("{description:?}"))
        .with_context("code", code)
}

/// Whether this is "no such stream".
pub(crate) fn is_no_stream(code: ErrorCode) -> bool {
    code == ErrorCode::STREAM_NOT_FOUND
}

/// A connection that could not be made. `servers` has no secrets in it.
pub(crate) fn connect(error: ConnectError, servers: &str, tls: bool) -> Error {
    let (kind, message) = match error.kind() {
        ConnectErrorKind::Io if tls && is_not_tls(&error) => (
            ErrorKind::Denied,
            "TLS failed; the server does not speak TLS on this port, or only another version",
        ),
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => (
            ErrorKind::Denied,
            "the server refused the credentials; check user, token, nkey or credentials file",
        ),
        ConnectErrorKind::ServerParse => {
            (ErrorKind::ConfigInvalid, "a server address cannot be read; use nats://host:port")
        }
        ConnectErrorKind::TimedOut => {
            (ErrorKind::Unavailable, "no server answered in time; check address and network")
        }
        ConnectErrorKind::Tls => (
            ErrorKind::Denied,
            "TLS failed; check the root certificates, the client certificate and the server's name",
        ),
        ConnectErrorKind::Dns => {
            (ErrorKind::Unavailable, "the server's name cannot be resolved; check the address")
        }
        _ => (ErrorKind::Unavailable, "no server can be reached; check address and network"),
    };
    Error::new(kind, message).with_operation("connect").with_context("servers", servers).with_source(error)
}

/// Whether bytes came that are not TLS, or a certificate that is not trusted: rustls reports both as invalid data.
fn is_not_tls(error: &ConnectError) -> bool {
    let below = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    below.is_some_and(|why| why.kind() == std::io::ErrorKind::InvalidData)
}

/// A topic that does not exist.
pub(crate) fn no_topic(topic: &Topic, operation: &'static str) -> Error {
    Error::new(ErrorKind::NotFound, "no such topic; create it first, or set the policy for missing topics")
        .with_operation(operation)
        .with_context("topic", topic)
}

/// No answer in time, to a call that changes nothing or that may have been done.
pub(crate) fn timeout(operation: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, "the server did not answer in time").with_operation(operation)
}

/// The server is not there.
pub(crate) fn unavailable(operation: &'static str, why: impl Display) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the server cannot be reached: {why}"))
        .with_operation(operation)
}

/// What the server does not allow to publish, or to ask.
pub(crate) fn denied(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Denied,
        "the server does not allow this to the user of the connection; its log and ours name the subject, and the \
         documentation of ebus-nats the permissions that are needed",
    )
    .with_operation(operation)
}

/// What ended before it could be given up in order.
pub(crate) fn lost() -> Error {
    Error::new(ErrorKind::Fenced, "a partition was lost before its last commit was accepted")
        .with_operation("close")
}
