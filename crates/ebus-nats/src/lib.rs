//! The NATS JetStream backend of ebus.
