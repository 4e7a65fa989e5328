//! What a user sees and is promised at the edges (G8, G9).

mod common;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use common::*;
use ebus_core::{
    Delivery, Epoch, Error, ErrorKind, Lease, Outcome, PartitionId, Position, Publish, Publisher, Receipt,
    SourceEvent, Topic,
};
use ebus_pool::{Handlers, Pool};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

async fn survives(outcome: impl Fn() -> Outcome + Clone + Send + 'static) {
    let (mut script, source) = script();
    let pool = Pool::start(source, config()).expect("valid");
    pool.subscribe(
        topic(),
        handler(move |delivery| {
            let outcome = if delivery.offset() == 0 { outcome() } else { Outcome::Ack };
            std::future::ready(outcome)
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    script.deliver(owned, Some("b"));
    let done = until("the other key is done", || script.finished() == [1]);
    tokio::select! {
        () = done => {}
        report = pool.ended() => panic!("the pool has ended: {report:?}"),
    }
    tokio::time::sleep(S).await;
    let state = pool.state().await;
    assert!(state.ended.is_none(), "the pool has ended: {state:?}");
}

#[tokio::test(start_paused = true)]
async fn p9_a_retry_after_for_ever_is_not_the_end_of_the_pool() {
    survives(|| retry(Duration::MAX)).await;
}

/// Beyond what `DelayQueue` can hold, 2^36 ms, 2.2 years: an HTTP `Retry-After` with a date.
#[tokio::test(start_paused = true)]
async fn p9_a_retry_after_three_years_is_not_the_end_of_the_pool() {
    survives(|| retry(Duration::from_secs(3 * 365 * 86_400))).await;
}

#[tokio::test(start_paused = true)]
async fn p9_a_drain_without_a_limit_is_a_drain() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, S);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    let report = pool.drain(Duration::MAX).await;
    assert!(report.committed.is_ok(), "{report:?}");
    assert_eq!(script.finished(), [0]);
}

/// A subscription while the pool drains says Ok, handles nothing, and makes a member that leaves join a topic.
#[tokio::test(start_paused = true)]
async fn p8_a_subscription_during_a_drain_is_refused() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, 5 * S);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    let other = Topic::new("users").expect("legal");
    let (_, refused) = tokio::join!(pool.drain(60 * S), async {
        tokio::time::sleep(S).await;
        let refused = pool.subscribe(other.clone(), handler(|_| async { Outcome::Ack })).is_err();
        tokio::time::sleep(S).await;
        refused
    });
    assert!(!script.subscribed().contains(&other), "a member that leaves has joined {other}");
    assert!(refused, "Ok, and nothing of it is ever handled");
}

/// What a handler holds, such as a pool of database connections, is never given back.
#[tokio::test(start_paused = true)]
async fn p5_the_handler_of_a_topic_that_is_unsubscribed_and_released_is_dropped() {
    let (script, source) = script();
    let pool = Pool::start(source, config()).expect("valid");
    let database = Arc::new(());
    let held = database.clone();
    pool.subscribe(
        topic(),
        handler(move |_| {
            let _ = &held;
            async { Outcome::Ack }
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    // One that stays keeps nobody else's.
    let other = Topic::new("users").expect("legal");
    pool.subscribe(other.clone(), handler(|_| async { Outcome::Ack })).expect("open");
    let id = PartitionId::new(other, 0);
    let assigned = script.ownership().assign(id, Epoch(1), &Position::default(), Lease::unlimited());
    script.send(SourceEvent::Assigned { owned: vec![assigned] });
    tokio::time::sleep(MS).await;
    pool.unsubscribe(&topic()).expect("open");
    tokio::time::sleep(S).await;
    assert!(Arc::strong_count(&database) > 1, "what is owned may yet be handled");
    script.revoke(owned, S);
    until("released", || script.released()).await;
    tokio::time::sleep(60 * S).await;
    assert_eq!(Arc::strong_count(&database), 1, "clones of the handler that live on");
}

/// Past the lease nothing starts; a dead letter is a run.
#[tokio::test(start_paused = true)]
async fn p3_no_dead_letter_starts_past_the_lease() {
    let (mut script, source) = script();
    let published = Arc::new(AtomicUsize::new(0));
    let count = published.clone();
    let publisher = Publisher::new(tower::service_fn(move |publish: Publish| {
        count.fetch_add(1, SeqCst);
        async move { Ok::<_, Error>(Receipt::new(publish.topic, 0, 0)) }
    }));
    let pool = Pool::start(source, config().with_dead_letter(Topic::new("dlq").expect("legal"), publisher))
        .expect("valid");
    pool.subscribe(
        topic(),
        handler(|_| async {
            tokio::time::sleep(10 * S).await;
            reject()
        }),
    )
    .expect("open");
    let lease = Lease::until((tokio::time::Instant::now() + 5 * S).into_std());
    let owned = script.assign_with(0, lease);
    script.deliver(owned, Some("a"));
    tokio::time::sleep(20 * S).await;
    assert_eq!(
        published.load(SeqCst),
        0,
        "a dead letter of a message that somebody else may have handled by now"
    );
}

/// "Answers within about a second": not while the source is being closed.
#[tokio::test(start_paused = true)]
async fn p9_the_state_is_answered_while_the_source_is_being_closed() {
    let (script, source) = script();
    let pool = Arc::new(Pool::start(Box::new(SlowToClose { source }), config()).expect("valid"));
    script.assign(0);
    tokio::time::sleep(MS).await;
    let draining = pool.clone();
    tokio::spawn(async move { draining.drain(60 * S).await });
    tokio::time::sleep(S).await;
    let begun = tokio::time::Instant::now();
    let _ = pool.state().await;
    assert!(begun.elapsed() <= 2 * S, "{:?}", begun.elapsed());
}

/// Takes half of the time that it is given.
struct SlowToClose {
    source: Box<ScriptedSource>,
}

#[async_trait::async_trait]
impl ebus_core::Source for SlowToClose {
    async fn recv(&mut self, room: usize, out: &mut Vec<SourceEvent>) -> Result<usize, Error> {
        self.source.recv(room, out).await
    }

    hands_on!();

    async fn close(self: Box<Self>, within: Duration) -> Result<(), Error> {
        tokio::time::sleep(within / 2).await;
        self.source.close(within).await
    }
}

#[derive(Clone)]
struct NeverReady;

impl tower::Service<Delivery> for NeverReady {
    type Response = Outcome;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Outcome, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Pending
    }

    fn call(&mut self, _: Delivery) -> Self::Future {
        unreachable!("never ready")
    }
}

#[tokio::test(start_paused = true)]
async fn p8_a_message_whose_handler_is_not_ready_for_an_hour_is_visible_as_stuck() {
    let (mut script, source) = script();
    let pool = Pool::start(source, config()).expect("valid");
    pool.subscribe(topic(), NeverReady).expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    tokio::time::sleep(3600 * S).await;
    let state = pool.state().await;
    assert_eq!((state.stuck.len(), state.lanes), (1, 1), "{state:?}");
}

#[tokio::test(start_paused = true)]
async fn p8_a_message_whose_lease_is_over_for_an_hour_is_visible_as_stuck() {
    let (mut script, source) = script();
    let pool = Pool::start(source, config()).expect("valid");
    pool.subscribe(topic(), handler(|_| async { Outcome::Ack })).expect("open");
    let owned = script.assign_with(0, Lease::until(tokio::time::Instant::now().into_std()));
    script.deliver(owned, Some("a"));
    tokio::time::sleep(3600 * S).await;
    assert_eq!(pool.state().await.stuck.len(), 1, "{:?}", pool.state().await);
}

/// `unsubscribe` forgets the user's pause while the partition is still owned: the next event resumes it.
#[tokio::test(start_paused = true)]
async fn p8_a_paused_topic_is_not_read_again_because_it_is_unsubscribed() {
    let (script, source) = script();
    let pool = Pool::start(source, config()).expect("valid");
    pool.subscribe(topic(), handler(|_| async { Outcome::Ack })).expect("open");
    script.assign(0);
    pool.pause(&topic()).expect("open");
    until("paused", || script.said() == [Said::Paused { partition: 0 }]).await;
    pool.unsubscribe(&topic()).expect("open");
    until("the source knows", || script.subscribed().is_empty()).await;
    script.send(SourceEvent::Trouble(Error::new(ErrorKind::Unavailable, "any event")));
    tokio::time::sleep(S).await;
    assert_eq!(script.said(), [Said::Paused { partition: 0 }]);
}

/// The handler is another one, the topic is the same: asked for twice, a source might own it twice.
#[tokio::test(start_paused = true)]
async fn p8_a_topic_that_gets_another_handler_is_asked_for_once() {
    let (mut script, source) = script();
    let pool = Pool::start(source, config()).expect("valid");
    pool.subscribe(topic(), handler(|_| async { reject() })).expect("open");
    pool.subscribe(topic(), handler(|_| async { Outcome::Ack })).expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("the second one handles it", || script.finished() == [0]).await;
    assert_eq!(script.subscribed(), [topic()]);
}

/// Told by a drain that it ends, and by this that a topic does: a source would begin another hand-over of what is ending.
#[tokio::test(start_paused = true)]
async fn g01_a_topic_that_is_unsubscribed_during_a_drain_ends_by_the_drain() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, 5 * S);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    let (report, ()) = tokio::join!(pool.drain(60 * S), async {
        tokio::time::sleep(S).await;
        pool.unsubscribe(&topic()).expect("open");
    });
    assert_eq!(script.subscribed(), [topic()]);
    assert_eq!((report.finished, report.committed.is_ok()), (1, true), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn g01_a_drain_reports_what_it_finished_and_nothing_before_it() {
    let (mut script, source) = script();
    let publisher = Publisher::new(tower::service_fn(|publish: Publish| async move {
        Ok::<_, Error>(Receipt::new(publish.topic, 0, 0))
    }));
    let pool = Pool::start(source, config().with_dead_letter(Topic::new("dlq").expect("legal"), publisher))
        .expect("valid");
    pool.subscribe(
        topic(),
        handler(|delivery| async move {
            if delivery.offset() >= 2 {
                tokio::time::sleep(S).await;
            }
            if delivery.offset() == 4 { reject() } else { Outcome::Ack }
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    for key in ["a", "b", "c", "d", "e"] {
        script.deliver(owned, Some(key));
    }
    until("two are done, and the others run", || script.finished().len() == 2).await;
    let report = pool.drain(60 * S).await;
    assert_eq!(
        (report.finished, report.left.len()),
        (3, 0),
        "two by their handler, one by its dead letter: {report:?}"
    );
    assert_eq!(script.finished().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn p8_what_runs_for_a_moment_is_not_stuck_and_what_runs_for_long_is() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, 60 * S);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    tokio::time::sleep(9 * S).await;
    assert_eq!(pool.state().await.stuck.len(), 0);
    tokio::time::sleep(2 * S).await;
    assert_eq!(pool.state().await.stuck.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_later_handler_of_a_topic_replaces_the_one_before_it_and_no_other() {
    let (mut script, source) = script();
    let other = Topic::new("users").expect("legal");
    let handlers = Handlers::new()
        .on(topic(), handler(|_| async { retry(S) }))
        .on(other.clone(), handler(|_| async { Outcome::Ack }))
        .on(topic(), handler(|_| async { Outcome::Ack }));
    let _pool = Pool::start_with(source, config(), handlers).expect("valid");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("the later one handles it", || script.finished() == [0]).await;
    assert_eq!(script.subscribed(), [other, topic()]);
}

#[tokio::test(start_paused = true)]
async fn p8_a_pool_that_has_ended_by_itself_says_why_and_what_it_did() {
    let (mut script, source) = script();
    let pool = Pool::start(source, config()).expect("valid");
    pool.subscribe(topic(), handler(|_| async { Outcome::Ack })).expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it is done", || script.finished() == [0]).await;
    // The source has no more events.
    drop(script);
    let _ = pool.ended().await;
    let state = pool.state().await;
    assert_eq!((state.counters.handled, state.ended.map(|error| error.kind())), (1, Some(ErrorKind::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_a_week_runs_after_a_week() {
    let (mut script, source) = script();
    let log = Log::default();
    let seen = log.clone();
    let pool = Pool::start(source, config()).expect("valid");
    pool.subscribe(
        topic(),
        handler(move |delivery| {
            seen.run(&delivery).end();
            std::future::ready(if delivery.attempt() == 1 { retry(7 * 86_400 * S) } else { Outcome::Ack })
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    tokio::time::sleep((7 * 86_400 - 1) * S).await;
    assert_eq!(log.starts(), [0]);
    let next_retry = pool.state().await.stuck[0].next_retry.expect("it waits for that");
    assert!((S - 10 * MS..=S + 10 * MS).contains(&next_retry), "{next_retry:?}");
    tokio::time::sleep(2 * S).await;
    assert_eq!(script.finished(), [0]);
}
