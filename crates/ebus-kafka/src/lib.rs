//! The Kafka backend of ebus.
