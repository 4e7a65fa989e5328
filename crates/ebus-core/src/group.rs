//! Names of consumer groups.

use std::fmt;
use std::sync::Arc;

use crate::topic::broken_rule;
use crate::{Error, ErrorKind};

/// The name of a group: consumers that share the work. Cheap to clone; the rules are those of a [`Topic`](crate::Topic).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group(Arc<str>);

impl Group {
    /// Takes a name if it is legal.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the rule.
    pub fn new(name: impl AsRef<str>) -> Result<Self, Error> {
        let name = name.as_ref();
        match broken_rule(name) {
            None => Ok(Self(name.into())),
            Some(rule) => Err(Error::new(ErrorKind::ConfigInvalid, format!("illegal group name: {rule}"))
                .with_context("group", format_args!("{name:?}"))),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
