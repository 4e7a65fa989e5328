//! What a user sees of a consumer: order, retries, dead letters, later topics, pauses, drain.

use std::time::Duration;

use ebus::{
    Batch, BatchHandled, Bus, Counters, Delivery, ErrorKind, Failures, Handled, HandlerError, Message,
    Publish, ReadRange, RetryPolicy, StartPosition, Topic, TopicSpec, dead_letter, raw,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

async fn bus() -> Bus {
    Bus::connect("memory://").await.expect("memory is always there")
}

async fn publish(bus: &Bus, topic: &str, key: &str, payload: &'static str) {
    bus.publish(Publish::to(topic, Message::new(payload).with_key(key))).await.expect("is stored");
}

/// Hands payloads on; one that begins with `fail` fails at its first attempt, `reject` for good.
async fn tell(seen: UnboundedSender<String>, delivery: Delivery) -> Handled {
    let payload = std::str::from_utf8(delivery.payload())?;
    seen.send(payload.to_owned())?;
    if payload.starts_with("fail") && delivery.attempt() == 1 {
        return Err(HandlerError::retry("not yet"));
    }
    if payload.starts_with("reject") {
        return Err(HandlerError::permanent("never"));
    }
    Ok(())
}

async fn next(seen: &mut UnboundedReceiver<String>) -> String {
    timeout(SOON, seen.recv()).await.expect("in time").expect("somebody handles")
}

async fn until(consumer: &ebus::Consumer, reached: impl Fn(&Counters) -> bool) {
    let waited = timeout(SOON, async {
        while !reached(&consumer.counters()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{:?}", consumer.counters()));
}

#[tokio::test]
async fn p2_a_retry_comes_before_the_next_of_its_key_and_a_reject_goes_to_the_dead_letters() {
    let bus = bus().await;
    let (to, mut seen) = unbounded_channel();
    let consumer = bus
        .consumer("billing")
        .on("orders", raw(tell).with(to))
        .retry(RetryPolicy::fixed(Duration::from_millis(5)).max_attempts(3))
        .dead_letter("orders.dlq")
        .start()
        .await
        .expect("starts");
    for payload in ["one", "fail two", "reject three", "four"] {
        publish(&bus, "orders", "k", payload).await;
    }
    for expected in ["one", "fail two", "fail two", "reject three", "four"] {
        assert_eq!(next(&mut seen).await, expected);
    }
    until(&consumer, |counters| counters.handled == 3 && counters.dead_letters == 1).await;
    let report = consumer.drain(SOON).await;
    report.committed.expect("was accepted");
    assert_eq!((report.counters.retries, report.left.len()), (1, 0));

    let topic = Topic::new("orders.dlq").expect("legal");
    let mut letters = Vec::new();
    for (partition, info) in (0..).zip(bus.describe_topic(&topic).await.expect("was created").partitions) {
        let range = ReadRange::new(topic.clone(), partition, info.earliest, info.end);
        let mut reader = bus.backend().read(range).await.expect("is there");
        while reader.next(10, &mut letters).await.expect("can be read") > 0 {}
    }
    let [(_, letter)] = &letters[..] else { panic!("{letters:?}") };
    assert_eq!(letter.payload, "reject three");
    assert_eq!(letter.headers.first_str(dead_letter::REASON), Some("rejected"));
    assert_eq!(letter.headers.first_str(dead_letter::GROUP), Some("billing"));
    assert!(letter.headers.first_str(dead_letter::ERROR).is_some_and(|error| error.contains("never")));
}

#[tokio::test]
async fn p6_a_second_consumer_of_the_group_gets_nothing_again() {
    let bus = bus().await;
    let (to, mut seen) = unbounded_channel();
    let start = || bus.consumer("billing").on("orders", raw(tell).with(to.clone())).start();
    let first = start().await.expect("starts");
    publish(&bus, "orders", "k", "one").await;
    assert_eq!(next(&mut seen).await, "one");
    first.drain(SOON).await.committed.expect("was accepted");
    publish(&bus, "orders", "k", "two").await;
    let second = start().await.expect("starts");
    assert_eq!(next(&mut seen).await, "two");
    second.drain(SOON).await.committed.expect("was accepted");
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn e07_latest_skips_what_is_there_and_misses_nothing_after_start() {
    let bus = bus().await;
    publish(&bus, "orders", "k", "before").await;
    let (to, mut seen) = unbounded_channel();
    let consumer = bus
        .consumer("billing")
        .on("orders", raw(tell).with(to))
        .start_position(StartPosition::Latest)
        .start()
        .await
        .expect("starts");
    publish(&bus, "orders", "k", "after").await;
    assert_eq!(next(&mut seen).await, "after");
    consumer.drain(SOON).await.committed.expect("was accepted");
}

#[tokio::test]
async fn g04_a_topic_that_is_subscribed_later_is_consumed_at_once() {
    let bus = bus().await;
    let (to, mut seen) = unbounded_channel();
    let consumer = bus.consumer("billing").start().await.expect("topics may come later");
    publish(&bus, "users", "u", "early").await;
    consumer.on("users", raw(tell).with(to.clone())).await.expect("exists");
    assert_eq!(next(&mut seen).await, "early");
    consumer.on("orders", raw(tell).with(to)).await.expect("the policy creates it");
    publish(&bus, "orders", "k", "one").await;
    publish(&bus, "users", "u", "late").await;
    let mut both = [next(&mut seen).await, next(&mut seen).await];
    both.sort();
    assert_eq!(both, ["late", "one"]);
    consumer.drain(SOON).await.committed.expect("was accepted");
}

#[tokio::test]
async fn several_topics_have_a_handler_each() {
    let bus = bus().await;
    let (orders, mut of_orders) = unbounded_channel();
    let (users, mut of_users) = unbounded_channel();
    let consumer = bus
        .consumer("billing")
        .on("orders", raw(tell).with(orders))
        .on("users", raw(tell).with(users))
        .start()
        .await
        .expect("starts");
    publish(&bus, "users", "k", "user").await;
    publish(&bus, "orders", "k", "order").await;
    assert_eq!((next(&mut of_orders).await, next(&mut of_users).await), ("order".into(), "user".into()));
    consumer.drain(SOON).await.committed.expect("was accepted");
}

#[tokio::test]
async fn g02_a_paused_topic_is_not_read_until_it_is_resumed() {
    let bus = bus().await;
    for topic in ["orders", "users"] {
        bus.create_topic(&TopicSpec::new(Topic::new(topic).expect("legal"), 2)).await.expect("is new");
    }
    let (to, mut seen) = unbounded_channel();
    let handler = raw(tell).with(to);
    let start = bus.consumer("billing").on("orders", handler.clone()).on("users", handler).start();
    let consumer = start.await.expect("starts");
    publish(&bus, "orders", "k", "one").await;
    assert_eq!(next(&mut seen).await, "one");
    consumer.pause("orders").expect("runs");
    let paused = timeout(SOON, async {
        let of_orders = |state: ebus::PoolState| {
            state.partitions.into_iter().filter(|p| p.partition.topic.as_str() == "orders").all(|p| p.paused)
        };
        while !of_orders(consumer.state().await) {}
    });
    paused.await.expect("in time");
    publish(&bus, "orders", "k", "two").await;
    publish(&bus, "users", "k", "other").await;
    assert_eq!(next(&mut seen).await, "other", "the other topic goes on");
    assert!(seen.try_recv().is_err(), "the paused one does not");
    consumer.resume("orders").expect("runs");
    assert_eq!(next(&mut seen).await, "two");
    consumer.drain(SOON).await.committed.expect("was accepted");
}

#[tokio::test]
async fn drain_says_what_was_left() {
    async fn stuck(began: UnboundedSender<()>, _: Delivery) -> Handled {
        began.send(())?;
        std::future::pending().await
    }
    let bus = bus().await;
    let (began, mut begun) = unbounded_channel();
    let consumer =
        bus.consumer("billing").on("orders", raw(stuck).with(began)).start().await.expect("starts");
    publish(&bus, "orders", "k", "one").await;
    publish(&bus, "orders", "k", "two").await;
    begun.recv().await.expect("the run began");
    let report = timeout(SOON, consumer.drain(Duration::from_millis(50))).await.expect("in bounded time");
    let cancelled: usize = report.left.iter().map(|left| left.cancelled).sum();
    assert_eq!((report.counters.handled, cancelled), (0, 1), "{report:?}");
    report.committed.expect("was accepted");
    assert_eq!(consumer.drain(SOON).await.left.len(), report.left.len(), "asked again, the same report");
}

/// Hands batches on; what begins with `fail` fails at its first attempt, `reject` for good.
async fn tell_all(seen: UnboundedSender<Vec<String>>, batch: Vec<Delivery>) -> BatchHandled {
    let payload = |delivery: &Delivery| String::from_utf8_lossy(delivery.payload()).into_owned();
    seen.send(batch.iter().map(payload).collect())?;
    let mut failures = Failures::new();
    for (place, delivery) in batch.iter().enumerate() {
        if payload(delivery).starts_with("fail") && delivery.attempt() == 1 {
            failures.add(place, HandlerError::retry("not yet"));
        }
        if payload(delivery).starts_with("reject") {
            failures.add(place, HandlerError::permanent("never"));
        }
    }
    Ok(failures)
}

#[tokio::test]
async fn c21_of_a_batch_only_what_failed_runs_again_with_what_follows_of_its_key() {
    let bus = bus().await;
    for (key, payload) in [("a", "one"), ("b", "fail"), ("b", "behind"), ("c", "reject"), ("a", "two")] {
        publish(&bus, "orders", key, payload).await;
    }
    let (to, mut seen) = unbounded_channel();
    let consumer = bus
        .consumer("billing")
        .batch("orders", Batch::of(5).max_age(SOON), raw(tell_all).with(to.clone()))
        .shards(1)
        .retry(RetryPolicy::fixed(Duration::from_millis(5)))
        .dead_letter("orders.dlq")
        .start()
        .await
        .expect("starts");
    let first = timeout(SOON, seen.recv()).await.expect("in time").expect("somebody handles");
    assert_eq!(first.len(), 5, "it is full, and waits for nothing: {first:?}");
    consumer.batch("orders", Batch::of(5), raw(tell_all).with(to.clone())).await.expect("exists");
    let refused =
        consumer.batch("orders", Batch::of(0), raw(tell_all).with(to)).await.expect_err("never fills");
    assert_eq!(refused.kind(), ErrorKind::ConfigInvalid);
    until(&consumer, |counters| counters.handled == 4 && counters.dead_letters == 1).await;
    let again = seen.try_recv().expect("was handled");
    assert_eq!((again, seen.try_recv().ok()), (vec!["fail".to_owned(), "behind".to_owned()], None));
    consumer.drain(SOON).await.committed.expect("was accepted");
}
