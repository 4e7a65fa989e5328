use std::time::Duration;

use ebus_core::{Backend, Epoch, ErrorKind, Retryability, SourceEvent};
use ebus_memory::{Chaos, Fault};

use crate::tools::*;

fn kinds(member: &Member) -> Vec<ErrorKind> {
    member.troubles.iter().map(|error| error.kind()).collect()
}

#[tokio::test(start_paused = true)]
async fn d04_revoked_and_handed_straight_back() {
    let backend = broker(1).await;
    publish(&backend, "k", 0..4).await;
    let mut one = Member::join(&backend).await;
    one.drain().await;
    one.finish(|n| n == 0 || n == 2);
    let faults = backend.broker().faults();
    faults.revoke(&group(), &partition(0)).unwrap();
    assert_eq!(
        faults.revoke(&group(), &partition(0)).unwrap_err().kind(),
        ErrorKind::NotFound,
        "once at a time"
    );
    publish(&backend, "k", 4..5).await;
    one.drain().await;
    assert_eq!(one.numbers(), [1, 3], "nothing more of it comes");
    one.release();
    one.drain().await;
    assert_eq!(one.released.len(), 1);
    assert_eq!(one.owned[&partition(0)].epoch, Epoch(2));
    assert_eq!(one.numbers(), [1, 3, 4], "in order, and what had finished not again");
}

#[tokio::test(start_paused = true)]
async fn d05_a_settlement_of_an_old_epoch_is_void() {
    let backend = broker(1).await;
    publish(&backend, "k", 0..2).await;
    let mut one = Member::join(&backend).await;
    one.drain().await;
    backend.broker().faults().lose(&group(), &partition(0)).unwrap();
    one.drain().await;
    assert_eq!((one.lost.len(), one.owned.len()), (1, 1));
    assert_eq!(one.numbers(), [0, 1, 0, 1]);
    let old = one.lost[0];
    let (void, current): (Vec<_>, _) =
        std::mem::take(&mut one.tokens).into_iter().partition(|(token, _)| token.owned() == old);
    one.tokens = void;
    one.finish(|_| true);
    assert_eq!(one.source.stale(), 2);
    one.drain_for(Duration::from_secs(1)).await;
    let kept = backend.committed(&group(), &topic()).await.unwrap().swap_remove(0);
    assert_eq!((kept.position.unwrap().watermark.0, kept.epoch), (0, Epoch(2)));
    one.tokens = current;
    one.finish(|_| true);
    one.drain_for(Duration::from_secs(1)).await;
    let kept = backend.committed(&group(), &topic()).await.unwrap().swap_remove(0);
    assert_eq!(kept.position.unwrap().watermark.0, 2);
}

#[tokio::test(start_paused = true)]
async fn d07_commits_that_fail_do_not_end_a_member_and_are_made_again() {
    let backend = broker(1).await;
    publish(&backend, "k", 0..4).await;
    let mut one = Member::join(&backend).await;
    one.drain().await;
    let faults = backend.broker().faults();
    faults.commits_fail(&group(), true).unwrap();
    one.finish(|n| n < 2);
    while one.troubles.is_empty() {
        one.recv(10).await;
    }
    assert_eq!(kinds(&one), [ErrorKind::Unavailable]);
    faults.revoke(&group(), &partition(0)).unwrap();
    while one.revoking.is_empty() {
        one.recv(10).await;
    }
    one.release();
    while one.released.is_empty() || one.owned.is_empty() {
        one.recv(10).await;
    }
    let error = one.released[0].1.clone().unwrap_err();
    assert_eq!((error.kind(), error.retryability()), (ErrorKind::Unavailable, Retryability::Safe));
    faults.commits_fail(&group(), false).unwrap();
    one.drain().await;
    assert_eq!(one.numbers(), [0, 1, 2, 3], "what no commit says runs again");
    one.finish(|_| true);
    one.close().await.unwrap();
    let kept = backend.committed(&group(), &topic()).await.unwrap().swap_remove(0);
    assert_eq!(kept.position.unwrap().watermark.0, 4);
}

#[tokio::test(start_paused = true)]
async fn d07_close_waits_for_its_last_commit_and_no_longer_than_told() {
    for recovers in [true, false] {
        let backend = broker(1).await;
        publish(&backend, "k", 0..1).await;
        let mut one = Member::join(&backend).await;
        one.drain().await;
        one.finish(|_| true);
        let faults = backend.broker().faults();
        faults.commits_fail(&group(), true).unwrap();
        let began = tokio::time::Instant::now();
        let (result, ()) = tokio::join!(one.source.close(Duration::from_secs(5)), async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            if recovers {
                faults.commits_fail(&group(), false).unwrap();
            }
        });
        assert_eq!(result.is_ok(), recovers);
        assert_eq!(began.elapsed(), Duration::from_secs(if recovers { 2 } else { 5 }));
        assert!(faults.members(&group()).is_empty(), "it has left all the same");
    }
}

#[tokio::test(start_paused = true)]
async fn d08_a_commit_of_a_partition_lost_without_notice_is_refused() {
    let backend = broker(1).await;
    publish(&backend, "k", 0..4).await;
    let mut one = Member::join(&backend).await;
    one.drain().await;
    let mut two = Member::join(&backend).await;
    let faults = backend.broker().faults();
    let second = faults.members(&group())[1];
    one.finish(|_| true);
    faults.lose_to(&group(), &partition(0), second).unwrap();
    two.drain().await;
    assert_eq!(two.numbers(), [0, 1, 2, 3]);
    one.drain_for(Duration::from_secs(1)).await;
    assert_eq!((one.lost.len(), one.owned.len()), (1, 0));
    let kept = backend.committed(&group(), &topic()).await.unwrap().swap_remove(0);
    assert_eq!((kept.position.unwrap().watermark.0, kept.epoch), (0, Epoch(2)));
}

#[tokio::test(start_paused = true)]
async fn d03_a_crashed_member_is_out_and_its_source_has_ended() {
    let backend = broker(2).await;
    publish(&backend, "k", 0..2).await;
    let mut one = Member::join(&backend).await;
    let mut two = Member::join(&backend).await;
    one.drain().await;
    one.finish(|_| true);
    let faults = backend.broker().faults();
    let first = faults.members(&group())[0];
    faults.crash(&group(), first).unwrap();
    two.drain().await;
    assert_eq!((two.partitions(), two.numbers()), (vec![0, 1], vec![0, 1]));
    for _ in 0..2 {
        let mut events: Vec<SourceEvent> = Vec::new();
        assert_eq!(one.source.recv(9, &mut events).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(events.is_empty());
    }
    assert_eq!(one.close().await.unwrap_err().kind(), ErrorKind::Fenced, "nothing of it was committed");
    assert_eq!(faults.crash(&group(), first).unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn d08_what_is_taken_away_before_the_last_commit_is_told_by_close() {
    let backend = broker(1).await;
    publish(&backend, "k", 0..2).await;
    let mut one = Member::join(&backend).await;
    one.drain().await;
    one.finish(|_| true);
    backend.broker().faults().lose(&group(), &partition(0)).unwrap();
    assert_eq!(one.close().await.unwrap_err().kind(), ErrorKind::Fenced);
}

#[tokio::test(start_paused = true)]
async fn c03_a_topic_that_is_down_refuses_and_comes_back() {
    let backend = broker(1).await;
    let faults = backend.broker().faults();
    faults.unavailable(&topic(), true).unwrap();
    let error = backend.publisher().publish(numbered("k", 0)).await.unwrap_err();
    assert_eq!((error.kind(), error.retryability()), (ErrorKind::Unavailable, Retryability::Safe));
    faults.unavailable(&topic(), false).unwrap();
    assert_eq!(publish(&backend, "k", 0..1).await[0].offset, 0);
}

#[tokio::test(start_paused = true)]
async fn messages_stored_twice_stand_side_by_side_and_late_receipts_are_late() {
    let backend = broker(1).await;
    let faults = backend.broker().faults();
    faults.store_twice(&topic(), 2).unwrap();
    faults.delay_receipts(&topic(), Duration::from_secs(3)).unwrap();
    let began = tokio::time::Instant::now();
    let mut publisher = backend.publisher();
    let mut futures = Vec::new();
    for n in 0..3 {
        futures.push(publisher.enqueue(numbered("k", n)).await.unwrap());
    }
    let mut one = Member::join(&backend).await;
    one.drain().await;
    assert_eq!(one.numbers(), [0, 0, 1, 1, 2]);
    assert!(began.elapsed() < Duration::from_secs(1), "stored long before their receipts");
    for (future, offset) in futures.into_iter().zip([1, 3, 4]) {
        assert_eq!(future.await.unwrap().offset, offset);
    }
    assert_eq!(began.elapsed(), Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_seed_draws_the_same_faults_again() {
    async fn draw(seed: u64) -> Vec<Option<Fault>> {
        let backend = broker(4).await;
        let mut members = [Member::join(&backend).await, Member::join(&backend).await];
        let mut chaos = Chaos::new(backend.broker().faults(), seed);
        let mut drawn = Vec::new();
        for _ in 0..40 {
            for member in &mut members {
                let mut events = Vec::new();
                let _ =
                    tokio::time::timeout(Duration::from_millis(1), member.source.recv(9, &mut events)).await;
                let revoking = events.into_iter().filter_map(|event| match event {
                    SourceEvent::Revoking { owned, .. } => Some(owned),
                    _ => None,
                });
                let revoking: Vec<_> = revoking.flatten().collect();
                member.source.release(&revoking);
            }
            drawn.push(chaos.step(&group(), &topic()));
        }
        chaos.calm();
        publish(&backend, "k", 0..1).await;
        drawn
    }
    let first = draw(7).await;
    assert_eq!(first, draw(7).await);
    assert_ne!(first, draw(8).await);
    assert!(first.iter().flatten().count() > 20);
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let backend = broker(1).await;
    let faults = backend.broker().faults();
    assert_eq!(faults.revoke(&group(), &partition(0)).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(faults.trim(&partition(9), 1).unwrap_err().kind(), ErrorKind::NotFound);
    let _member = Member::join(&backend).await;
    assert_eq!(faults.lose(&group(), &partition(9)).unwrap_err().kind(), ErrorKind::NotFound);
    faults.lose(&group(), &partition(0)).unwrap();
}
