use std::time::Duration;

use ebus_core::{
    Backend, Epoch, ErrorKind, LedgerLimits, Message, NextOffset, Position, Publish, StartPosition, Timestamp,
};
use ebus_memory::MemoryBackend;

use crate::tools::*;

async fn committed(backend: &MemoryBackend) -> Option<(u64, u64, Epoch)> {
    let kept = backend.committed(&group(), &topic()).await.unwrap().swap_remove(0);
    kept.position.map(|position| (position.watermark.0, position.finished.count(), kept.epoch))
}

#[tokio::test(start_paused = true)]
async fn e01_a_restart_goes_on_after_the_last_finished_message() {
    let backend = broker(1).await;
    publish(&backend, "k", 0..10).await;
    let mut one = Member::join(&backend).await;
    one.drain().await;
    one.finish(|n| n < 6);
    one.close().await.unwrap();
    assert_eq!(committed(&backend).await, Some((6, 0, Epoch(1))));
    backend.close(Duration::from_secs(1)).await.unwrap();
    let backend = backend.broker().connect();
    let mut two = Member::join(&backend).await;
    two.drain().await;
    assert_eq!(two.numbers(), [6, 7, 8, 9]);
}

#[tokio::test(start_paused = true)]
async fn d13_take_over_kill_take_over_runs_nothing_again_that_was_committed() {
    let backend = broker(1).await;
    publish(&backend, "k", 0..12).await;
    let mut one = Member::join(&backend).await;
    one.drain().await;
    one.finish(|n| n % 3 == 1);
    one.drain_for(Duration::from_secs(1)).await;
    drop(one);
    assert_eq!(committed(&backend).await, Some((0, 4, Epoch(1))));
    let mut two = Member::join(&backend).await;
    two.drain().await;
    assert_eq!(two.numbers(), [0, 2, 3, 5, 6, 8, 9, 11]);
    two.finish(|n| n == 0 || n == 2);
    two.drain_for(Duration::from_secs(1)).await;
    drop(two);
    let mut three = Member::join(&backend).await;
    three.drain().await;
    assert_eq!(three.numbers(), [3, 5, 6, 8, 9, 11]);
    assert_eq!(committed(&backend).await, Some((3, 3, Epoch(3))));
}

#[tokio::test(start_paused = true)]
async fn d13_the_inherited_set_outlives_an_owner_that_read_nothing() {
    let backend = broker(1).await;
    publish(&backend, "k", 0..6).await;
    let mut one = Member::join(&backend).await;
    one.drain().await;
    one.finish(|n| n > 2);
    one.drain_for(Duration::from_secs(1)).await;
    drop(one);
    for epoch in 2..5 {
        let killed = Member::join(&backend).await;
        assert_eq!(
            committed(&backend).await,
            Some((0, 3, Epoch(epoch))),
            "the epoch is kept before any delivery"
        );
        drop(killed);
    }
    let mut last = Member::join(&backend).await;
    last.drain().await;
    assert_eq!(last.numbers(), [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn p6_what_finished_is_committed_every_interval() {
    let backend = broker(1).await;
    publish(&backend, "k", 0..4).await;
    let mut one = Member::join_with(&backend, options().with_commit_interval(Duration::from_secs(2))).await;
    one.drain().await;
    one.finish(|n| n == 0);
    one.drain_for(Duration::from_millis(1_500)).await;
    assert_eq!(committed(&backend).await, Some((0, 0, Epoch(1))));
    one.drain_for(Duration::from_millis(1_000)).await;
    assert_eq!(committed(&backend).await, Some((1, 0, Epoch(1))));
}

#[tokio::test(start_paused = true)]
async fn b03_a_group_begins_where_it_was_told() {
    let backend = broker(1).await;
    let mut publisher = backend.publisher();
    for n in 0..10u64 {
        let message = numbered("k", n).message.with_timestamp(Timestamp::from_millis(n as i64 * 10));
        publisher.publish(Publish::new(topic(), message)).await.unwrap();
    }
    for (start, first) in [
        (StartPosition::Earliest, 0),
        (StartPosition::Latest, 10),
        (StartPosition::Time(Timestamp::from_millis(35)), 4),
        (StartPosition::Time(Timestamp::from_millis(0)), 0),
        (StartPosition::Time(Timestamp::from_millis(1_000)), 10),
    ] {
        let member = Member::join_with(&backend, options().with_start(start)).await;
        assert_eq!(committed(&backend).await.unwrap().0, first, "kept before join resolved: {start:?}");
        drop(member);
        backend.broker().delete_group(&group()).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn e07_latest_misses_nothing_after_join_and_holds_for_a_new_group_only() {
    let backend = broker(1).await;
    publish(&backend, "k", 0..5).await;
    let latest = || options().with_start(StartPosition::Latest);
    let killed = Member::join_with(&backend, latest()).await;
    publish(&backend, "k", 5..8).await;
    drop(killed);
    let mut two = Member::join_with(&backend, latest()).await;
    two.drain().await;
    assert_eq!(two.numbers(), [5, 6, 7]);
    let late = ebus_core::Topic::new("late").unwrap();
    two.source.subscribe(&[topic(), late.clone()]);
    two.drain().await;
    backend.create_topic(&ebus_core::TopicSpec::new(late.clone(), 1)).await.unwrap();
    backend.publisher().publish(Publish::new(late, Message::new(vec![0; 8]))).await.unwrap();
    two.drain().await;
    assert_eq!(two.numbers(), [5, 6, 7, 0], "a partition added later is read from its beginning");
}

/// Leaves a group at offset 4 with 6 finished above it, and a log of 10.
async fn left_behind() -> MemoryBackend {
    let backend = broker(1).await;
    publish(&backend, "k", 0..10).await;
    let mut one = Member::join(&backend).await;
    one.drain().await;
    one.finish(|n| n < 4 || n == 6);
    one.close().await.unwrap();
    backend
}

async fn come_back(backend: &MemoryBackend) -> (Vec<u64>, Vec<ErrorKind>) {
    let mut two = Member::join(backend).await;
    two.drain().await;
    assert!(two.owned.values().all(|owned| owned.epoch == Epoch(2)), "epochs grow whatever the text says");
    (two.numbers(), two.troubles.iter().map(|error| error.kind()).collect())
}

#[tokio::test(start_paused = true)]
async fn e04_a_position_below_the_log_goes_on_at_its_head_and_says_so() {
    let backend = left_behind().await;
    backend.broker().faults().trim(&partition(0), 6).unwrap();
    assert_eq!(come_back(&backend).await, (vec![7, 8, 9], vec![ErrorKind::Decode]));
}

#[tokio::test(start_paused = true)]
async fn e04_a_position_beyond_the_log_begins_anew_and_says_so() {
    let backend = left_behind().await;
    let mark = ebus_core::LogMark(1);
    let beyond = Position::at(NextOffset(99)).encode(mark, Epoch(1));
    let faults = backend.broker().faults();
    faults.overwrite_position(&group(), &partition(0), NextOffset(99), beyond.as_bytes()).unwrap();
    let (numbers, troubles) = come_back(&backend).await;
    assert_eq!((numbers, troubles), (Vec::from_iter(0..10), vec![ErrorKind::Decode]));
}

#[tokio::test(start_paused = true)]
async fn e06_damaged_metadata_leaves_the_bare_offset() {
    for text in [&b""[..], b"\xff\xfe binary", b"somebody else's", b"e1.0.0.4.r.00000000"] {
        let backend = left_behind().await;
        let faults = backend.broker().faults();
        faults.overwrite_position(&group(), &partition(0), NextOffset(4), text).unwrap();
        let found = come_back(&backend).await;
        assert_eq!(found, (vec![4, 5, 6, 7, 8, 9], vec![ErrorKind::Decode]), "{text:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn e06_a_topic_made_anew_is_read_from_its_beginning() {
    let backend = left_behind().await;
    backend.broker().faults().remake_topic(&topic()).unwrap();
    publish(&backend, "k", 100..108).await;
    assert_eq!(come_back(&backend).await, (Vec::from_iter(100..108), vec![ErrorKind::Decode]));
}

#[tokio::test(start_paused = true)]
async fn e06_a_topic_made_anew_under_a_live_member_is_lost_and_found() {
    let backend = broker(2).await;
    let mut one = Member::join(&backend).await;
    publish(&backend, "k", 0..5).await;
    one.drain().await;
    backend.broker().faults().remake_topic(&topic()).unwrap();
    publish(&backend, "k", 10..15).await;
    one.drain().await;
    assert_eq!((one.lost.len(), one.owned.len()), (2, 2));
    assert_eq!(one.numbers(), [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]);
}

#[tokio::test(start_paused = true)]
async fn e03_gaps_of_any_size_do_not_stop_commits() {
    let backend = broker(1).await;
    let limits = LedgerLimits::default().with_max_span(8);
    let mut one = Member::join_with(&backend, options().with_limits(limits)).await;
    for n in 0..20 {
        publish(&backend, "k", n..n + 1).await;
        backend.broker().faults().skip_offsets(&partition(0), 1_000_000).unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 20 {
        one.drain().await;
        assert!(one.tokens.len() <= 8);
        seen.extend(one.finish(|_| true));
    }
    one.close().await.unwrap();
    assert_eq!(seen, Vec::from_iter(0..20));
    assert_eq!(committed(&backend).await, Some((19 * 1_000_001 + 1, 0, Epoch(1))));
    let mut two = Member::join(&backend).await;
    publish(&backend, "k", 20..21).await;
    two.drain().await;
    assert_eq!(two.numbers(), [20]);
}

#[tokio::test(start_paused = true)]
async fn e03_a_head_trimmed_under_a_reader_is_told() {
    let backend = broker(1).await;
    let limits = LedgerLimits::default().with_max_span(2);
    let mut one = Member::join_with(&backend, options().with_limits(limits)).await;
    publish(&backend, "k", 0..200).await;
    one.drain().await;
    backend.broker().faults().trim(&partition(0), 150).unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&199) {
        seen.extend(one.finish(|_| true));
        one.drain().await;
    }
    assert!(seen.is_sorted());
    assert!(seen.ends_with(&Vec::from_iter(150..200)), "{seen:?}");
    assert_eq!(one.troubles.iter().map(|e| e.kind()).collect::<Vec<_>>(), [ErrorKind::NotFound]);
}
