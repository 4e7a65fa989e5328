//! One suite of cases for every backend: what a user sees, whatever is below.
//!
//! A case says what a user sees, not how it is done. After **every** case the [`oracle`](crate::oracle) judges the history of
//! all that was published and run, so each case guards G1..G7 besides what it says itself. A case runs when the backend
//! says that it can ([`Capability`](ebus_core::Capability)); otherwise it is shown as ignored, with the reason.
//!
//! # How to wire a backend
//! A test binary without the built-in harness:
//!
//! ```toml
//! [dev-dependencies]
//! ebus-testkit = { workspace = true, features = ["conformance"] }   # and "brokers" for a real broker
//!
//! [[test]]
//! name = "conformance"
//! harness = false
//! ```
//! ```no_run
//! // tests/conformance.rs
//! use std::sync::Arc;
//!
//! use ebus_core::{Backend, Error};
//! use ebus_testkit::conformance::{self, Harness, Setup};
//!
//! struct MyBroker { url: String }
//!
//! #[async_trait::async_trait]
//! impl Harness for MyBroker {
//!     async fn connect(&self) -> Result<Arc<dyn Backend>, Error> {
//! #       fn connect(_: &str) -> Result<Arc<dyn Backend>, Error> { unimplemented!() }
//!         connect(&self.url)
//!     }
//! }
//!
//! fn main() {
//!     conformance::run(|| match std::env::var("MY_BROKER_URL") {
//!         Ok(url) => Setup::Ready(Arc::new(MyBroker { url })),
//!         Err(_) => Setup::Missing { reason: "MY_BROKER_URL is not set".into(), required: false },
//!     });
//! }
//! ```
//! With the feature `brokers`, `Setup::shared(Need::Kafka, |url| MyBroker { url })` finds the server, or says what is missing
//! and whether `EBUS_REQUIRE` makes that a failure. The other methods of [`Harness`] have defaults; give those that the
//! backend can do better: connections whose network can be cut, a broker that can be killed, how long a take-over lasts.
//!
//! `cargo test -p my-crate --test conformance` runs all cases, four at a time, `... --test conformance d13` those whose name
//! contains `d13`, `-- --list` shows them. Each has topics and groups of its own, so all can run on one broker at once, and a
//! time limit: a case that hangs fails with a dump of the pools and the end of its history. Random cases print their seed
//! when they fail; `EBUS_SEED` sets it.

mod batches;
mod cases;
mod ctx;
mod failure;
mod faults;
mod faulty;
mod handler;
mod harness;
mod link;
mod load;
mod log;
mod member;
mod own_broker;
mod panics;
mod rng;
mod runner;
mod wait;

pub use faults::{Faults, LogFaults};
pub use harness::{Harness, Setup, TopicPolicy};
pub use link::Link;
pub use own_broker::OwnBroker;
#[cfg(all(feature = "brokers", unix))]
pub use own_broker::OwnServer;
pub use runner::{run, run_only};
