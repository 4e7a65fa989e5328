//! The identity of an event, by which its copies are recognised.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// A UUID of version 7: unique, and sorted by the time at which it was made. Written in lower case with hyphens.
///
/// ```
/// use ebus_envelope::EventId;
///
/// let first = EventId::now();
/// assert!(first < EventId::now());
/// assert_eq!(first.to_string().parse::<EventId>().ok(), Some(first));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(Uuid);

impl EventId {
    /// A new one; later ones of this process sort after it.
    pub fn now() -> Self {
        Self(Uuid::now_v7())
    }

    /// From its 128 bits, if they are a UUID of version 7.
    pub fn from_u128(bits: u128) -> Option<Self> {
        Self::checked(Uuid::from_u128(bits)).ok()
    }

    /// Its 128 bits.
    pub fn as_u128(self) -> u128 {
        self.0.as_u128()
    }

    /// From its text; the error is the rule that it breaks.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        // The crate also takes braces, a URN and no hyphens; one event must not have four spellings.
        if text.len() != 36 {
            return Err("it must be a UUID of 36 characters with hyphens".into());
        }
        Self::checked(Uuid::try_parse(text).map_err(|error| format!("it is no UUID: {error}"))?)
    }

    fn checked(id: Uuid) -> Result<Self, String> {
        match (id.get_variant(), id.get_version_num()) {
            (uuid::Variant::RFC4122, 7) => Ok(Self(id)),
            (uuid::Variant::RFC4122, version) => {
                Err(format!("it is a UUID of version {version}; use version 7"))
            }
            _ => Err("it is a UUID of another variant; use version 7 of RFC 9562".into()),
        }
    }
}

impl FromStr for EventId {
    type Err = ebus_core::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text).map_err(|rule| {
            crate::rules::Broken::new("event_id", rule).into_error(ebus_core::ErrorKind::ConfigInvalid)
        })
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
