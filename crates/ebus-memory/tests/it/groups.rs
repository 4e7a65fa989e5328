use std::collections::HashSet;
use std::time::Duration;

use ebus_core::{Backend, ErrorKind, Source, Topic, TopicSpec};

use crate::tools::*;

#[tokio::test(start_paused = true)]
async fn b02_members_share_and_groups_do_not() {
    let backend = broker(4).await;
    for key in 0..50 {
        publish(&backend, &key.to_string(), key * 10..key * 10 + 10).await;
    }
    let mut one = Member::join(&backend).await;
    let mut two = Member::join(&backend).await;
    tokio::join!(one.drain(), two.drain());
    one.release();
    tokio::join!(one.drain(), two.drain());
    assert_eq!((one.partitions().len(), two.partitions().len()), (2, 2));
    let mut all = [one.numbers(), two.numbers()].concat();
    all.sort_unstable();
    assert_eq!(all, Vec::from_iter(0..500));
    let mut other = options();
    other.group = ebus_core::Group::new("other").unwrap();
    let mut other = Member::join_with(&backend, other).await;
    other.drain().await;
    assert_eq!(other.numbers().len(), 500);
}

#[tokio::test(start_paused = true)]
async fn p3_nothing_goes_to_the_new_owner_before_the_release() {
    let backend = broker(2).await;
    let mut one = Member::join(&backend).await;
    one.drain().await;
    assert_eq!(one.partitions(), [0, 1]);
    let mut two = Member::join(&backend).await;
    for key in 0..20 {
        publish(&backend, &key.to_string(), key..key + 1).await;
    }
    one.drain().await;
    assert_eq!(one.revoking.len(), 1);
    two.drain().await;
    assert!(two.owned.is_empty(), "not before the release");
    let kept = one.numbers();
    one.release();
    one.drain().await;
    assert!(one.released.iter().all(|(_, committed)| committed.is_ok()));
    two.drain().await;
    assert_eq!((one.partitions().len(), two.partitions().len()), (1, 1));
    assert!(!two.numbers().is_empty() && !kept.is_empty());
    let mut all = [one.numbers(), two.numbers()].concat();
    all.sort_unstable();
    assert_eq!(all, Vec::from_iter(0..20), "what was not settled is the new owner's");
    assert!(two.owned.values().all(|owned| owned.epoch.0 == 2));
}

#[tokio::test(start_paused = true)]
async fn d11_what_stays_keeps_flowing_while_a_hand_over_waits() {
    let backend = broker(2).await;
    let mut one = Member::join(&backend).await;
    let _two = Member::join(&backend).await;
    one.drain().await;
    let revoked = one.names[&one.revoking[0]].partition;
    for key in 0..20 {
        publish(&backend, &key.to_string(), key..key + 1).await;
    }
    one.drain().await;
    assert!(!one.tokens.is_empty());
    assert!(one.tokens.iter().all(|(token, _)| one.names[&token.owned()].partition != revoked));
}

#[tokio::test(start_paused = true)]
async fn d06_at_the_deadline_it_is_taken_away() {
    let backend = broker(1).await;
    publish(&backend, "k", 0..3).await;
    let mut one = Member::join_with(&backend, options().with_revoke_within(Duration::from_secs(5))).await;
    one.drain().await;
    let two_id = { backend.broker().faults().members(&group())[0] };
    let mut two = Member::join(&backend).await;
    let faults = backend.broker().faults();
    let second = faults.members(&group())[1];
    assert_ne!(second, two_id);
    faults.revoke_to(&group(), &partition(0), second).unwrap();
    let began = tokio::time::Instant::now();
    tokio::select! {
        () = one.drain_for(Duration::from_secs(60)) => panic!("waits"),
        () = async { while two.owned.is_empty() { two.recv(10).await; } } => {}
    }
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    one.drain().await;
    assert_eq!((one.lost.len(), one.released.len()), (1, 0));
    one.finish(|_| true);
    assert_eq!(one.source.stale(), 3, "what ends after the loss is void");
    two.drain().await;
    assert_eq!(two.numbers(), [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn d02_a_member_that_leaves_cleanly_leaves_no_duplicates_behind() {
    let backend = broker(2).await;
    for key in 0..20 {
        publish(&backend, &key.to_string(), key..key + 1).await;
    }
    let mut one = Member::join(&backend).await;
    one.drain().await;
    let mut two = Member::join(&backend).await;
    // Number 0 stays open and holds its partition's watermark back.
    one.finish(|n| n != 0);
    one.close().await.unwrap();
    two.drain().await;
    assert_eq!(two.numbers(), [0]);
    assert_eq!(two.partitions(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn d03_a_member_that_is_dropped_gives_all_to_the_others_without_a_commit() {
    let backend = broker(2).await;
    publish(&backend, "k", 0..10).await;
    let mut one = Member::join(&backend).await;
    one.drain().await;
    one.finish(|n| n < 4);
    one.drain_for(Duration::from_millis(300)).await;
    one.finish(|n| n < 8);
    drop(one);
    let mut two = Member::join(&backend).await;
    two.drain().await;
    assert_eq!(two.numbers(), Vec::from_iter(4..10), "again only what no commit says");
    assert_eq!(two.partitions(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_member_is_put_out_and_joins_again() {
    let backend = broker_with(2, config().with_max_idle(Duration::from_secs(3))).await;
    publish(&backend, "k", 0..4).await;
    let mut one = Member::join(&backend).await;
    one.drain().await;
    let mut two = Member::join_with(&backend, options().with_revoke_within(Duration::from_secs(60))).await;
    let began = tokio::time::Instant::now();
    while two.owned.len() < 2 {
        two.recv(100).await;
    }
    assert_eq!(began.elapsed(), Duration::from_secs(3), "at once when the time is over");
    one.finish(|_| true);
    one.drain().await;
    assert_eq!(one.lost.len(), 2);
    assert_eq!(one.troubles.iter().map(|e| e.kind()).collect::<Vec<_>>(), [ErrorKind::Timeout]);
    two.drain().await;
    assert_eq!(two.revoking.len(), 1, "it is back and wants its share");
    assert_eq!(two.numbers(), [0, 1, 2, 3], "nothing of it was committed");
}

#[tokio::test(start_paused = true)]
async fn a_lone_member_that_was_idle_says_so_too() {
    let backend = broker_with(1, config().with_max_idle(Duration::from_secs(3))).await;
    publish(&backend, "k", 0..2).await;
    let mut one = Member::join(&backend).await;
    one.drain().await;
    tokio::time::advance(Duration::from_secs(4)).await;
    one.drain().await;
    assert_eq!((one.lost.len(), one.owned.len()), (1, 1));
    assert_eq!(one.numbers(), [0, 1, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn g04_topics_are_taken_up_and_given_back_by_subscription() {
    let backend = broker(2).await;
    let late = Topic::new("late").unwrap();
    let mut one = Member::join(&backend).await;
    one.drain().await;
    one.source.subscribe(&[topic(), late.clone()]);
    one.drain().await;
    assert_eq!(one.troubles.iter().map(|e| e.kind()).collect::<Vec<_>>(), [ErrorKind::NotFound]);
    backend.create_topic(&TopicSpec::new(late.clone(), 3)).await.unwrap();
    one.drain().await;
    assert_eq!(one.owned.len(), 5, "taken up as soon as it exists");
    one.source.subscribe(&[late]);
    one.drain().await;
    assert_eq!(one.revoking.len(), 2);
    one.release();
    one.drain().await;
    assert_eq!((one.owned.len(), one.released.len()), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn a_source_of_an_unknown_topic_is_refused() {
    let backend = broker(1).await;
    let mut wrong = options();
    wrong.topics.push(Topic::new("typo").unwrap());
    let error = backend.source(wrong).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(backend.broker().faults().members(&group()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn g02_a_paused_partition_is_owned_and_not_read() {
    let backend = broker(1).await;
    let mut one = Member::join(&backend).await;
    one.drain().await;
    let owned = one.owned[&partition(0)];
    one.source.pause(&[owned]);
    publish(&backend, "k", 0..3).await;
    one.drain().await;
    assert!(one.tokens.is_empty());
    one.source.resume(&[owned]);
    one.drain().await;
    assert_eq!(one.numbers(), [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn f04_a_full_span_stops_its_partition_alone_and_settling_resumes_it() {
    let backend = broker(2).await;
    let limits = ebus_core::LedgerLimits::default().with_max_span(4);
    let mut one = Member::join_with(&backend, options().with_limits(limits)).await;
    publish(&backend, "stuck", 0..10).await;
    one.drain().await;
    assert_eq!(one.numbers(), [0, 1, 2, 3]);
    let stuck = one.tokens[0].0.owned();
    assert_eq!(one.full, HashSet::from([stuck]), "and says so");
    let stuck = one.names[&stuck].partition;
    let other = (0..).map(|n: u32| format!("k{n}")).find(|key| partition_among_two(key) != stuck);
    publish(&backend, &other.unwrap(), 100..103).await;
    one.drain().await;
    assert_eq!(one.numbers(), [0, 1, 2, 3, 100, 101, 102], "the other goes on");
    one.finish(|n| n < 100);
    one.drain().await;
    assert_eq!(one.numbers(), [100, 101, 102, 4, 5, 6, 7]);
    assert_eq!(one.full.len(), 1, "it has not rested in between");
    one.finish(|n| n == 4);
    one.finish(|n| n == 6);
    one.drain().await;
    assert_eq!((one.numbers().last(), one.full.len()), (Some(&8), 1), "9 is there");
    one.finish(|n| n < 100);
    one.drain().await;
    assert_eq!((one.numbers().last(), one.full.len()), (Some(&9), 0), "nothing more is there");
}

/// The partition of a key among two, found by publishing to a broker of its own.
fn partition_among_two(key: &str) -> u32 {
    let key = key.to_owned();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { publish(&broker(2).await, &key, 0..1).await[0].partition })
    })
    .join()
    .unwrap()
}

#[tokio::test(start_paused = true)]
async fn room_is_never_exceeded_and_none_means_events_only() {
    let backend = broker(3).await;
    for key in 0..30 {
        publish(&backend, &key.to_string(), key..key + 1).await;
    }
    let mut one = Member::join(&backend).await;
    assert_eq!(one.recv(0).await, 1, "the assignment");
    assert!(tokio::time::timeout(Duration::from_secs(5), one.recv(0)).await.is_err());
    assert_eq!(one.recv(7).await, 7);
    assert_eq!(one.recv(100).await, 23);
}

#[tokio::test]
async fn a_send_wakes_a_member_that_waits() {
    let backend = broker(3).await;
    let mut one = Member::join(&backend).await;
    one.recv(1).await;
    for n in 0..200 {
        let key = n.to_string();
        let (count, _) = tokio::join!(one.recv(8), publish(&backend, &key, n..n + 1));
        assert_eq!(count, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_recv_loses_nothing() {
    let backend = broker(1).await;
    let mut one = Member::join(&backend).await;
    for n in 0..50 {
        let mut dropped = Vec::new();
        tokio::select! {
            biased;
            _ = one.source.recv(10, &mut dropped), if n > 0 => {}
            () = tokio::task::yield_now() => {}
        }
        assert!(dropped.is_empty());
        publish(&backend, "k", n..n + 1).await;
        while one.numbers().len() < n as usize + 1 {
            one.recv(10).await;
        }
    }
    assert_eq!(one.numbers(), Vec::from_iter(0..50));
}

#[tokio::test(start_paused = true)]
async fn releases_that_nobody_asked_for_are_void_and_counted() {
    let backend = broker(1).await;
    let mut one = Member::join(&backend).await;
    one.drain().await;
    let owned = one.owned[&partition(0)];
    one.source.release(&[owned]);
    one.drain().await;
    assert_eq!((one.source.stale(), one.owned.len()), (1, 1));
    fn is_send<T: Send + ?Sized>() {}
    is_send::<dyn Source>();
}
