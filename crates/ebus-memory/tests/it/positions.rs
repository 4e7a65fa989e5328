//! Tests of the positions of the broker.
