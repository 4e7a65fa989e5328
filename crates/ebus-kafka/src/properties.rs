//! Which of our handles a librdkafka property is for (G8: none is accepted and ignored).
//!
//! A connection is made of several handles: one publishes, one is the member of the group, one fetches, one asks and
//! creates. librdkafka only warns when a property is of no use to a handle, so the table says which handle gets what,
//! which properties are ours to set, and which need a part of librdkafka that may not be built in.

/// Who gets a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Every handle: connection and security.
    All,
    /// The producer.
    Producer,
    /// The member of the group.
    Member,
    /// What fetches messages: of a group, and of a read beside all groups.
    Fetch,
    /// Nobody: it is set by ebus; the text says by what or why.
    Managed(&'static str),
}

const PRODUCER: &[&str] = &[
    "batch.num.messages",
    "compression.level",
    "enable.gapless.guarantee",
    "queue.buffering.backpressure.threshold",
    "request.timeout.ms",
    "sticky.partitioning.linger.ms",
];

const MEMBER: &[&str] = &["coordinator.query.interval.ms", "group.remote.assignor", "heartbeat.interval.ms"];

const FETCH: &[&str] = &[
    "check.crcs",
    "fetch.error.backoff.ms",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.min.bytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "isolation.level",
    "max.partition.fetch.bytes",
];

const MANAGED: &[(&str, &str)] = &[
    ("acks", "publishing is durable: acks=all"),
    ("allow.auto.create.topics", "topics are created by create_topic or by the topic policy"),
    ("auto.commit.enable", "positions are committed from the ledger"),
    ("auto.commit.interval.ms", "use commit_interval of the source"),
    ("auto.offset.reset", "use the start position of the source"),
    ("batch.size", "use with_batch_bytes"),
    ("bootstrap.servers", "it is the first argument of KafkaConfig::new"),
    ("builtin.features", "it is read only"),
    ("client.id", "use with_client_id"),
    ("compression.codec", "use with_compression"),
    ("compression.type", "use with_compression"),
    ("consume.callback.max.messages", "no consume callback is used"),
    ("delivery.report.only.error", "every publish waits for its report"),
    (
        "delivery.timeout.ms",
        "librdkafka gives nothing up, or it could be stored twice; use with_delivery_timeout",
    ),
    ("enable.auto.commit", "positions are committed from the ledger"),
    ("enable.auto.offset.store", "positions are committed from the ledger"),
    ("enable.idempotence", "publishing is idempotent"),
    ("enable.partition.eof", "it is set where the end of a partition matters"),
    ("enabled_events", "it is set by the client library"),
    ("group.id", "it is the group of the source"),
    ("group.instance.id", "use with_instance_id"),
    ("group.protocol", "use with_group_protocol"),
    ("group.protocol.type", "it is always consumer"),
    ("interceptors", "it is not settable by text"),
    ("linger.ms", "use with_linger"),
    ("log.queue", "it is set by the client library"),
    ("max.in.flight", "use with_batches_in_flight"),
    ("max.in.flight.requests.per.connection", "use with_batches_in_flight"),
    ("max.poll.interval.ms", "use with_max_poll_interval"),
    ("message.max.bytes", "use with_max_message_bytes"),
    ("message.send.max.retries", "nothing is given up while its answer is open, or it could be stored twice"),
    (
        "message.timeout.ms",
        "librdkafka gives nothing up, or it could be stored twice; use with_delivery_timeout",
    ),
    ("metadata.broker.list", "it is the first argument of KafkaConfig::new"),
    ("msg_order_cmp", "it would break the order of publishing"),
    ("offset.store.method", "positions are kept by the broker"),
    ("offset.store.path", "positions are kept by the broker"),
    ("offset.store.sync.interval.ms", "positions are kept by the broker"),
    ("opaque", "it is not settable by text"),
    ("partition.assignment.strategy", "it is cooperative-sticky, so that partitions that stay keep flowing"),
    ("partitioner", "it is murmur2_random, the partitions that Java clients choose"),
    ("produce.offset.report", "receipts carry offsets"),
    ("queue.buffering.max.kbytes", "use with_in_flight_bytes"),
    ("queue.buffering.max.messages", "use with_in_flight_messages"),
    ("queue.buffering.max.ms", "use with_linger"),
    ("queued.max.messages.kbytes", "use with_prefetch_bytes"),
    ("queued.min.messages", "use with_prefetch_messages"),
    ("queuing.strategy", "it would break the order of publishing"),
    ("request.required.acks", "publishing is durable: acks=all"),
    ("retries", "nothing is given up while its answer is open, or it could be stored twice"),
    ("session.timeout.ms", "use with_session_timeout"),
    ("transaction.timeout.ms", "transactions are not used"),
    ("transactional.id", "transactions are not used"),
];

/// The parts of librdkafka that a property or a value of it needs: the name in `builtin.features`, and our cargo feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    /// As `builtin.features` names it.
    pub builtin: &'static str,
    /// The cargo feature of this crate that builds it in.
    pub feature: &'static str,
}

/// Where the property of this name goes.
pub(crate) fn route(name: &str) -> Route {
    if let Some((_, why)) = MANAGED.iter().find(|(managed, _)| *managed == name) {
        return Route::Managed(why);
    }
    if name.ends_with("_cb") || name.ends_with("_callback_data") {
        return Route::Managed("it is not settable by text");
    }
    match name {
        _ if PRODUCER.contains(&name) => Route::Producer,
        _ if MEMBER.contains(&name) => Route::Member,
        _ if FETCH.contains(&name) => Route::Fetch,
        _ => Route::All,
    }
}

/// What a property needs of librdkafka's build.
pub(crate) fn needs(name: &str, value: &str) -> Vec<Needs> {
    const SSL: Needs = Needs { builtin: "ssl", feature: "ssl" };
    const SCRAM: Needs = Needs { builtin: "sasl_scram", feature: "ssl" };
    const OAUTH: Needs = Needs { builtin: "sasl_oauthbearer", feature: "ssl" };
    const GSSAPI: Needs = Needs { builtin: "sasl_gssapi", feature: "sasl" };
    const PLAIN: Needs = Needs { builtin: "sasl_plain", feature: "sasl" };
    const ZSTD: Needs = Needs { builtin: "zstd", feature: "zstd" };
    let value = value.trim().to_ascii_lowercase();
    match name {
        "security.protocol" if value.ends_with("ssl") => vec![SSL],
        "sasl.mechanism" | "sasl.mechanisms" => match value.as_str() {
            "plain" => vec![PLAIN],
            "gssapi" => vec![GSSAPI],
            "oauthbearer" => vec![OAUTH],
            _ if value.starts_with("scram-") => vec![SCRAM],
            _ => vec![],
        },
        "compression.codec" if value == "zstd" => vec![ZSTD],
        _ if name.starts_with("ssl.") || name == "enable.ssl.certificate.verification" => vec![SSL],
        _ if name.starts_with("sasl.kerberos.") => vec![GSSAPI],
        _ if name.starts_with("sasl.oauthbearer.") => vec![OAUTH],
        _ => vec![],
    }
}

/// Whether the value of this property must never be shown.
pub(crate) fn is_secret(name: &str) -> bool {
    ["password", "secret", "passphrase", "token", "jaas", ".pem", "sasl.oauthbearer.config", "username"]
        .iter()
        .any(|part| name.contains(part))
        || matches!(name, "ssl_key" | "ssl_certificate")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `C/P` and name of every property of librdkafka 2.12.1, from its CONFIGURATION.md: nothing that only one kind of
    /// handle understands may be routed to all.
    const PRODUCER_ONLY: &str = "transactional.id transaction.timeout.ms enable.idempotence enable.gapless.guarantee \
        queue.buffering.max.messages queue.buffering.max.kbytes queue.buffering.max.ms linger.ms \
        message.send.max.retries retries queue.buffering.backpressure.threshold compression.codec compression.type \
        batch.num.messages batch.size delivery.report.only.error dr_cb dr_msg_cb sticky.partitioning.linger.ms \
        request.required.acks acks request.timeout.ms message.timeout.ms delivery.timeout.ms queuing.strategy \
        produce.offset.report partitioner partitioner_cb msg_order_cmp compression.level";
    const CONSUMER_ONLY: &str = "group.id group.instance.id partition.assignment.strategy session.timeout.ms \
        heartbeat.interval.ms group.protocol.type group.protocol group.remote.assignor coordinator.query.interval.ms \
        max.poll.interval.ms enable.auto.commit auto.commit.interval.ms enable.auto.offset.store queued.min.messages \
        queued.max.messages.kbytes fetch.wait.max.ms fetch.queue.backoff.ms fetch.message.max.bytes \
        max.partition.fetch.bytes fetch.max.bytes fetch.min.bytes fetch.error.backoff.ms offset.store.method \
        isolation.level consume_cb rebalance_cb offset_commit_cb enable.partition.eof check.crcs auto.commit.enable \
        auto.offset.reset offset.store.path offset.store.sync.interval.ms consume.callback.max.messages";

    #[test]
    fn no_property_of_one_kind_of_handle_goes_to_all() {
        for name in PRODUCER_ONLY.split_whitespace() {
            assert!(matches!(route(name), Route::Producer | Route::Managed(_)), "{name}: {:?}", route(name));
        }
        for name in CONSUMER_ONLY.split_whitespace() {
            let found = route(name);
            assert!(matches!(found, Route::Member | Route::Fetch | Route::Managed(_)), "{name}: {found:?}");
        }
    }

    #[test]
    fn security_and_connection_go_to_all() {
        for name in
            ["security.protocol", "sasl.password", "ssl.ca.location", "socket.timeout.ms", "client.rack"]
        {
            assert_eq!(route(name), Route::All, "{name}");
        }
    }

    #[test]
    fn secrets_are_known() {
        for name in ["sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"] {
            assert!(is_secret(name), "{name}");
        }
        assert!(!is_secret("linger.ms"));
    }

    #[test]
    fn what_needs_a_build_switch_names_it() {
        assert_eq!(needs("security.protocol", "SASL_SSL")[0].feature, "ssl");
        assert_eq!(needs("sasl.mechanism", "GSSAPI")[0].feature, "sasl");
        assert!(needs("security.protocol", "plaintext").is_empty());
    }
}
