//! What travels in a topic.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::{Headers, Key};

/// A point in time in milliseconds since 1970-01-01 UTC: what every broker stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The system's clock.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// From milliseconds since 1970-01-01 UTC.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since 1970-01-01 UTC.
    pub const fn as_millis(self) -> i64 {
        self.0
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |millis| -millis),
        })
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        let distance = Duration::from_millis(time.0.unsigned_abs());
        if time.0 >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
    }
}

/// A message: key, headers, payload and timestamp. Cheap to clone.
///
/// The topic stands beside it, in [`Publish`](crate::Publish) and [`Delivery`](crate::Delivery): all messages of a
/// partition share it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// What order is kept for; `None` has no order.
    pub key: Option<Key>,
    /// In the order in which they were added.
    pub headers: Headers,
    /// The body, never looked into.
    pub payload: Bytes,
    /// When it was made, in milliseconds.
    pub timestamp: Timestamp,
}

impl Message {
    /// A message without key and headers, made now.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self::made_at(Timestamp::now(), payload)
    }

    /// A message without key and headers, made at `timestamp`: reads no clock.
    pub fn made_at(timestamp: Timestamp, payload: impl Into<Bytes>) -> Self {
        Self { key: None, headers: Headers::new(), payload: payload.into(), timestamp }
    }

    /// With this key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Key>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With this key, or none.
    #[inline]
    #[must_use]
    pub fn with_optional_key(mut self, key: Option<Key>) -> Self {
        self.key = key;
        self
    }

    /// With one header more.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.append(name, value);
        self
    }

    /// With these headers instead of its own.
    #[must_use]
    pub fn with_headers(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }

    /// With this timestamp.
    #[must_use]
    pub fn with_timestamp(mut self, timestamp: impl Into<Timestamp>) -> Self {
        self.timestamp = timestamp.into();
        self
    }

    /// Bytes of key, headers and payload: what the budget of the pool counts.
    #[inline]
    pub fn byte_len(&self) -> usize {
        self.key.as_ref().map_or(0, |key| key.as_bytes().len()) + self.headers.byte_len() + self.payload.len()
    }
}
