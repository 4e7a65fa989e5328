//! The errors of tower's own layers as errors of ebus: they box what is below them.
//!
//! A function and not a layer, because tower has the layer already: `ServiceBuilder::map_err`, `ServiceExt::map_err`.

use ebus_core::{BoxError, Error, ErrorKind};
use tower::load_shed::error::Overloaded;
use tower::timeout::error::Elapsed;

/// Finds the ebus error in what a stack of tower layers gave.
///
/// - An ebus error stays what it is, also below others: [`Error::from_boxed`].
/// - `Timeout`'s `Elapsed` is `Timeout`. A publish may have been stored; it is not safe to send again.
/// - `LoadShed`'s `Overloaded` is `Overloaded`: nothing was sent, sending again is safe.
/// - Anything else is `Unexpected` with itself as the source.
///
/// See the [crate's documentation](crate) for its place in a stack.
pub fn from_tower<E: Into<BoxError>>(error: E) -> Error {
    let error = error.into();
    if holds::<Elapsed>(&*error) {
        return Error::new(
            ErrorKind::Timeout,
            "no answer within the timeout; if it was a publish, it may have been stored",
        )
        .with_source(error);
    }
    if holds::<Overloaded>(&*error) {
        return Error::new(
            ErrorKind::Overloaded,
            "the service was not ready; nothing was sent, try again later",
        )
        .with_source(error);
    }
    Error::from_boxed(error)
}

/// Whether the error is an `E`, or has one below it with no ebus error between.
fn holds<E: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut at = Some(error);
    while let Some(error) = at {
        if error.is::<Error>() {
            return false;
        }
        if error.is::<E>() {
            return true;
        }
        at = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use ebus_core::Retryability;

    use super::*;

    #[test]
    fn towers_own_get_their_kinds() {
        assert_eq!(from_tower(BoxError::from(Elapsed::new())).kind(), ErrorKind::Timeout);
        let shed = from_tower(Overloaded::new());
        assert_eq!((shed.kind(), shed.retryability()), (ErrorKind::Overloaded, Retryability::Safe));
    }

    #[test]
    fn others_stay_what_they_are() {
        let own = Error::new(ErrorKind::Denied, "no").with_source(Elapsed::new());
        assert_eq!(from_tower(BoxError::from(own)).kind(), ErrorKind::Denied);
        assert_eq!(from_tower(BoxError::from("what")).kind(), ErrorKind::Unexpected);
    }
}
