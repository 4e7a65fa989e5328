//! Tests of the life of the broker.
