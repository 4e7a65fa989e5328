//! Message keys: what order is kept for.

use std::fmt;

use bytes::Bytes;

/// The key of a message: messages of one key and topic are handled in order, one at a time. Cheap to clone.
///
/// Any bytes are a key, the empty ones too. A message without a key has no order.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Bytes);

impl Key {
    /// A key of these bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, without a copy.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// The key as text, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self(Bytes::from(text))
    }
}

impl From<Bytes> for Key {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl From<Vec<u8>> for Key {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Bytes::from(bytes))
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_str() {
            Some(text) => f.write_str(text),
            None => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p2_a_key_is_its_bytes_however_it_was_made() {
        let bytes = Bytes::from_static(b"order-42");
        let keys = [
            Key::from("order-42"),
            "order-42".to_owned().into(),
            bytes.clone().into(),
            bytes.to_vec().into(),
        ];
        for key in keys {
            assert_eq!(key, Key::new(bytes.clone()));
            assert_eq!(
                (key.as_bytes(), key.as_ref(), key.as_str()),
                (&b"order-42"[..], &b"order-42"[..], Some("order-42"))
            );
            assert_eq!(key.into_bytes(), bytes);
        }
        assert_eq!(Key::new(&[0xff][..]).as_str(), None);
    }
}
