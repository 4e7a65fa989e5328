//! `start` finds what is wrong before the group is joined, and names it (G8).

use std::sync::Arc;
use std::time::Duration;

use ebus::memory::{MemoryBackend, MemoryConfig};
use ebus::{
    Batch, Bus, Consumer, ConsumerBuilder, Delivery, Error, ErrorKind, Group, Handled, RetryPolicy, Topic,
    TopicSpec, raw,
};

async fn ack(_: Delivery) -> Handled {
    Ok(())
}

async fn ack_all(_: Vec<Delivery>) -> Handled {
    Ok(())
}

async fn bus(url: &str) -> Bus {
    Bus::connect(url).await.expect("memory is always there")
}

async fn refused(builder: ConsumerBuilder) -> Error {
    let started: Result<Consumer, Error> = builder.start().await;
    started.expect_err("has to be refused")
}

#[tokio::test]
async fn i06_what_is_wrong_is_named() {
    let bus = bus("memory://").await;
    let plain = || bus.consumer("billing").on("orders", raw(ack));
    for (builder, says) in [
        (bus.consumer("bil ling").on("orders", raw(ack)), "illegal group name: ' '"),
        (bus.consumer("billing").on("or ders", raw(ack)), "illegal topic name: ' '"),
        (plain().dead_letter("a..b"), "illegal topic name: a dot"),
        (plain().on("orders", raw(ack)), "two handlers"),
        (plain().dead_letter("orders"), "go round for ever"),
        (plain().retry(RetryPolicy::exponential().max_attempts(3)), "name a dead-letter topic"),
        (plain().dead_letter("orders.dlq").drop_rejected(), "exclude each other"),
        (plain().park_keys(10), "parked keys need a dead-letter topic"),
        (plain().dead_letter("orders.dlq").park_keys(0), "at least 1"),
        (plain().park_keys(10).drop_rejected(), "what is dropped has no order"),
        (plain().at_most_once().drop_on_failure(), "at_most_once and drop_on_failure exclude"),
        (plain().at_most_once().retry(RetryPolicy::exponential()), "at_most_once and a retry policy"),
        (plain().at_most_once().dead_letter("orders.dlq"), "at_most_once and a dead-letter topic"),
        (plain().at_most_once().batch("users", Batch::of(1), raw(ack_all)), "message by message"),
        (plain().drop_on_failure().drop_rejected(), "drop_on_failure and drop_rejected"),
        (plain().batch("orders", Batch::of(1), raw(ack_all)), "two handlers"),
        (plain().batch("users", Batch::of(0), raw(ack_all)), "a batch of 0 messages"),
        (plain().batch("users", Batch::of(9), raw(ack_all)).budget(8, 8 << 20), "budget_messages is 8"),
        (plain().max_in_flight(0), "max_in_flight is 0"),
        (plain().budget(0, 1), "budget_messages is 0"),
        (plain().budget(1, 0), "budget_bytes is 0"),
        (plain().shards(0), "shards is 0"),
        (plain().max_span(0), "max_span is 0"),
        (plain().commit_interval(Duration::ZERO), "commit_interval is 0"),
    ] {
        let error = refused(builder).await;
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error}");
        assert!(error.to_string().contains(says), "{says:?} is not in {error}");
    }
}

#[tokio::test]
async fn all_that_is_wrong_is_named_at_once() {
    let bus = bus("memory://").await;
    let wrong = bus.consumer("billing").on("or ders", raw(ack)).max_in_flight(0).max_span(0);
    let error = refused(wrong.at_most_once().park_keys(1).batch("users", Batch::of(0), raw(ack_all))).await;
    for says in ["or ders", "max_in_flight", "max_span", "parked keys", "message by message", "a batch of 0"]
    {
        assert!(error.to_string().contains(says), "{error}");
    }
    // Each part said it, in the middle of the text.
    let text = error.to_string();
    assert!(text.starts_with("start: ") && text.matches("start:").count() == 1, "{text}");
    // A group that is refused is not joined: its name is still new.
    assert_eq!(bus.describe_topic("orders").await.expect_err("nobody made it").kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_topic_that_does_not_exist_is_refused_unless_the_policy_creates_it() {
    let strict = bus("memory://?topics=must_exist").await;
    let error = refused(strict.consumer("billing").on("orders", raw(ack))).await;
    assert_eq!((error.kind(), error.to_string().contains("orders")), (ErrorKind::NotFound, true), "{error}");

    strict.create_topic(&TopicSpec::new(Topic::new("orders").expect("legal"), 2)).await.expect("is new");
    let error = refused(strict.consumer("billing").on("orders", raw(ack)).dead_letter("orders.dlq")).await;
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    for says in ["dead-letter topic", "create it first", "orders.dlq", "start"] {
        assert!(error.to_string().contains(says), "{error}");
    }

    let consumer = strict.consumer("billing").on("orders", raw(ack)).start().await.expect("all is there");
    let error = consumer.on("users", raw(ack)).await.expect_err("is not there");
    assert_eq!((error.kind(), error.operation()), (ErrorKind::NotFound, "on"), "{error}");
    assert_eq!(consumer.on("us ers", raw(ack)).await.expect_err("illegal").kind(), ErrorKind::ConfigInvalid);
    consumer.drain(Duration::from_secs(5)).await.committed.expect("nothing to commit");

    let lenient = bus("memory://").await;
    let started = lenient.consumer("billing").on("orders", raw(ack)).dead_letter("orders.dlq").start().await;
    let consumer = started.expect("the policy creates both");
    let error = consumer.on("orders.dlq", raw(ack)).await.expect_err("its own dead letters");
    assert!(error.to_string().contains("go round for ever"), "{error}");
    consumer.drain(Duration::from_secs(5)).await.committed.expect("nothing to commit");
}

/// Without the right to keep which keys are parked, a restart would forget them.
#[tokio::test]
async fn p2_without_the_right_to_keep_parked_keys_nothing_starts() {
    let backend = MemoryBackend::new(MemoryConfig::default()).expect("valid");
    let group = Group::new("billing").expect("legal");
    backend.broker().faults().parking_fails(&group, Some(ErrorKind::Denied));
    let bus = Bus::new(Arc::new(backend));
    let builder = || bus.consumer("billing").on("orders", raw(ack)).dead_letter("orders.dlq");
    let error = refused(builder().park_keys(10)).await;
    assert_eq!((error.kind(), error.operation()), (ErrorKind::Denied, "parking"), "{error}");
    let consumer = builder().start().await.expect("it needs no such right");
    consumer.drain(Duration::from_secs(5)).await.committed.expect("nothing to commit");
}

#[tokio::test]
async fn p8_more_parked_keys_than_the_backend_keeps_are_refused_before_the_group_is_joined() {
    let bus = bus("memory://").await;
    for topic in ["orders", "orders.dlq"] {
        bus.create_topic(&TopicSpec::new(Topic::new(topic).expect("legal"), 1)).await.expect("is new");
    }
    let builder = || bus.consumer("billing").on("orders", raw(ack)).dead_letter("orders.dlq");
    let error = refused(builder().park_keys(10_000)).await;
    assert_eq!((error.kind(), error.operation()), (ErrorKind::ConfigInvalid, "start"), "{error}");
    assert!(error.to_string().contains("at most 2008 keys"), "{error}");
    let group = Group::new("billing").expect("legal");
    let orders = Topic::new("orders").expect("legal");
    assert!(
        bus.backend()
            .committed(&group, &orders)
            .await
            .expect("is there")
            .iter()
            .all(|one| one.position.is_none())
    );
    let consumer = builder().park_keys(2_008).start().await.expect("so many fit");
    consumer.drain(Duration::from_secs(5)).await.committed.expect("nothing to commit");
}

#[tokio::test]
async fn p8_who_asks_for_a_key_that_is_not_parked_is_told() {
    let bus = bus("memory://").await;
    assert_eq!(bus.parked("billing", "orders").await.expect_err("no topic").kind(), ErrorKind::NotFound);
    bus.create_topic(&TopicSpec::new(Topic::new("orders").expect("legal"), 2)).await.expect("is new");
    let error = bus.parked("billing", "orders").await.expect_err("nobody has parked keys in this group");
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("check its name"), "{error}");
    let error = bus.redrive("billing", "orders", "order-42").await.expect_err("it is not parked");
    assert_eq!(
        (error.kind(), error.to_string().contains("order-42")),
        (ErrorKind::NotFound, true),
        "{error}"
    );
    bus.close(Duration::from_secs(5)).await.expect("closes");
    assert_eq!(bus.parked("billing", "orders").await.expect_err("closed").kind(), ErrorKind::Closed);
}
