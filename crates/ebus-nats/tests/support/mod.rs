//! What the test binaries of this crate share.

pub(crate) mod proxy;
