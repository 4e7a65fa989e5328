//! Real brokers for tests: Apache Kafka and nats-server, started where they are needed and gone afterwards.
//!
//! A promise that was only seen on a mock was not seen. This module gives tests two kinds of server:
//!
//! - a **shared** one, whose address is in `EBUS_KAFKA_URL` or `EBUS_NATS_URL`. `cargo xtask test` starts one of each and
//!   sets them, `cargo xtask brokers up` prints them, and anybody may point them at servers of their own. Tests on a shared
//!   server use topics and groups of their own and never stop it.
//! - a **private** one, for tests that stop, kill or freeze servers. [`launch_kafka`] and [`launch_nats`] start it from what
//!   `cargo xtask test` has put into `target/brokers` and says in `EBUS_BROKERS`.
//!
//! [`Need`] says which of them a test needs. Without it the test is ignored, with the reason and the command that helps;
//! with `EBUS_REQUIRE=kafka,nats` it fails instead. Nothing is ever downloaded by a test: only [`provision_kafka`] and
//! [`provision_nats`] do that, and only `cargo xtask` calls them.
//!
//! Trouble between one client and a server needs a proxy between them: a [`Link`], of which the shared Kafka has some
//! ([`Need::links`]), and a private one as many as [`KafkaConfig::with_links`] says. nats-server needs none: a proxy on any port
//! does.
//!
//! ```no_run
//! // tests/broker.rs, with `harness = false`
//! use ebus_testkit::brokers::{KafkaConfig, Need, launch_kafka, private_trial, shared_trial};
//!
//! let args = libtest_mimic::Arguments::from_args();
//! let trials = vec![
//!     shared_trial("p1_publish_is_stored", Need::Kafka, |url| {
//!         println!("{url}"); // kafka://127.0.0.1:21000
//!         Ok(())
//!     }),
//!     private_trial("p1_survives_a_killed_broker", Need::Kafka, |home| {
//!         let mut kafka = launch_kafka(&home, KafkaConfig::default())?;
//!         kafka.kill()?;
//!         kafka.start()?; // same port, same data
//!         Ok(())
//!     }),
//! ];
//! libtest_mimic::run(&args, trials).exit();
//! ```

mod detached;
mod error;
mod home;
mod install;
mod kafka;
mod kafka_install;
mod kafka_wire;
mod link;
mod nats;
mod nats_install;
mod nats_wire;
mod need;
mod process;
mod run_dir;
mod server;
mod trial;

pub use crate::route::Route;
pub use detached::Detached;
pub use error::{BrokerError, Missing};
pub use home::Home;
pub use kafka::{KAFKA_VERSION, KafkaConfig, launch_kafka, launch_kafka_detached};
pub use kafka_install::provision_kafka;
pub use link::Link;
pub use nats::{NATS_VERSION, NatsConfig, launch_nats, launch_nats_detached};
pub use nats_install::provision_nats;
pub use need::{Found, Need};
pub use server::{Node, Server};
pub use trial::{private_trial, shared_trial};
