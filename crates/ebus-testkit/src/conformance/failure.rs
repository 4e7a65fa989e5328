//! Why a case failed.

use std::fmt;

/// Why a case failed. Any error becomes one by `?`.
pub(super) struct Failure(String);

pub(super) type Checked<T = ()> = Result<T, Failure>;

impl Failure {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut below = error.source();
        while let Some(source) = below {
            text.push_str(": ");
            text.push_str(&source.to_string());
            below = source.source();
        }
        Self(text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
