//! The NATS JetStream backend of ebus.

mod ack;
mod address;
mod auth;
mod backend;
mod config;
mod connection;
mod consumer;
mod convert;
mod error;
mod flight;
mod gate;
mod group;
mod hash;
mod headers;
mod intake;
mod join;
mod keys;
mod names;
mod own;
mod part;
mod producer;
mod pump;
mod reader;
mod record;
mod source;
mod start;
mod store;
mod stream;
mod watch;

pub use backend::NatsBackend;
pub use config::{MissingTopic, NatsConfig};
pub use producer::{NatsProducer, NatsPublish};
