//! Tests of the retention of the broker.
