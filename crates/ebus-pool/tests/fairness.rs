//! Slots and permits reach whoever waits for them (G4).

mod common;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use common::*;
use ebus_core::{Delivery, Lease, Outcome, SourceEvent, Topic};
use ebus_pool::{Pool, RetryPolicy};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

/// One slot, two shards, three keys that fail for ever: one shard has two of them, passes the slot from one to the other, and
/// never gives it back.
#[tokio::test(start_paused = true)]
async fn p4_a_shard_whose_keys_fail_for_ever_does_not_starve_the_other() {
    let (mut script, source) = script();
    let pool = Pool::start(source, config().with_max_in_flight(1).with_retry(RetryPolicy::fixed(MS)))
        .expect("valid");
    pool.subscribe(
        topic(),
        handler(|delivery| async move {
            tokio::time::sleep(10 * MS).await;
            if delivery.key().is_some_and(|key| key.to_string().starts_with("bad")) {
                reject()
            } else {
                Outcome::Ack
            }
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    for i in 0..3 {
        script.deliver(owned, Some(&format!("bad-{i}")));
    }
    until("they fail", || pool.counters().retries > 5).await;
    for i in 0..40 {
        script.deliver(owned, Some(&format!("good-{i}")));
    }
    // 600 s for 0.4 s of work.
    let begun = tokio::time::Instant::now();
    while script.finished().len() < 40 {
        assert!(begun.elapsed() < 600 * S, "{} of 40 good keys are done", script.finished().len());
        tokio::time::sleep(100 * MS).await;
    }
}

/// One slot, one shard, two topics: the routes are looked at in the order of their subscription, and the first takes each slot
/// that comes free as long as it has anything ready.
#[tokio::test(start_paused = true)]
async fn p4_a_topic_whose_keys_fail_for_ever_does_not_starve_another_topic() {
    let (mut script, source) = script();
    let config = config().with_shards(1).with_max_in_flight(1).with_retry(RetryPolicy::fixed(MS));
    let pool = Pool::start(source, config).expect("valid");
    pool.subscribe(
        topic(),
        handler(|_| async {
            tokio::time::sleep(10 * MS).await;
            reject()
        }),
    )
    .expect("open");
    let users = Topic::new("users").expect("legal");
    pool.subscribe(users.clone(), handler(|_| async { Outcome::Ack })).expect("open");
    let bad = script.assign(0);
    let assigned = script.ownership().assign(
        ebus_core::PartitionId::new(users, 0),
        ebus_core::Epoch(1),
        &ebus_core::Position::default(),
        Lease::unlimited(),
    );
    let good = assigned.owned;
    script.send(SourceEvent::Assigned { owned: vec![assigned] });
    for key in ["a", "b", "c"] {
        script.deliver(bad, Some(key));
    }
    until("they fail", || pool.counters().retries > 5).await;
    script.deliver(good, Some("x"));
    let begun = tokio::time::Instant::now();
    while script.finished().is_empty() {
        assert!(begun.elapsed() < 600 * S, "the other topic's message never started");
        tokio::time::sleep(100 * MS).await;
    }
}

/// As `tower::limit::ConcurrencyLimit`: clones share a semaphore, `poll_ready` queues for a permit and keeps its place.
struct Limited {
    semaphore: tokio_util::sync::PollSemaphore,
    permit: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl Clone for Limited {
    fn clone(&self) -> Self {
        Self { semaphore: self.semaphore.clone(), permit: None }
    }
}

impl tower::Service<Delivery> for Limited {
    type Response = Outcome;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Outcome, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.permit.is_none() {
            self.permit = ready!(self.semaphore.poll_acquire(cx));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Delivery) -> Self::Future {
        let permit = self.permit.take().expect("polled ready");
        Box::pin(async move {
            tokio::time::sleep(S).await;
            drop(permit);
            Ok(Outcome::Ack)
        })
    }
}

/// Partition 1 alone uses one of the shards; it is revoked while that shard's clone waits for the one permit. The permit goes to
/// that clone, which never calls, and the other shard waits for ever.
#[tokio::test(start_paused = true)]
async fn p4_a_permit_that_a_shard_waited_for_is_given_back_when_its_work_is_gone() {
    for key in 0..8 {
        let (mut script, source) = script();
        let pool = Pool::start(source, config()).expect("valid");
        let semaphore = tokio_util::sync::PollSemaphore::new(Arc::new(tokio::sync::Semaphore::new(1)));
        pool.subscribe(topic(), Limited { semaphore, permit: None }).expect("open");
        let stays = script.assign(0);
        let goes = script.assign(1);
        script.deliver(stays, Some("x"));
        tokio::time::sleep(10 * MS).await;
        // For some keys this is the other shard, whose clone now queues for the permit.
        script.deliver(goes, Some(&format!("k{key}")));
        tokio::time::sleep(10 * MS).await;
        script.revoke(goes, 100 * MS);
        tokio::time::sleep(10 * MS).await;
        script.deliver(stays, Some("x"));
        let begun = tokio::time::Instant::now();
        while script.finished().len() < 2 {
            assert!(begun.elapsed() < 600 * S, "k{key}: {:?}", script.said());
            tokio::time::sleep(100 * MS).await;
        }
    }
}

/// The other one is quick, and needs what this one holds.
#[tokio::test(start_paused = true)]
async fn p4_a_partition_that_holds_more_than_its_share_is_not_read_until_it_holds_less() {
    let (mut script, source) = script();
    let pool = Pool::start(source, config().with_budget_messages(1_024)).expect("valid");
    let stuck = Arc::new(tokio::sync::Semaphore::new(0));
    let ends = stuck.clone();
    pool.subscribe(
        topic(),
        handler(move |_| {
            let ends = ends.clone();
            async move {
                let _ = ends.acquire().await;
                Outcome::Ack
            }
        }),
    )
    .expect("open");
    let hot = script.assign(0);
    script.assign(1);
    for _ in 0..600 {
        script.deliver(hot, Some("hot"));
    }
    until("it is not read", || script.said() == [Said::Paused { partition: 0 }]).await;
    stuck.add_permits(1);
    until("it is read", || script.said().contains(&Said::Resumed { partition: 0 })).await;
    let state = pool.state().await;
    assert!(!state.partitions.iter().any(|partition| partition.paused), "{state:?}");
}

/// Nothing wakes it: who waits for its slot would wait for its next message.
#[tokio::test(start_paused = true)]
async fn p4_a_shard_that_rests_holds_no_slot() {
    let (mut script, source) = script();
    let pool = Pool::start(source, config().with_max_in_flight(1)).expect("valid");
    pool.subscribe(topic(), handler(|_| async { Outcome::Ack })).expect("open");
    let owned = script.assign(0);
    for count in 1..=16 {
        // Of 16 keys, both shards have some.
        script.deliver(owned, Some(&format!("k{count}")));
        until("it is done", || script.finished().len() == count).await;
    }
}

/// Nearly full is a budget of which less than the 64th part is free. In real time: beside a driver that spins, paused time would stand still.
#[tokio::test]
async fn p5_a_nearly_full_pool_goes_on_reading() {
    let (mut script, source) = script();
    let pool = Pool::start(source, config().with_budget_messages(6_400)).expect("valid");
    pool.subscribe(
        topic(),
        handler(|delivery| async move {
            if delivery.key().is_some_and(|key| *key == "stuck".into()) {
                std::future::pending::<()>().await;
            }
            Outcome::Ack
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    for _ in 0..6_350 {
        script.deliver(owned, Some("stuck"));
    }
    for i in 0..200 {
        script.deliver(owned, Some(&format!("k{i}")));
    }
    let done = async {
        while script.finished().len() < 200 {
            tokio::time::sleep(MS).await;
        }
    };
    tokio::time::timeout(30 * S, done).await.expect("all but the stuck ones are handled");
}
