//! An event bus for Rust: Kafka, NATS JetStream and in-process behind one small API.
