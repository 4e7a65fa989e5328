//! What can be given to a bus, so that building a message and publishing it are one expression.

use ebus_core::{Error, Publish};

/// A [`Publish`], or the attempt to make one: its error is then the error of the call.
pub trait IntoPublish: sealed::Sealed {
    /// The message on its way to its topic.
    ///
    /// # Errors
    /// What making it gave.
    fn into_publish(self) -> Result<Publish, Error>;
}

impl IntoPublish for Publish {
    fn into_publish(self) -> Result<Publish, Error> {
        Ok(self)
    }
}

impl IntoPublish for Result<Publish, Error> {
    fn into_publish(self) -> Result<Publish, Error> {
        self
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for ebus_core::Publish {}
    impl Sealed for Result<ebus_core::Publish, ebus_core::Error> {}
}
