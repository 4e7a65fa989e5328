//! The server's answer to a publish: a message or a record that is stored, or why it is not.

use std::borrow::Cow;

use async_nats::StatusCode;
use serde::Deserialize;

/// What the server said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ack {
    Stored {
        sequence: u64,
        duplicate: bool,
    },
    /// Nothing was stored.
    Refused {
        code: u64,
        status: u64,
        description: String,
    },
    /// No stream listens to the subject; nothing was stored.
    NobodyListens,
    /// Not the answer of a stream.
    Unreadable(String),
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow, default)]
    stream: Cow<'a, str>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    #[serde(borrow)]
    error: Option<WireError<'a>>,
}

#[derive(Deserialize)]
struct WireError<'a> {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(borrow, default)]
    description: Cow<'a, str>,
}

impl Ack {
    /// The answer of any stream.
    pub(crate) fn read(message: &async_nats::Message) -> Self {
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Self::NobodyListens;
        }
        Self::parse(&message.payload, None).unwrap_or_else(Self::Unreadable)
    }

    /// The answer to a message for this stream.
    ///
    /// # Errors
    /// The name of another stream, which has stored it.
    pub(crate) fn read_of(message: &async_nats::Message, stream: &str) -> Result<Self, String> {
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Ok(Self::NobodyListens);
        }
        Self::parse(&message.payload, Some(stream))
    }

    fn parse(payload: &[u8], expected: Option<&str>) -> Result<Self, String> {
        Ok(match serde_json::from_slice::<Wire<'_>>(payload) {
            Ok(Wire { error: Some(error), .. }) => Self::Refused {
                code: error.err_code,
                status: error.code,
                description: error.description.into_owned(),
            },
            Ok(Wire { seq: 0, .. }) => Self::Unreadable("an acknowledgement without a sequence".into()),
            Ok(Wire { stream, .. }) if expected.is_some_and(|name| name != stream) => {
                return Err(stream.into_owned());
            }
            Ok(Wire { seq, duplicate, .. }) => Self::Stored { sequence: seq, duplicate },
            Err(why) => Self::Unreadable(why.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_told_apart() {
        let stored = |sequence, duplicate| Ack::Stored { sequence, duplicate };
        let parse = |payload: &[u8]| Ack::parse(payload, Some("s")).expect("of this stream");
        assert_eq!(parse(br#"{"stream":"s","seq":7}"#), stored(7, false));
        assert_eq!(parse(br#"{"stream":"s","domain":"d","seq":7,"duplicate":true}"#), stored(7, true));
        assert_eq!(Ack::parse(br#"{"stream":"t","seq":7}"#, Some("s")), Err("t".into()));
        assert_eq!(Ack::parse(br#"{"stream":"t","seq":7}"#, None), Ok(stored(7, false)));
        let refused = parse(
            br#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: \"3\""},"stream":"s","seq":0}"#,
        );
        assert_eq!(
            refused,
            Ack::Refused { code: 10071, status: 400, description: "wrong last sequence: \"3\"".into() }
        );
        assert!(matches!(parse(b"+OK"), Ack::Unreadable(_)));
        assert!(matches!(parse(br#"{"stream":"s"}"#), Ack::Unreadable(_)));
    }
}
