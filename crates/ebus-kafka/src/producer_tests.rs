//! Publishing to a broker that is not there: what is promised then needs no broker to be seen.

use std::future::poll_fn;

use super::*;
use crate::known::ASK_AGAIN;
use crate::sys::produce::fail_for_good;

const DEADLINE: Duration = Duration::from_millis(300);
/// A turn of the polling thread, and a slow machine.
const SOON: Duration = Duration::from_secs(10);

/// Nothing listens there. The topic is known, as if the broker had gone away later.
fn away(places: usize) -> (Arc<Shared>, KafkaProducer) {
    let config =
        KafkaConfig::new("127.0.0.1:1").with_delivery_timeout(DEADLINE).with_in_flight_messages(places);
    let control = Control::new(Arc::new(config.clone())).expect("control");
    let shared = Shared::new(&config, control).expect("shared");
    shared.topics.list.write().insert(topic(), Seen::Known(Takes::default(), Instant::now()));
    (shared.clone(), KafkaProducer::new(shared))
}

fn topic() -> Topic {
    Topic::new("t").expect("topic")
}

fn message() -> Publish {
    Publish::new(topic(), Message::new("m").with_key("k"))
}

async fn publish(producer: &mut KafkaProducer) -> Result<Receipt, Error> {
    let ready = tokio::time::timeout(SOON, poll_fn(|cx| producer.poll_ready(cx)));
    ready.await.expect("poll_ready hangs")?;
    tokio::time::timeout(SOON, producer.call(message())).await.expect("a publish hangs")
}

#[tokio::test(flavor = "multi_thread")]
async fn g7_past_its_deadline_a_publish_is_answered_and_librdkafka_gives_nothing_up() {
    let (shared, mut producer) = away(10);
    let began = Instant::now();
    let error = publish(&mut producer).await.expect_err("no broker");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(began.elapsed() >= DEADLINE, "{:?}", began.elapsed());
    tokio::time::sleep(3 * DEADLINE).await;
    assert_eq!(shared.client.in_flight_count(), 1, "it was given up");
    assert_eq!(shared.in_flight.messages(), 1, "it is not counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn g9_when_all_places_are_overdue_a_publish_is_refused_and_never_sent() {
    let (shared, mut producer) = away(2);
    for _ in 0..2 {
        assert_eq!(publish(&mut producer).await.expect_err("no broker").kind(), ErrorKind::Timeout);
    }
    for _ in 0..3 {
        let error = publish(&mut producer.clone()).await.expect_err("no room");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert_eq!(error.retryability(), Retryability::Safe);
    }
    assert_eq!(shared.client.in_flight_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn g9_closing_gives_up_what_is_left_in_time() {
    let (shared, mut producer) = away(10);
    let sent = (0..3).map(|_| producer.call(message())).collect::<Vec<_>>();
    let began = Instant::now();
    let closing = shared.clone();
    let closed = tokio::task::spawn_blocking(move || closing.close(Duration::from_millis(50))).await;
    assert_eq!(closed.expect("no panic").expect_err("not sent").kind(), ErrorKind::Timeout);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    for sent in sent {
        let error = tokio::time::timeout(SOON, sent).await.expect("answered").expect_err("not sent");
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
    }
    assert_eq!(shared.in_flight.messages(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn g9_closing_does_not_fail_for_what_has_failed_before() {
    let (shared, mut producer) = away(10);
    assert_eq!(publish(&mut producer).await.expect_err("no broker").kind(), ErrorKind::Timeout);
    let closing = shared.clone();
    let closed = tokio::task::spawn_blocking(move || closing.close(Duration::from_millis(50))).await;
    closed.expect("no panic").expect("every publish has its answer");
    assert_eq!(shared.in_flight.messages(), 0, "it is given up");
}

#[tokio::test(flavor = "multi_thread")]
async fn g9_a_connection_dropped_without_close_answers_all() {
    let (shared, mut producer) = away(10);
    let sent = producer.call(message());
    drop((shared, producer));
    let error = tokio::time::timeout(SOON, sent).await.expect("answered").expect_err("no broker");
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g9_after_a_fatal_error_every_publish_fails_with_it_and_none_hangs() {
    let (shared, mut producer) = away(2);
    let before = (0..2).map(|_| producer.call(message())).collect::<Vec<_>>();
    fail_for_good(
        &shared.client,
        rdkafka::bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
    );
    for sent in before {
        let error = tokio::time::timeout(SOON, sent).await.expect("answered").expect_err("not sent");
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
    }
    for _ in 0..5 {
        let error = publish(&mut producer).await.expect_err("it has failed for good");
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("made by a test"), "{error}");
    }
    assert_eq!(shared.in_flight.messages(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_topic_does_not_take_is_asked_for_once_in_a_while_and_keeps_nobody_waiting() {
    let (shared, mut producer) = away(10);
    let takes = Takes { most_bytes: Some(200), needs_key: false };
    let asked = Instant::now();
    shared.topics.list.write().insert(topic(), Seen::Known(takes, asked));
    for _ in 0..3 {
        let large = Publish::new(topic(), Message::new(vec![0; 300]).with_key("k"));
        assert_eq!(producer.call(large).await.expect_err("too large").kind(), ErrorKind::TooLarge);
        let _after = producer.call(message());
        let list = shared.topics.list.read();
        assert!(matches!(list.get(&topic()), Some(Seen::Known(..))), "the next one waits for a look-up");
    }
    assert!(!shared.topics.asks_again(&topic(), asked + ASK_AGAIN / 2), "it was asked just before");
    assert!(shared.topics.asks_again(&topic(), asked + 2 * ASK_AGAIN));
    assert!(!shared.topics.asks_again(&topic(), asked + 2 * ASK_AGAIN), "twice");
    // A clone that knows it has what is told later.
    shared.topics.told(&topic(), Takes { most_bytes: Some(400), needs_key: false });
    assert_eq!(producer.takes(&topic()).and_then(|takes| takes.most_bytes), Some(400));
}
