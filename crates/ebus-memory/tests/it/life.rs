use std::time::Duration;

use ebus_core::{Backend, Epoch, ErrorKind};

use crate::tools::*;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn i01_closing_twice_and_at_once_gives_one_result() {
    let backend = broker_with(1, config().with_retention(1, 1 << 20)).await;
    let mut publisher = backend.publisher();
    publisher.publish(numbered("k", 0)).await.unwrap();
    let stuck = publisher.enqueue(numbered("k", 1)).await.unwrap();
    let (one, two) = tokio::join!(backend.close(SECOND), backend.close(SECOND * 60));
    let three = backend.clone().close(SECOND).await;
    for result in [one, two, three] {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.to_string().contains("1 messages were not stored"), "{error}");
    }
    assert_eq!(stuck.await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(broker(1).await.close(Duration::ZERO).await.map_err(|e| e.kind()), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_what_waits_while_its_sources_make_room() {
    let backend = broker_with(1, config().with_retention(1, 1 << 20)).await;
    let mut one = Member::join(&backend).await;
    let mut publisher = backend.publisher();
    let mut futures = Vec::new();
    for n in 0..5 {
        futures.push(publisher.enqueue(numbered("k", n)).await.unwrap());
    }
    let consume = async {
        while one.recv(9).await > 0 {
            one.finish(|_| true);
        }
        one
    };
    let (closed, one) = tokio::join!(backend.close(SECOND * 60), consume);
    closed.unwrap();
    for future in futures {
        future.await.unwrap();
    }
    assert_eq!((one.lost.len(), one.owned.len()), (1, 0), "ended, and told so");
}

#[tokio::test(start_paused = true)]
async fn i02_after_close_everything_says_closed() {
    let backend = broker(1).await;
    let mut one = Member::join(&backend).await;
    publish(&backend, "k", 0..2).await;
    one.drain().await;
    one.finish(|n| n == 0);
    let mut publisher = backend.publisher();
    backend.close(SECOND).await.unwrap();
    assert_eq!(publisher.publish(numbered("k", 9)).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(backend.publisher().publish(numbered("k", 9)).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(backend.source(options()).await.err().unwrap().kind(), ErrorKind::Closed);
    assert_eq!(backend.describe_topic(&topic()).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(one.recv(9).await, 1);
    assert_eq!((one.lost.len(), one.recv(9).await, one.recv(9).await), (1, 0, 0));
    let again = backend.broker().connect();
    let mut two = Member::join(&again).await;
    two.drain().await;
    assert_eq!(two.numbers(), [1], "the last commit was made, the log is as it was");
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_waits_for_a_place_is_told_of_the_close() {
    let backend = broker_with(1, config().with_max_in_flight(1, 1 << 20)).await;
    let mut holder = backend.producer();
    std::future::poll_fn(|cx| tower_service::Service::poll_ready(&mut holder, cx)).await.unwrap();
    let mut waiting = backend.publisher();
    let (error, closed) = tokio::join!(waiting.publish(numbered("k", 0)), backend.close(SECOND));
    closed.unwrap();
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Closed);
    let late = tower_service::Service::call(&mut holder, numbered("k", 0));
    assert_eq!(late.await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i03_publish_racing_with_close_stores_exactly_what_was_acknowledged() {
    for _ in 0..100 {
        let backend = broker_with(2, config().with_retention(50, 1 << 20)).await;
        let often = options().with_commit_interval(Duration::from_millis(1));
        let mut one = Member::join_with(&backend, often).await;
        let tasks: Vec<_> = (0..3)
            .map(|who: u64| {
                let mut publisher = backend.publisher();
                tokio::spawn(async move {
                    let mut stored = Vec::new();
                    for n in 0.. {
                        match publisher.publish(numbered(&who.to_string(), who * 1_000_000 + n)).await {
                            Ok(_) => stored.push(who * 1_000_000 + n),
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::Closed);
                                return stored;
                            }
                        }
                    }
                    unreachable!("ends by the close")
                })
            })
            .collect();
        let consumer = tokio::spawn(async move {
            let mut seen = Vec::new();
            while one.recv(100).await > 0 {
                seen.extend(one.finish(|_| true));
            }
            seen
        });
        tokio::time::sleep(Duration::from_millis(2)).await;
        let within = Duration::from_secs(10);
        tokio::time::timeout(within, backend.close(within)).await.expect("no hang").unwrap();
        let mut stored = Vec::new();
        for task in tasks {
            stored.extend(tokio::time::timeout(within, task).await.expect("no hang").unwrap());
        }
        let mut seen = tokio::time::timeout(within, consumer).await.expect("no hang").unwrap();
        let rest = backend.broker().connect();
        let mut two = Member::join(&rest).await;
        two.drain().await;
        seen.extend(two.finish(|_| true));
        seen.sort_unstable();
        stored.sort_unstable();
        assert_eq!(seen, stored);
    }
}

#[tokio::test(start_paused = true)]
async fn i04_a_dropped_close_can_be_made_again() {
    let backend = broker_with(1, config().with_retention(1, 1 << 20)).await;
    let mut one = Member::join(&backend).await;
    let mut publisher = backend.publisher();
    publisher.publish(numbered("k", 0)).await.unwrap();
    let second = publisher.enqueue(numbered("k", 1)).await.unwrap();
    assert!(tokio::time::timeout(SECOND, backend.close(SECOND * 60)).await.is_err());
    one.drain().await;
    one.finish(|_| true);
    let (closed, ()) = tokio::join!(backend.close(SECOND * 60), one.drain_for(SECOND));
    closed.unwrap();
    second.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_nobody_holds_is_freed() {
    let backend = broker(1).await;
    let source = backend.source(options()).await.unwrap();
    let weak = std::sync::Arc::new(());
    let held = std::sync::Arc::downgrade(&weak);
    let payload = ebus_core::Message::new(bytes_owner(weak));
    backend.publisher().publish(ebus_core::Publish::new(topic(), payload)).await.unwrap();
    drop(backend);
    assert!(held.upgrade().is_some(), "the source holds it");
    drop(source);
    assert!(held.upgrade().is_none());
}

/// Bytes that keep `owner` alive.
fn bytes_owner(owner: std::sync::Arc<()>) -> bytes::Bytes {
    struct Owned(#[expect(dead_code, reason = "held, never read")] std::sync::Arc<()>);
    impl AsRef<[u8]> for Owned {
        fn as_ref(&self) -> &[u8] {
            b"12345678"
        }
    }
    bytes::Bytes::from_owner(Owned(owner))
}

#[tokio::test]
async fn i02_parked_keys_of_a_closed_connection_say_closed() {
    let backend = broker(1).await;
    let parking = backend.parking(&group()).await.expect("is open");
    let place = partition(0);
    parking.claim(&place, Epoch(1)).await.expect("is open");
    backend.close(Duration::from_secs(1)).await.expect("closes");
    for result in [
        parking.claim(&place, Epoch(1)).await.map(drop),
        parking.keep(&place, Epoch(1), "x".into()).await,
        parking.read(&place).await.map(drop),
        parking.ask(&place, "x".into()).await,
        parking.asked(&place).await.map(drop),
        parking.answered(&place, &"x".into()).await,
    ] {
        assert_eq!(result.expect_err("closed").kind(), ErrorKind::Closed);
    }
}
