//! Whether a handler's function takes a state as its first argument: two marker types, so that one function can serve both.

/// The function takes the message alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoState;

/// The function takes a clone of this state first.
#[derive(Debug, Clone, Copy)]
pub struct With<S>(pub(crate) S);
