//! Text that shares the message's bytes: a decoded envelope copies no field.

use std::fmt;

use bytes::Bytes;

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Text(Bytes);

impl Text {
    /// `None` when the bytes are not UTF-8.
    #[cfg(feature = "headers")]
    pub(crate) fn new(bytes: Bytes) -> Option<Self> {
        std::str::from_utf8(&bytes).is_ok().then_some(Self(bytes))
    }

    /// `text` and `bytes` are the same: known to be UTF-8 by whoever read them.
    #[cfg(feature = "json")]
    pub(crate) fn of(bytes: Bytes, text: &str) -> Self {
        debug_assert_eq!(bytes, text);
        Self(bytes)
    }

    #[cfg(feature = "headers")]
    pub(crate) fn from_static(text: &'static str) -> Self {
        Self(Bytes::from_static(text.as_bytes()))
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("the bytes were UTF-8 when the text was made, and never change")
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}
