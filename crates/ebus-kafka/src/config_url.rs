//! Settings from a URL: `kafka://host:port,host:port?key=value` (G8: an unknown key is refused).

use std::time::Duration;

use ebus_core::Error;
use url::form_urlencoded;

use crate::config::{Compression, GroupProtocol, KafkaConfig, TopicPolicy, URL_KEYS};
use crate::error::invalid;

pub(crate) fn parse(url: &str) -> Result<KafkaConfig, Error> {
    let Some(rest) = url.strip_prefix("kafka://") else {
        return Err(invalid("a Kafka URL begins with kafka://, such as kafka://localhost:9092"));
    };
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let address = address.strip_suffix('/').unwrap_or(address);
    if address.contains(['@', '/', '#']) {
        return Err(invalid(
            "a Kafka URL has addresses and settings only; give credentials as properties (sasl.username, sasl.password)",
        ));
    }
    let addresses: Vec<_> = address.split(',').filter(|part| !part.is_empty()).map(with_port).collect();
    let mut config = KafkaConfig::new(addresses.join(","));
    let mut problems = Vec::new();
    let mut topics = None;
    let (mut partitions, mut replicas) = (None, None);
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        let mut ms =
            |to: &mut Duration| number(&key, &value, &mut problems).map(|n| *to = Duration::from_millis(n));
        let known = match &*key {
            "request_timeout_ms" => ms(&mut config.request_timeout),
            "linger_ms" => ms(&mut config.linger),
            "delivery_timeout_ms" => ms(&mut config.delivery_timeout),
            "session_timeout_ms" => ms(&mut config.session_timeout),
            "max_poll_interval_ms" => ms(&mut config.max_poll_interval),
            _ => None,
        };
        if known.is_some() || key.ends_with("_ms") && URL_KEYS.contains(&*key) {
            continue;
        }
        let mut size = |to: &mut usize| {
            if let Some(n) = number(&key, &value, &mut problems) {
                *to = n as usize;
            }
        };
        match &*key {
            "max_message_bytes" => size(&mut config.max_message_bytes),
            "batch_bytes" => size(&mut config.batch_bytes),
            "batches_in_flight" => size(&mut config.batches_in_flight),
            "in_flight_messages" => size(&mut config.in_flight_messages),
            "in_flight_bytes" => size(&mut config.in_flight_bytes),
            "prefetch_messages" => size(&mut config.prefetch_messages),
            "prefetch_bytes" => size(&mut config.prefetch_bytes),
            "client_id" => config.client_id = value.into_owned(),
            "instance_id" => config.instance_id = Some(value.into_owned()),
            "parked_topic" => config.parked_topic = value.into_owned(),
            "topics" => topics = Some(value.into_owned()),
            "partitions" => partitions = number(&key, &value, &mut problems),
            "replicas" => replicas = number(&key, &value, &mut problems),
            "compression" => match &*value {
                "none" => config.compression = Compression::None,
                "gzip" => config.compression = Compression::Gzip,
                "snappy" => config.compression = Compression::Snappy,
                "lz4" => config.compression = Compression::Lz4,
                "zstd" => config.compression = Compression::Zstd,
                _ => problems.push("compression must be none, gzip, snappy, lz4 or zstd".into()),
            },
            "group_protocol" => match &*value {
                "classic" => config.group_protocol = GroupProtocol::Classic,
                "consumer" => config.group_protocol = GroupProtocol::Consumer,
                _ => problems.push("group_protocol must be classic or consumer".into()),
            },
            // A property of librdkafka; validate() refuses what it does not know.
            _ if key.contains('.') => config = config.property(key, value),
            _ => problems.push(format!("unknown key {key:?}; known are {URL_KEYS}")),
        }
    }
    config.topic_policy = policy(topics.as_deref(), partitions, replicas, &mut problems);
    if !problems.is_empty() {
        return Err(invalid(problems.join("; ")));
    }
    config.validate()?;
    Ok(config)
}

fn with_port(address: &str) -> String {
    let host_end = address.rfind(']').map_or(0, |end| end + 1);
    if address[host_end..].contains(':') { address.to_owned() } else { format!("{address}:9092") }
}

fn policy(
    topics: Option<&str>,
    partitions: Option<u64>,
    replicas: Option<u64>,
    problems: &mut Vec<String>,
) -> TopicPolicy {
    match topics {
        Some("create") => TopicPolicy::Create {
            partitions: partitions.map_or(8, |n| u32::try_from(n).unwrap_or(0)),
            replicas: replicas.map_or(1, |n| u16::try_from(n).unwrap_or(0)),
        },
        None | Some("must_exist") => {
            if partitions.is_some() || replicas.is_some() {
                problems.push("partitions and replicas need topics=create".into());
            }
            TopicPolicy::MustExist
        }
        Some(_) => {
            problems.push("topics must be create or must_exist".into());
            TopicPolicy::MustExist
        }
    }
}

fn number(key: &str, value: &str, problems: &mut Vec<String>) -> Option<u64> {
    let parsed = value.parse().ok().filter(|n| *n <= u64::from(u32::MAX) * 256);
    if parsed.is_none() {
        problems.push(format!("{key} must be a whole number"));
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_an_effect() {
        let plain = parse("kafka://one").expect("valid");
        assert_eq!(plain.bootstrap, "one:9092");
        for key in [
            "client_id=x",
            "request_timeout_ms=999",
            "topics=create",
            "max_message_bytes=5000",
            "linger_ms=7",
            "batch_bytes=5000",
            "batches_in_flight=5",
            "compression=snappy",
            "in_flight_messages=7",
            "in_flight_bytes=7777",
            "delivery_timeout_ms=7777",
            "group_protocol=consumer",
            "instance_id=x",
            "parked_topic=x",
            "session_timeout_ms=7777",
            "max_poll_interval_ms=77777",
            "prefetch_messages=7",
            "prefetch_bytes=77777",
            "socket.timeout.ms=777",
        ] {
            assert_ne!(parse(&format!("kafka://one?{key}")).expect(key), plain, "{key}");
        }
        let made = parse("kafka://a:1,b:2/?topics=create&partitions=3&replicas=2").expect("valid");
        assert_eq!(made.bootstrap, "a:1,b:2");
        assert_eq!(made.topic_policy, TopicPolicy::Create { partitions: 3, replicas: 2 });
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (url, part) in [
            ("nats://a", "kafka://"),
            ("kafka://", "bootstrap"),
            ("kafka://user:secret@a:1", "sasl.username"),
            ("kafka://a?lingr_ms=1", "lingr_ms"),
            ("kafka://a?linger_ms=x", "linger_ms"),
            ("kafka://a?linger_ms=1&compression=br&group_protocol=x", "group_protocol"),
            ("kafka://a?partitions=3", "topics=create"),
            ("kafka://a?topics=create&partitions=0", "at least 1"),
            ("kafka://a?topics=create&partitions=99999999999", "at least 1"),
            ("kafka://a?batches_in_flight=6", "from 1 to 5"),
            ("kafka://a?acks=1", "acks"),
            ("kafka://a?no.such=1", "no.such"),
        ] {
            let text = parse(url).expect_err(url).to_string();
            assert!(text.contains(part), "{url}: {text}");
            assert!(!text.contains("secret@"), "{text}");
        }
    }

    #[test]
    fn ports_are_added_where_they_are_missing() {
        assert_eq!(with_port("[::1]"), "[::1]:9092");
        assert_eq!(with_port("[::1]:1"), "[::1]:1");
        assert_eq!(with_port("a:1"), "a:1");
    }
}
