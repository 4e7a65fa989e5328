//! Tests of the stateful of the broker.
