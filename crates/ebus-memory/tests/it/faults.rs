//! Tests of the faults of the broker.
