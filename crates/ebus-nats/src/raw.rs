//! Messages one by one, whatever stands in their headers (G1, G9).
//!
//! async-nats ends its connection on headers that it cannot read, such as text that is not UTF-8, which publishers of other
//! make can send. A consumer gets such a message again and again, and nothing behind it. `STREAM.MSG.GET` brings headers as
//! base64 in JSON, so any message comes through, and what cannot be read of it is the handler's to judge. A request per message
//! is slow, so a feed reads so only where another one got nowhere ([`crate::consumer`]).

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::RawMessage;
use async_nats::{HeaderMap, HeaderName};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ebus_core::{Error, ErrorKind, Message, Timestamp};
use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::connection::Connection;
use crate::consumer::Fed;
use crate::{convert, error};

/// The error code of a message that there is not.
const NO_MESSAGE: u64 = 10_037;
/// So many messages without fault in a row, and a consumer reads on.
const CALM: u32 = 1_000;
/// Who sent one message of this kind may send more: members wait for those at the end of the partition for so long.
pub(crate) const LINGER: Duration = Duration::from_secs(30);
/// Between two looks at the end of the partition.
const PAUSE: Duration = Duration::from_millis(50);

/// Which message; serialized as the server wants it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Which {
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_by_subj: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_by_subj: Option<String>,
}

impl Which {
    /// The first one of these subjects from an offset on.
    pub(crate) fn next(filter: impl Into<String>, from: u64) -> Self {
        Self { seq: Some(from.max(1)), next_by_subj: Some(filter.into()), last_by_subj: None }
    }

    /// The last one of these subjects.
    pub(crate) fn last(filter: impl Into<String>) -> Self {
        Self { last_by_subj: Some(filter.into()), ..Self::default() }
    }
}

/// A message as the server has it.
pub(crate) struct Raw {
    pub(crate) subject: String,
    pub(crate) offset: u64,
    pub(crate) payload: Bytes,
    headers: Vec<u8>,
    stored: Timestamp,
}

#[derive(Deserialize)]
struct Answer {
    message: RawMessage,
}

/// Reads one message from the stream's leader; `None` where there is none.
///
/// # Errors
/// `Unavailable` or `Timeout`; inside, what the server says.
pub(crate) async fn get(
    connection: &Connection,
    stream: &str,
    which: &Which,
    operation: &'static str,
) -> Result<Result<Option<Raw>, jetstream::Error>, Error> {
    let subject = format!("STREAM.MSG.GET.{stream}");
    let RawMessage { subject, sequence, payload, headers, time } =
        match connection.api::<Answer>(subject, which, operation).await? {
            Ok(Answer { message }) => message,
            Err(why) if why.error_code().0 == NO_MESSAGE => return Ok(Ok(None)),
            Err(why) => return Ok(Err(why)),
        };
    let decoded = |text: String| {
        STANDARD.decode(text).map_err(|why| {
            Error::new(ErrorKind::Unexpected, "the server's answer cannot be read")
                .with_operation(operation)
                .with_source(why)
        })
    };
    let millis = i64::try_from(time.unix_timestamp_nanos().div_euclid(1_000_000)).unwrap_or(i64::MAX);
    Ok(Ok(Some(Raw {
        subject,
        offset: sequence,
        payload: decoded(payload)?.into(),
        headers: decoded(headers.unwrap_or_default())?,
        stored: Timestamp::from_millis(millis),
    })))
}

impl Raw {
    /// What can be read of the headers.
    pub(crate) fn headers(&self) -> HeaderMap {
        parse(&self.headers).0
    }

    /// The message, the headers as they are, and whether a consumer could have brought it.
    fn decode(self) -> (Message, HeaderMap, bool) {
        let (map, odd, legal) = parse(&self.headers);
        let mut message = convert::decode(Some(&map), self.payload, || self.stored);
        for (name, value) in odd {
            message.headers.append(name, value);
        }
        (message, map, legal)
    }
}

/// Names and values that async-nats could not give us, as they are.
type Odd = Vec<(String, Bytes)>;

/// What stands in the bytes of headers: what is legal, what is not, and whether async-nats can read all of it.
fn parse(bytes: &[u8]) -> (HeaderMap, Odd, bool) {
    let (mut map, mut odd) = (HeaderMap::new(), Odd::new());
    if bytes.is_empty() {
        return (map, odd, true);
    }
    let mut lines =
        bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).peekable();
    let legal = lines.next().is_some_and(|version| version.trim_ascii() == b"NATS/1.0");
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        let mut value = value.get(1..).unwrap_or_default().trim_ascii_start().to_vec();
        while let Some(more) = lines.next_if(|line| line.first().is_some_and(u8::is_ascii_whitespace)) {
            value.extend_from_slice(more);
        }
        let value = value.trim_ascii_end();
        let name = String::from_utf8_lossy(name);
        let text = std::str::from_utf8(value).ok().filter(|text| !text.contains('\r'));
        match (name.parse::<HeaderName>(), text) {
            (Ok(name), Some(text)) if colon.is_some() => map.append(name, text.trim()),
            _ => odd.push((name.into_owned(), Bytes::copy_from_slice(value))),
        }
    }
    let legal = legal && odd.is_empty();
    (map, odd, legal)
}

struct Reading {
    connection: Connection,
    stream: String,
    filter: String,
    next: u64,
    /// Messages without fault in a row.
    calm: u32,
    /// When the last one came that a consumer cannot bring.
    odd_at: Option<Instant>,
    linger: Duration,
}

/// The messages of a partition from an offset on, until a consumer may read on. At the end of the partition more are waited for
/// as long as one came that a consumer cannot bring within `linger`.
pub(crate) fn read(
    connection: Connection,
    stream: String,
    filter: String,
    from: u64,
    linger: Duration,
) -> impl Stream<Item = Result<Fed, Error>> + Send + 'static {
    let filter = if filter.is_empty() { ">".to_owned() } else { filter };
    let reading = Reading { connection, stream, filter, next: from, calm: 0, odd_at: None, linger };
    stream::unfold(Some(reading), |reading| async move {
        let mut reading = reading?;
        match reading.next().await {
            Ok(fed) => fed.map(|fed| (Ok(fed), Some(reading))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Fed>, Error> {
        const OPERATION: &str = "read the topic message by message";
        while self.calm < CALM {
            let which = Which::next(&*self.filter, self.next);
            let found = get(&self.connection, &self.stream, &which, OPERATION).await?;
            match found.map_err(|why| error::api(&why, OPERATION))? {
                Some(raw) => {
                    let offset = raw.offset;
                    let (message, headers, legal) = raw.decode();
                    self.next = offset + 1;
                    if legal {
                        self.calm += 1;
                    } else {
                        self.calm = 0;
                        self.odd_at = Some(Instant::now());
                        tracing::warn!(
                            stream = self.stream,
                            offset,
                            "a message has headers that are not legal; it is handed on with what can be read of them"
                        );
                    }
                    // How many follow is not said.
                    return Ok(Some(Fed { offset, message, headers: Some(headers), pending: u64::MAX }));
                }
                None if self.odd_at.is_some_and(|at| at.elapsed() < self.linger) => {
                    tokio::time::sleep(PAUSE).await;
                }
                None => break,
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(headers: &[u8]) -> (Message, bool) {
        let payload = Bytes::from_static(b"x");
        let stored = Timestamp::from_millis(7);
        let raw = Raw { subject: "t.0".into(), offset: 1, payload, headers: headers.to_vec(), stored };
        let (message, _, legal) = raw.decode();
        (message, legal)
    }

    fn list(message: &Message) -> Vec<(&str, &[u8])> {
        message.headers.iter().map(|(name, value)| (name, &value[..])).collect()
    }

    #[test]
    fn legal_headers_are_read_as_a_consumer_reads_them() {
        let (message, legal) = decode(b"NATS/1.0\r\nEbus: 42 k\r\nA: one\r\nA:  two \r\n\r\n");
        assert!(legal);
        assert_eq!((message.timestamp, message.key), (Timestamp::from_millis(42), Some("k".into())));
        assert_eq!(
            message.headers.iter().map(|(_, value)| &value[..]).collect::<Vec<_>>(),
            [&b"one"[..], b"two"]
        );
        assert!(decode(b"").1);
    }

    #[test]
    fn what_is_not_legal_keeps_its_bytes() {
        let (message, legal) =
            decode(b"NATS/1.0\r\nEbus-Key: k\r\nA: one\r\nBad: \xff\xfe\r\n\xfeB: 1\r\n\r\n");
        assert!(!legal);
        assert_eq!((message.timestamp, &message.key), (Timestamp::from_millis(7), &Some("k".into())));
        let bad: [(&str, &[u8]); 3] = [("A", b"one"), ("Bad", b"\xff\xfe"), ("\u{fffd}B", b"1")];
        assert_eq!(list(&message), bad);
    }

    #[test]
    fn everything_that_ends_a_connection_is_seen() {
        let ends: [&[u8]; 6] = [
            b"HTTP/1.1\r\nA: 1\r\n\r\n",
            b"NATS/1.0 abc\r\n\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"NATS/1.0\r\na name: 1\r\n\r\n",
            b"NATS/1.0\r\nA: one\rtwo\r\n\r\n",
            b"\xff",
        ];
        for headers in ends {
            assert!(!decode(headers).1, "{}", String::from_utf8_lossy(headers));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(decode(&bytes).0.payload, &b"x"[..]);
        }

        #[test]
        fn what_is_said_to_be_legal_loses_nothing(names in prop::collection::vec("[!-9;-~]{1,8}", 1..5)) {
            let lines: String = names.iter().map(|name| format!("{name}: v\r\n")).collect();
            let (map, odd, legal) = parse(format!("NATS/1.0\r\n{lines}\r\n").as_bytes());
            prop_assert!(legal && odd.is_empty());
            prop_assert_eq!(map.iter().map(|(_, values)| values.len()).sum::<usize>(), names.len());
        }
    }
}
