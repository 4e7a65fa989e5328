use std::future::poll_fn;
use std::task::Poll;

use ebus_core::{Backend, ErrorKind, Message, NextOffset, Publish, ReadRange, Topic, TopicSpec};
use ebus_memory::{MemoryBackend, MemoryConfig, TopicPolicy};
use tower_service::Service;

use crate::tools::*;

async fn read_back(backend: &MemoryBackend, partition: u32) -> Vec<(u64, u64)> {
    let range = ReadRange::new(topic(), partition, 0, NextOffset(u64::MAX));
    let mut reader = backend.read(range).await.unwrap();
    let mut out = Vec::new();
    while reader.next(7, &mut out).await.unwrap() > 0 {}
    out.into_iter().map(|(offset, message)| (offset, number(&message))).collect()
}

#[tokio::test]
async fn p7_call_appends_whether_its_future_is_polled_or_not() {
    let backend = broker(1).await;
    let mut producer = backend.producer();
    let mut futures = Vec::new();
    for n in 0..5_000 {
        poll_fn(|cx| producer.poll_ready(cx)).await.unwrap();
        let future = producer.call(numbered("k", n));
        if n % 3 == 0 {
            drop(future);
        } else {
            futures.push((n, future));
        }
    }
    futures.reverse();
    for (n, future) in futures {
        assert_eq!(future.await.unwrap().offset, n);
    }
    assert_eq!(read_back(&backend, 0).await, Vec::from_iter((0..5_000).map(|n| (n, n))));
}

#[tokio::test]
async fn p2_a_key_stays_in_its_partition_and_keyless_ones_go_round() {
    let backend = broker(4).await;
    let receipts = publish(&backend, "order-7", 0..10).await;
    assert!(receipts.iter().all(|receipt| receipt.partition == receipts[0].partition));
    let mut publisher = backend.publisher();
    let mut partitions = Vec::new();
    for _ in 0..8 {
        let receipt = publisher.publish(Publish::new(topic(), Message::new("x"))).await.unwrap();
        partitions.push(receipt.partition);
    }
    assert_eq!(partitions, [0, 1, 2, 3, 0, 1, 2, 3]);
}

#[tokio::test]
async fn a01_all_of_a_message_arrives_as_sent() {
    let backend = broker(1).await;
    let mut sent = Message::new(vec![0u8, 255, 1])
        .with_key(vec![0xff, 0])
        .with_timestamp(ebus_core::Timestamp::from_millis(-5));
    for (name, value) in [("b", &b"1"[..]), ("a", &[0, 0xff][..]), ("b", &b""[..])] {
        sent = sent.with_header(name, value.to_vec());
    }
    for payload in [0usize, 1, 1 << 20] {
        let mut message = sent.clone();
        message.payload = vec![7u8; payload].into();
        backend.publisher().publish(Publish::new(topic(), message)).await.unwrap();
    }
    let mut reader = backend.read(ReadRange::new(topic(), 0, 0, NextOffset(9))).await.unwrap();
    let mut out = Vec::new();
    assert_eq!(reader.next(9, &mut out).await.unwrap(), 3);
    assert_eq!(reader.next(9, &mut out).await.unwrap(), 0);
    for ((offset, message), len) in out.iter().zip([0, 1, 1 << 20]) {
        assert_eq!(message.payload.len(), len, "{offset}");
        assert_eq!(
            (&message.key, &message.headers, message.timestamp),
            (&sent.key, &sent.headers, sent.timestamp)
        );
    }
}

#[tokio::test]
async fn a02_too_large_is_refused_and_nothing_is_sent() {
    let backend = broker_with(1, config().with_max_message_bytes(10)).await;
    let mut publisher = backend.publisher();
    let message = Message::new("12345678").with_key("123");
    let error = publisher.publish(Publish::new(topic(), message)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let fits = Message::new("1234567").with_key("123");
    assert_eq!(publisher.publish(Publish::new(topic(), fits)).await.unwrap().offset, 0);
    assert_eq!(backend.capability().max_message_bytes, 10);
}

#[tokio::test]
async fn a05_a_topic_that_does_not_exist_follows_the_policy() {
    let strict = broker(1).await;
    let other = Topic::new("other").unwrap();
    let message = || Publish::new(other.clone(), Message::new("x"));
    assert_eq!(strict.publisher().publish(message()).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(strict.describe_topic(&other).await.unwrap_err().kind(), ErrorKind::NotFound);
    let easy = MemoryConfig::default().with_topic_policy(TopicPolicy::Create { partitions: 3 });
    let easy = MemoryBackend::new(easy).unwrap();
    easy.publisher().publish(message()).await.unwrap();
    assert_eq!(easy.describe_topic(&other).await.unwrap().partitions.len(), 3);
}

#[tokio::test]
async fn i07_creating_twice_is_the_same_and_another_shape_is_refused() {
    let backend = broker(3).await;
    publish(&backend, "k", 0..3).await;
    let again = backend.create_topic(&TopicSpec::new(topic(), 3)).await.unwrap();
    assert_eq!(again.partitions.iter().map(|p| p.end.0 - p.earliest).sum::<u64>(), 3);
    for spec in [TopicSpec::new(topic(), 4), TopicSpec::new(topic(), 0), TopicSpec::new(topic(), u32::MAX)] {
        let error = backend.create_topic(&spec).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{spec:?}");
    }
    let replicated = TopicSpec::new(topic(), 3).with_replicas(3);
    assert_eq!(backend.create_topic(&replicated).await.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn p5_places_in_flight_are_bounded_and_come_back() {
    let backend = broker_with(1, config().with_max_in_flight(2, 1 << 20)).await;
    let (mut one, mut two, mut three) = (backend.producer(), backend.producer(), backend.producer());
    poll_fn(|cx| one.poll_ready(cx)).await.unwrap();
    poll_fn(|cx| two.poll_ready(cx)).await.unwrap();
    assert!(poll_fn(|cx| Poll::Ready(three.poll_ready(cx))).await.is_pending());
    let mut clone = one.clone();
    assert!(poll_fn(|cx| Poll::Ready(clone.poll_ready(cx))).await.is_pending(), "a clone has no place");
    drop(one);
    poll_fn(|cx| three.poll_ready(cx)).await.unwrap();
    three.call(numbered("k", 0)).await.unwrap();
    poll_fn(|cx| clone.poll_ready(cx)).await.unwrap();
}

#[tokio::test]
async fn call_without_a_place_is_an_error_and_no_panic() {
    let backend = broker(1).await;
    let error = backend.producer().call(numbered("k", 0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unexpected);
    assert!(read_back(&backend, 0).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b01_many_publishers_lose_nothing_and_keep_their_order() {
    let backend = broker(4).await;
    let tasks = (0..8u64).map(|who| {
        let mut publisher = backend.publisher();
        tokio::spawn(async move {
            let mut receipts = Vec::new();
            for n in 0..2_000 {
                receipts.push(publisher.enqueue(numbered(&who.to_string(), who * 10_000 + n)).await.unwrap());
            }
            for receipt in receipts {
                receipt.await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let mut last = [None; 8];
    let mut count = 0;
    for partition in 0..4 {
        for (_, n) in read_back(&backend, partition).await {
            let who = (n / 10_000) as usize;
            assert!(last[who] < Some(n));
            last[who] = Some(n);
            count += 1;
        }
    }
    assert_eq!(count, 16_000);
}
