//! Keyed, sharded dispatch: runs handlers in order per key, many keys at once.
