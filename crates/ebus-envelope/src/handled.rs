//! What a handler's function returns, and what becomes of it: a failure is retried by the policy unless the function says that
//! it is permanent (c01, c04).

use std::fmt;
use std::time::Duration;

use ebus_core::{BoxError, Error, ErrorKind, Outcome};

/// What the function of a handler returns: `Ok(())` is [`Outcome::Ack`].
pub type Handled = Result<(), HandlerError>;

/// Why a handler failed, and whether another attempt is worth it.
///
/// Made by `?` from any `std::error::Error`; such a failure is retried by the policy. It is not an error itself (as
/// `anyhow::Error` is not), which is what makes `?` possible. A boxed error and plain text go through
/// [`retry`](Self::retry) and [`permanent`](Self::permanent).
///
/// ```
/// use std::time::Duration;
/// use ebus_envelope::{Handled, HandlerError};
///
/// fn stock(wanted: &str) -> Handled {
///     let wanted: u32 = wanted.parse().map_err(HandlerError::permanent)?; // to the dead letters at once
///     std::fs::read("stock.txt")?; // retried by the policy
///     if wanted > 3 {
///         return Err(HandlerError::retry("the shelf is being filled").retry_after(Duration::from_secs(60)));
///     }
///     Ok(())
/// }
/// ```
pub struct HandlerError {
    error: Error,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Retry(Option<Duration>),
    Permanent,
}

impl HandlerError {
    /// Worth another attempt, when the policy says so.
    pub fn retry(error: impl Into<BoxError>) -> Self {
        Self { error: own(error.into()), verdict: Verdict::Retry(None) }
    }

    /// Not worth another attempt: the message goes to the dead letters.
    pub fn permanent(error: impl Into<BoxError>) -> Self {
        Self { error: own(error.into()), verdict: Verdict::Permanent }
    }

    /// Worth another attempt, and after this long instead of the policy's delay; also if it was permanent before.
    ///
    /// Whether there is another attempt is the policy's to say all the same: its `decide` and `give_up_on` are asked first, and its
    /// `max_attempts` and `max_elapsed` hold, for a delay of the handler's own too.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.verdict = Verdict::Retry(Some(after));
        self
    }

    /// Whether another attempt is not worth it.
    pub fn is_permanent(&self) -> bool {
        self.verdict == Verdict::Permanent
    }

    /// What went wrong.
    pub fn error(&self) -> &Error {
        &self.error
    }
}

/// An error of ebus stays what it is; any other is a handler's failure with itself as the source.
fn own(error: BoxError) -> Error {
    match error.downcast::<Error>() {
        Ok(own) => *own,
        Err(other) => Error::new(ErrorKind::Handler, other.to_string()).with_source(other),
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::retry(error)
    }
}

impl From<HandlerError> for Outcome {
    fn from(failed: HandlerError) -> Self {
        match failed.verdict {
            Verdict::Retry(after) => Self::Retry { after, error: failed.error },
            Verdict::Permanent => Self::Reject { error: failed.error },
        }
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError").field("verdict", &self.verdict).field("error", &self.error).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Handled {
        String::from_utf8(vec![255])?;
        Ok(())
    }

    #[test]
    fn a_question_mark_is_a_retry_by_the_policy() {
        let Outcome::Retry { after: None, error } = asked().expect_err("not UTF-8").into() else {
            panic!("not a retry")
        };
        assert_eq!(error.kind(), ErrorKind::Handler);
        assert!(std::error::Error::source(&error).is_some_and(|s| s.is::<std::string::FromUtf8Error>()));
    }

    #[test]
    fn permanent_is_a_reject_and_retry_after_says_when() {
        assert!(matches!(HandlerError::permanent("no such order").into(), Outcome::Reject { .. }));
        let wait = Duration::from_secs(3);
        let Outcome::Retry { after, .. } = HandlerError::permanent("not yet").retry_after(wait).into() else {
            panic!("not a retry")
        };
        assert_eq!(after, Some(wait));
    }

    #[test]
    fn an_error_of_ebus_keeps_its_kind() {
        let failed = HandlerError::from(Error::new(ErrorKind::Unavailable, "no broker"));
        assert_eq!(failed.error().kind(), ErrorKind::Unavailable);
    }
}
