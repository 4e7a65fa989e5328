//! What can go wrong with a broker: it is not there, or it did not do what it was told.

use std::{fmt, io, path::Path};

/// Why a broker cannot be had, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missing {
    /// What is not there.
    pub reason: String,
    /// The command that puts it there.
    pub command: String,
}

impl Missing {
    /// Says what is missing and which command installs it.
    pub fn new(reason: impl Into<String>, command: impl Into<String>) -> Self {
        Self { reason: reason.into(), command: command.into() }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; run `{}`", self.reason, self.command)
    }
}

impl std::error::Error for Missing {}

/// An error of provisioning or launching a broker.
#[derive(Debug)]
#[non_exhaustive]
pub enum BrokerError {
    /// Something that the broker needs is not installed on this machine.
    Unavailable(Missing),
    /// An operation on a broker failed.
    Failed {
        /// What was being done, to which server or file.
        what: String,
        /// What went wrong, with the end of the log where there is one.
        why: String,
    },
}

impl BrokerError {
    pub(crate) fn failed(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::Failed { what: what.into(), why: why.to_string() }
    }

    /// For `map_err` on file operations: names the file.
    pub(crate) fn io(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let what = format!("{verb} {}", path.display());
        move |error| Self::failed(what, error)
    }
}

impl fmt::Display for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(missing) => missing.fmt(f),
            Self::Failed { what, why } => write!(f, "could not {what}: {why}"),
        }
    }
}

impl std::error::Error for BrokerError {}

impl From<Missing> for BrokerError {
    fn from(missing: Missing) -> Self {
        Self::Unavailable(missing)
    }
}
