use std::time::Duration;

use ebus_core::{Backend, ErrorKind, Message, NextOffset, Publish, PublishFuture};
use ebus_memory::MemoryBackend;
use tokio::time::timeout;

use crate::tools::*;

const SHORT: Duration = Duration::from_millis(10);

async fn enqueue(backend: &MemoryBackend, numbers: std::ops::Range<u64>) -> Vec<PublishFuture> {
    let mut publisher = backend.publisher();
    let mut futures = Vec::new();
    for n in numbers {
        futures.push(publisher.enqueue(numbered("k", n)).await.unwrap());
    }
    futures
}

#[tokio::test(start_paused = true)]
async fn p5_a_full_log_holds_publishes_back_in_order_and_a_commit_lets_them_go() {
    let backend = broker_with(1, config().with_retention(4, 1 << 20)).await;
    let mut one = Member::join(&backend).await;
    let mut futures = enqueue(&backend, 0..10).await;
    let waiting = futures.split_off(4);
    for future in futures {
        future.await.unwrap();
    }
    let mut waiting = waiting.into_iter();
    let mut fourth = waiting.next().unwrap();
    assert!(timeout(SHORT, &mut fourth).await.is_err(), "nothing is committed");
    drop(waiting.next());
    one.drain().await;
    assert_eq!(one.numbers(), [0, 1, 2, 3]);
    one.finish(|n| n == 1);
    one.drain_for(Duration::from_secs(1)).await;
    assert!(timeout(SHORT, &mut fourth).await.is_err(), "the oldest is not finished");
    one.finish(|n| n == 0);
    one.drain_for(Duration::from_secs(1)).await;
    assert_eq!(fourth.await.unwrap().offset, 4);
    assert_eq!(one.numbers(), [2, 3, 4, 5], "also the one whose future was dropped");
    let info = backend.describe_topic(&topic()).await.unwrap().partitions[0];
    assert_eq!((info.earliest, info.end), (2, NextOffset(6)));
    let mut rest = Vec::new();
    while rest.len() < 8 {
        rest.extend(one.finish(|_| true));
        one.drain_for(Duration::from_secs(1)).await;
    }
    assert_eq!(rest, Vec::from_iter(2..10));
    for (future, offset) in waiting.zip(6..) {
        assert_eq!(future.await.unwrap().offset, offset);
    }
}

#[tokio::test(start_paused = true)]
async fn p1_the_slowest_group_decides_what_may_go() {
    let backend = broker_with(1, config().with_retention(2, 1 << 20)).await;
    let mut quick = Member::join(&backend).await;
    let mut other = options();
    other.group = ebus_core::Group::new("slow").unwrap();
    let mut slow = Member::join_with(&backend, other.clone()).await;
    let mut futures = enqueue(&backend, 0..3).await;
    let mut third = futures.pop().unwrap();
    quick.drain().await;
    quick.finish(|_| true);
    quick.drain_for(Duration::from_secs(1)).await;
    assert!(timeout(SHORT, &mut third).await.is_err());
    slow.drain().await;
    assert_eq!(slow.numbers(), [0, 1]);
    slow.close().await.unwrap();
    assert!(timeout(SHORT, &mut third).await.is_err(), "a group without members keeps its place");
    assert_eq!(backend.broker().delete_group(&group()).unwrap_err().kind(), ErrorKind::ConfigInvalid);
    backend.broker().delete_group(&other.group).unwrap();
    assert_eq!(third.await.unwrap().offset, 2, "until it is deleted");
    assert_eq!(backend.broker().delete_group(&other.group).unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn p8_a_topic_that_nobody_reads_fills_and_then_waits() {
    let backend = broker_with(1, config().with_retention(3, 1 << 20)).await;
    let mut futures = enqueue(&backend, 0..4).await;
    let mut last = futures.pop().unwrap();
    assert!(timeout(Duration::from_secs(3600), &mut last).await.is_err());
    let mut one = Member::join(&backend).await;
    one.drain().await;
    assert_eq!(one.numbers(), [0, 1, 2]);
    one.finish(|_| true);
    one.drain_for(Duration::from_secs(1)).await;
    last.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn p5_bytes_are_bounded_too_and_one_message_always_fits() {
    let backend = broker_with(1, config().with_retention(1_000, 100).with_max_message_bytes(1_000)).await;
    let mut publisher = backend.publisher();
    let sized = |bytes: usize| Publish::new(topic(), Message::new(vec![0; bytes]));
    publisher.publish(sized(500)).await.unwrap();
    let mut second = publisher.enqueue(sized(50)).await.unwrap();
    assert!(timeout(SHORT, &mut second).await.is_err());
    let mut one = Member::join(&backend).await;
    while one.tokens.is_empty() {
        one.recv(9).await;
    }
    let mut settled =
        one.tokens.drain(..).map(|(token, _)| (token, ebus_core::Settlement::Finished)).collect();
    one.source.settle(&mut settled);
    one.drain_for(Duration::from_secs(1)).await;
    assert_eq!(second.await.unwrap().offset, 1);
    assert_eq!(one.tokens.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn p7_a_small_message_does_not_overtake_a_large_one_that_waits() {
    let backend = broker_with(1, config().with_retention(1_000, 100)).await;
    let mut publisher = backend.publisher();
    let sized = |bytes: usize| Publish::new(topic(), Message::new(vec![0; bytes]).with_key("k"));
    publisher.publish(sized(60)).await.unwrap();
    let large = publisher.enqueue(sized(60)).await.unwrap();
    let mut small = publisher.enqueue(sized(8)).await.unwrap();
    assert!(timeout(SHORT, &mut small).await.is_err(), "there is room for it, but it is not its turn");
    let mut one = Member::join(&backend).await;
    one.drain().await;
    let mut settled =
        one.tokens.drain(..).map(|(token, _)| (token, ebus_core::Settlement::Finished)).collect();
    one.source.settle(&mut settled);
    one.drain_for(Duration::from_secs(1)).await;
    assert_eq!((large.await.unwrap().offset, small.await.unwrap().offset), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn p5_bytes_that_wait_close_the_gate() {
    let config = config().with_retention(1, 1 << 20).with_max_in_flight(100, 20);
    let backend = broker_with(1, config).await;
    let mut publisher = backend.publisher();
    publisher.publish(numbered("k", 0)).await.unwrap();
    // 9 bytes each: the third takes the bytes in flight above 20.
    let mut waiting = Vec::new();
    for n in 1..4 {
        waiting.push(timeout(SHORT, publisher.enqueue(numbered("k", n))).await.expect("fits").unwrap());
    }
    assert!(timeout(SHORT, publisher.enqueue(numbered("k", 4))).await.is_err());
    let mut one = Member::join(&backend).await;
    for expected in 0..4 {
        one.drain().await;
        assert_eq!(one.finish(|_| true), [expected]);
        one.drain_for(Duration::from_secs(1)).await;
    }
    timeout(SHORT, publisher.enqueue(numbered("k", 4))).await.expect("open again").unwrap().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_all_that_fits() {
    let backend = broker_with(1, config().with_retention(3_000, 1 << 20)).await;
    let mut one = Member::join(&backend).await;
    for piece in 0..10 {
        publish(&backend, "k", piece * 1_000..piece * 1_000 + 1_000).await;
        one.drain().await;
        assert_eq!(one.finish(|_| true).len(), 1_000);
        one.drain_for(Duration::from_secs(1)).await;
    }
    let info = backend.describe_topic(&topic()).await.unwrap().partitions[0];
    assert_eq!((info.earliest, info.end), (7_000, NextOffset(10_000)));
    let mut late = options();
    late.group = ebus_core::Group::new("late").unwrap();
    let mut late = Member::join_with(&backend, late).await;
    late.drain().await;
    assert_eq!(late.numbers(), Vec::from_iter(7_000..10_000));
    assert!(late.troubles.is_empty());
}
