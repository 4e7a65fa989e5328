//! One error for the whole library (G8, G9): what happened, where, what to do, and whether trying again is safe.

use std::fmt;
use std::sync::Arc;

/// Any error, boxed: what Tower layers hand on.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting, name or field is not valid; the message names it and its rule.
    ConfigInvalid,
    /// The backend cannot do this; the message names what is missing.
    Unsupported,
    /// The broker cannot be reached.
    Unavailable,
    /// No answer in time. For a publish: it may have been stored.
    Timeout,
    /// A limit of this process is reached.
    Overloaded,
    /// A message is larger than the limit.
    TooLarge,
    /// A topic, group or record does not exist.
    NotFound,
    /// The broker refused the credentials or the permission.
    Denied,
    /// Somebody else owns what this call needs; a newer owner exists.
    Fenced,
    /// Bytes do not have the form that they should have.
    Decode,
    /// A handler failed.
    Handler,
    /// The object was closed before.
    Closed,
    /// None of the above; the source says more.
    Unexpected,
}

impl ErrorKind {
    /// The kind as it is written in logs, metrics and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConfigInvalid => "config_invalid",
            Self::Unsupported => "unsupported",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::TooLarge => "too_large",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Fenced => "fenced",
            Self::Decode => "decode",
            Self::Handler => "handler",
            Self::Closed => "closed",
            Self::Unexpected => "unexpected",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the same call may be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Retryability {
    /// Trying again cannot help, or could lose or reorder.
    Never,
    /// Trying again may duplicate, and never loses or reorders.
    Safe,
    /// It was safe, and was tried as often as allowed.
    Exhausted,
}

/// The error of every call in ebus.
///
/// One word on the stack. Cheap to clone, so that many callers can be told of one failure.
#[derive(Clone)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    retryability: Retryability,
    operation: &'static str,
    message: String,
    context: Vec<(&'static str, String)>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Drop for Inner {
    /// The source is somebody else's, and an error is dropped where that may not be felt.
    fn drop(&mut self) {
        let source = self.source.take();
        let _ = guarded(|| drop(source));
    }
}

/// Calls code of somebody else's error. What panics there is no reason to end who only wants to say what failed (G9).
fn guarded<T>(call: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).ok()
}

fn text_of(error: &(dyn std::error::Error + 'static)) -> String {
    guarded(|| error.to_string()).unwrap_or_else(|| "an error whose text panicked".to_owned())
}

fn below<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a (dyn std::error::Error + 'static)> {
    guarded(|| error.source()).flatten()
}

impl Error {
    /// An error of `kind`; `message` is lower case, has no full stop, and says what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let retryability = match kind {
            ErrorKind::Overloaded => Retryability::Safe,
            _ => Retryability::Never,
        };
        Self {
            inner: Box::new(Inner {
                kind,
                retryability,
                operation: "",
                message: message.into(),
                context: Vec::new(),
                source: None,
            }),
        }
    }

    /// What `operation` found closed.
    pub fn closed(operation: &'static str) -> Self {
        Self::new(ErrorKind::Closed, "it was closed before; open a new one").with_operation(operation)
    }

    /// Names the operation that failed, such as `publish`.
    #[must_use]
    pub fn with_operation(mut self, operation: &'static str) -> Self {
        self.inner.operation = operation;
        self
    }

    /// Adds where it happened, such as `("topic", "orders")`. Never a secret.
    #[must_use]
    pub fn with_context(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.inner.context.push((name, value.to_string()));
        self
    }

    /// Adds the error below this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.inner.source = Some(Arc::from(source.into()));
        self
    }

    /// Says whether the same call may be made again.
    #[must_use]
    pub fn with_retryability(mut self, retryability: Retryability) -> Self {
        self.inner.retryability = retryability;
        self
    }

    /// What went wrong, in one word.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Whether the same call may be made again.
    pub fn retryability(&self) -> Retryability {
        self.inner.retryability
    }

    /// The operation that failed; empty when it was not named.
    pub fn operation(&self) -> &'static str {
        self.inner.operation
    }

    /// What happened and what to do, without context and sources.
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// Where it happened.
    pub fn context(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.inner.context.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// Finds the ebus error again that a Tower layer boxed; any other error becomes `Unexpected`.
    ///
    /// An error that only wraps an ebus error keeps its kind and retryability.
    pub fn from_boxed(error: BoxError) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => *own,
            Err(other) => {
                let text = text_of(other.as_ref());
                let own = sources(other.as_ref()).find_map(|source| source.downcast_ref::<Self>());
                let found = match own {
                    Some(own) => Self::new(own.kind(), text)
                        .with_retryability(own.retryability())
                        .with_operation(own.operation()),
                    None => Self::new(ErrorKind::Unexpected, text),
                };
                found.with_source(other)
            }
        }
    }

    /// The message and those of all sources, outermost first, joined by `: `. A source whose text panics is named as such.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        for source in self.sources() {
            let next = text_of(source);
            if !text.ends_with(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
        }
        text
    }

    /// All errors below this one, outermost first; a source that panics when it is asked for its own ends them.
    pub fn sources(&self) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
        sources(self)
    }
}

fn sources<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(below(error), |error| below(*error))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.inner.operation.is_empty() {
            write!(f, "{}: ", self.inner.operation)?;
        }
        f.write_str(&self.inner.message)?;
        for (i, (name, value)) in self.inner.context.iter().enumerate() {
            write!(f, "{}{name}={value}", if i == 0 { " (" } else { ", " })?;
        }
        if !self.inner.context.is_empty() {
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.inner.kind)
            .field("retryability", &self.inner.retryability)
            .field("operation", &self.inner.operation)
            .field("message", &self.inner.message)
            .field("context", &self.inner.context)
            .field("source", &self.inner.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

impl From<BoxError> for Error {
    fn from(error: BoxError) -> Self {
        Self::from_boxed(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_one_word() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }

    #[test]
    fn is_found_again_inside_a_box() {
        let own = Error::new(ErrorKind::TooLarge, "too large").with_retryability(Retryability::Exhausted);
        let found = Error::from_boxed(Box::new(own));
        assert_eq!(found.kind(), ErrorKind::TooLarge);
        assert_eq!(found.retryability(), Retryability::Exhausted);
    }

    #[test]
    fn is_found_again_below_a_foreign_error() {
        #[derive(Debug)]
        struct Foreign(Error);
        impl fmt::Display for Foreign {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("foreign")
            }
        }
        impl std::error::Error for Foreign {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let found = Error::from_boxed(Box::new(Foreign(Error::new(ErrorKind::Denied, "no"))));
        assert_eq!(found.kind(), ErrorKind::Denied);
    }

    /// Nothing of it can be called.
    #[derive(Debug)]
    struct Broken;
    impl fmt::Display for Broken {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("no words")
        }
    }
    impl std::error::Error for Broken {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            panic!("no source")
        }
    }
    impl Drop for Broken {
        fn drop(&mut self) {
            panic!("no end")
        }
    }

    #[test]
    fn p9_a_source_that_panics_is_named_as_such() {
        let boxed = Error::from_boxed(Box::new(Broken));
        assert_eq!(boxed.kind(), ErrorKind::Unexpected);
        let error = Error::new(ErrorKind::Handler, "failed").with_source(Broken);
        assert_eq!(error.chain(), "failed: an error whose text panicked");
        assert_eq!(error.sources().count(), 1);
    }

    #[test]
    fn says_where() {
        let error = Error::new(ErrorKind::NotFound, "no such topic; create it first")
            .with_operation("publish")
            .with_context("topic", "orders");
        assert_eq!(error.to_string(), "publish: no such topic; create it first (topic=orders)");
    }
}
