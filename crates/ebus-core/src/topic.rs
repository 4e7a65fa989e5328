//! Topic names, validated once (a03): what is legal here is legal on every backend.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use crate::{Error, ErrorKind};

/// The longest topic name in bytes. Kafka allows 249; the rest is room for what a backend adds to make a stream
/// or a subject of it.
const MAX_LEN: usize = 200;

/// The name of a topic. Cheap to clone.
///
/// Legal are 1 to 200 bytes of `[A-Za-z0-9._-]` that neither begin nor end with a dot and have no two dots in a row:
/// what Kafka takes as a topic and NATS as a subject.
///
/// ```
/// use ebus_core::Topic;
///
/// assert_eq!(Topic::new("orders.eu")?.as_str(), "orders.eu");
/// assert!(Topic::new("orders eu").is_err());
/// # Ok::<(), ebus_core::Error>(())
/// ```
#[derive(Clone, Eq, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Takes a name if it is legal.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the rule.
    pub fn new(name: impl AsRef<str>) -> Result<Self, Error> {
        let name = name.as_ref();
        match broken_rule(name) {
            None => Ok(Self(name.into())),
            Some(rule) => Err(Error::new(ErrorKind::ConfigInvalid, format!("illegal topic name: {rule}"))
                .with_context("topic", format_args!("{name:?}"))),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The rule that names of topics and groups share, if `name` breaks it.
pub(crate) fn broken_rule(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("it is empty; give at least one character".into());
    }
    if name.len() > MAX_LEN {
        return Some(format!("it has {} bytes; at most {MAX_LEN} are allowed", name.len()));
    }
    if let Some(illegal) =
        name.chars().find(|c| !matches!(c, 'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '_' | '-'))
    {
        return Some(format!("{illegal:?} is not allowed; use letters, digits, '.', '_' and '-'"));
    }
    if name.starts_with('.') || name.ends_with('.') || name.contains("..") {
        return Some("a dot must stand between two other characters".into());
    }
    None
}

impl PartialEq for Topic {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Hash for Topic {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl std::borrow::Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Topic {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for Topic {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self, Error> {
        Self::new(name)
    }
}

impl TryFrom<&str> for Topic {
    type Error = Error;
    fn try_from(name: &str) -> Result<Self, Error> {
        Self::new(name)
    }
}

impl TryFrom<String> for Topic {
    type Error = Error;
    fn try_from(name: String) -> Result<Self, Error> {
        Self::new(name)
    }
}

impl TryFrom<&Topic> for Topic {
    type Error = Error;
    fn try_from(topic: &Topic) -> Result<Self, Error> {
        Ok(topic.clone())
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legal_names_are_taken() {
        for name in ["a", "orders", "orders.dlq", "A-b_c.9", &"x".repeat(200)] {
            assert_eq!(Topic::new(name).map(|t| t.to_string()).ok().as_deref(), Some(name));
        }
    }

    #[test]
    fn illegal_names_are_refused_by_rule() {
        for (name, rule) in [
            ("", "empty"),
            (".", "dot"),
            ("..", "dot"),
            ("a..b", "dot"),
            ("a.", "dot"),
            ("a b", "' '"),
            ("a*", "'*'"),
            ("a>", "'>'"),
            ("ü", "'ü'"),
            (&"x".repeat(201), "201 bytes"),
        ] {
            let error = Topic::new(name).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
            assert!(error.to_string().contains(rule), "{error}");
        }
    }
}
