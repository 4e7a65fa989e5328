//! Conformance suite, history oracle and broker launchers of ebus.

#[cfg(all(feature = "brokers", unix))]
pub mod brokers;
