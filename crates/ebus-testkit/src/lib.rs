//! Conformance suite, history oracle and broker launchers of ebus: for our tests and for users'.
//!
//! - [`history`]: what happened, one event per line.
//! - [`record`]: wrappers around a backend and around handlers that record a history, and change nothing.
//! - [`read_back`]: what the broker has at the end, beside what it said.
//! - [`oracle`]: judges a history by the promises G1..G7. It knows neither pool nor backend.
//! - `conformance` (feature `conformance`): one suite of cases for every backend.
//! - `proxy` (feature `proxy`): a TCP proxy with faults, for trouble between one client and its broker.
//! - `brokers` (feature `brokers`): Apache Kafka and nats-server for tests.

#[cfg(all(feature = "brokers", unix))]
pub mod brokers;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod history;
pub mod oracle;
#[cfg(feature = "proxy")]
pub mod proxy;
pub mod read_back;
pub mod record;
#[cfg(any(feature = "proxy", feature = "brokers"))]
mod route;
