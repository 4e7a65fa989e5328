//! Validation of the settings, all problems at once, before any connection (G8).

use std::time::Duration;

use ebus_core::{Error, ErrorKind};
use rdkafka::ClientConfig;

use crate::config::{Compression, GroupProtocol, KafkaConfig, TopicPolicy};
use crate::error::invalid;
use crate::properties::{self, Route};

/// librdkafka keeps times as milliseconds in 31 bits, and most within a day.
const MAX_TIME: Duration = Duration::from_secs(86_400);

pub(crate) fn check(config: &KafkaConfig) -> Result<(), Error> {
    let mut problems = Vec::new();
    check_typed(config, &mut problems);
    check_properties(config, &mut problems);
    if !problems.is_empty() {
        return Err(invalid(problems.join("; ")));
    }
    check_build(config)
}

fn check_typed(config: &KafkaConfig, problems: &mut Vec<String>) {
    check_bootstrap(&config.bootstrap, problems);
    let mut time = |name: &str, value: Duration, least: Duration, most: Duration| {
        if value < least || value > most {
            problems.push(format!("{name} is {value:?}; it must be from {least:?} to {most:?}"));
        }
    };
    let ms = Duration::from_millis;
    time("request_timeout", config.request_timeout, ms(100), ms(300_000));
    time("linger", config.linger, ms(0), ms(900_000));
    time("delivery_timeout", config.delivery_timeout, ms(100), MAX_TIME);
    time("session_timeout", config.session_timeout, ms(500), ms(3_600_000));
    time("max_poll_interval", config.max_poll_interval, ms(500), MAX_TIME);
    let mut size = |name: &str, value: usize, least: usize, most: usize| {
        if value < least || value > most {
            problems.push(format!("{name} is {value}; it must be from {least} to {most}"));
        }
    };
    size("max_message_bytes", config.max_message_bytes, 1_000, 900_000_000);
    size("batch_bytes", config.batch_bytes, 1_000, 900_000_000);
    // An idempotent producer may have five.
    size("batches_in_flight", config.batches_in_flight, 1, 5);
    size("in_flight_messages", config.in_flight_messages, 1, 1_000_000_000);
    size("in_flight_bytes", config.in_flight_bytes, 1, 1 << 40);
    size("prefetch_messages", config.prefetch_messages, 1, 10_000_000);
    size("prefetch_bytes", config.prefetch_bytes, 1 << 10, 2_097_151 << 10);
    if config.delivery_timeout <= config.linger {
        problems.push("delivery_timeout must be longer than linger".into());
    }
    if config.group_protocol == GroupProtocol::Classic && config.max_poll_interval < config.session_timeout {
        problems.push("max_poll_interval must not be shorter than session_timeout".into());
    }
    if config.client_id.is_empty() {
        problems.push("client_id is empty; give it a name".into());
    }
    if let Err(error) = config.parked_topic() {
        problems.push(error.to_string());
    }
    if config.instance_id.as_ref().is_some_and(String::is_empty) {
        problems.push("instance_id is empty; leave it out or give it a name".into());
    }
    if let TopicPolicy::Create { partitions, replicas } = config.topic_policy
        && (partitions == 0 || replicas == 0)
    {
        problems.push("topic_policy: partitions and replicas must be at least 1".into());
    }
}

fn check_bootstrap(bootstrap: &str, problems: &mut Vec<String>) {
    if bootstrap.trim().is_empty() {
        problems.push("bootstrap is empty; give at least one host:port".into());
    }
    for address in bootstrap.split(',').map(str::trim) {
        let port = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        if !address.is_empty() && !port.is_some_and(|(host, port)| !host.is_empty() && port > 0) {
            problems.push(format!("bootstrap: {address:?} is not host:port"));
        }
    }
}

fn check_properties(config: &KafkaConfig, problems: &mut Vec<String>) {
    for (name, value) in &config.properties {
        if let Route::Managed(why) = properties::route(name) {
            problems.push(format!("property {name} is not yours to set: {why}"));
            continue;
        }
        if name == "heartbeat.interval.ms" && config.group_protocol == GroupProtocol::Consumer {
            problems.push("property heartbeat.interval.ms is the broker's with the consumer protocol".into());
            continue;
        }
        if !properties::needs(name, value).iter().all(|needs| is_built(needs.builtin)) {
            // Its own error, after all others: librdkafka says "invalid" for it.
            continue;
        }
        let mut probe = ClientConfig::new();
        probe.set(name, value);
        if let Err(error) = probe.create_native_config() {
            // The text of the error has the value in it.
            let said = match &error {
                rdkafka::error::KafkaError::ClientConfig(_, said, _, _) if !properties::is_secret(name) => {
                    said.as_str()
                }
                _ => "librdkafka refuses its value",
            };
            problems.push(format!("property {name}: {said}"));
        }
    }
}

/// What librdkafka was built with, as it says itself.
pub(crate) fn is_built(part: &str) -> bool {
    ClientConfig::new()
        .create_native_config()
        .and_then(|native| native.get("builtin.features"))
        .is_ok_and(|features| features.split(',').any(|feature| feature.trim() == part))
}

fn check_build(config: &KafkaConfig) -> Result<(), Error> {
    let compression = ("compression.codec".to_owned(), config.compression.as_str().to_owned());
    let typed = (config.compression != Compression::None).then_some((&compression.0, &compression.1));
    let mut missing = Vec::new();
    for (name, value) in config.properties.iter().chain(typed) {
        for needs in properties::needs(name, value) {
            if !is_built(needs.builtin) {
                missing.push(format!("{name} needs the cargo feature {:?} of ebus-kafka", needs.feature));
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("librdkafka was built without it: {}", missing.join("; ")),
    )
    .with_operation("configure"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: KafkaConfig) -> String {
        config.validate().expect_err("refused").to_string()
    }

    #[test]
    fn all_problems_come_at_once() {
        let text = refused(
            KafkaConfig::new("nohost")
                .with_session_timeout(Duration::ZERO)
                .with_in_flight_messages(0)
                .property("acks", "1")
                .property("socket.timeout.ms", "never")
                .property("no.such.thing", "1"),
        );
        for part in
            ["nohost", "session_timeout", "in_flight_messages", "acks", "socket.timeout.ms", "no.such.thing"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn g7_nothing_can_be_set_that_lets_librdkafka_give_a_message_up() {
        for name in ["message.timeout.ms", "delivery.timeout.ms", "message.send.max.retries", "retries"] {
            let text = refused(KafkaConfig::new("a:1").property(name, "5"));
            assert!(text.contains(name) && text.contains("stored twice"), "{text}");
        }
    }

    #[test]
    fn an_address_needs_a_port() {
        for bad in ["", "host", "host:", ":9092", "host:0", "host:99999", "a:1,b"] {
            let error = KafkaConfig::new(bad).validate().expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{bad}");
        }
        KafkaConfig::new("a:1,b:2").validate().expect("valid");
        KafkaConfig::new("[::1]:9092").validate().expect("valid");
    }

    #[test]
    fn what_is_not_built_is_unsupported_and_named_never_plain() {
        let config = KafkaConfig::new("a:1").property("security.protocol", "ssl");
        match is_built("ssl") {
            true => config.validate().expect("built"),
            false => {
                let error = config.validate().expect_err("not built");
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                assert!(error.to_string().contains("\"ssl\""), "{error}");
            }
        }
    }

    #[test]
    fn no_secret_is_in_an_error() {
        let text = refused(KafkaConfig::new("a:1").property("sasl.password.typo", "hunter2"));
        assert!(!text.contains("hunter2"), "{text}");
    }
}
