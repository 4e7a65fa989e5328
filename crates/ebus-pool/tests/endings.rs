//! Ends of ownerships that come in an order that nobody expects (G3).

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use common::*;
use ebus_core::{Epoch, Error, Lease, Outcome, Owned, PartitionId, Position, SourceEvent};
use ebus_pool::Pool;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

/// SIGSTOP over deadline + 5 s: both timers are due at once, and the grace for blocked handlers is over before it began.
#[tokio::test(start_paused = true)]
async fn p3_a_drain_whose_deadline_passed_in_a_stop_still_cancels_before_it_closes() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, 1000 * S);
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    let pool = Arc::new(pool);
    let drain = tokio::spawn({
        let pool = pool.clone();
        async move { pool.drain(3 * S).await }
    });
    tokio::time::sleep(S).await;
    tokio::time::advance(60 * S).await;
    let report = drain.await.expect("no panic");
    assert_eq!(log.cancelled(), 1, "the source is closed and a run is in progress: {report:?}");
    assert_eq!(report.left.len(), 1, "the report says what was left: {report:?}");
    assert_eq!(script.dropped(), [0], "settled before the source was closed");
}

/// Drain looks at `partitions`, where the held-back ownership stands in the place of the one that still runs.
#[tokio::test(start_paused = true)]
async fn p3_a_drain_cancels_the_former_epoch_behind_which_a_partition_is_held_back() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, 1000 * S);
    let first = script.assign(0);
    script.deliver(first, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    script.revoke(first, 600 * S);
    let _second = script.assign(0);
    tokio::time::sleep(S).await;
    let begun = tokio::time::Instant::now();
    let _ = pool.drain(3 * S).await;
    assert_eq!(log.cancelled(), 1, "the source was closed while a run was in progress");
    assert!(begun.elapsed() <= 3 * S + 100 * MS, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn p3_a_pool_that_is_dropped_cancels_the_former_epoch_behind_which_a_partition_is_held_back() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, 1000 * S);
    let first = script.assign(0);
    script.deliver(first, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    script.revoke(first, 600 * S);
    let _second = script.assign(0);
    tokio::time::sleep(S).await;
    let begun = tokio::time::Instant::now();
    drop(pool);
    script.gone().await;
    assert_eq!(log.cancelled(), 1, "the source is gone and its run is not");
    assert!(begun.elapsed() < S, "{:?}", begun.elapsed());
}

/// The loss of the held-back epoch means that somebody else owns the partition now: the run of the epoch before must end too.
#[tokio::test(start_paused = true)]
async fn p3_the_loss_of_a_held_back_epoch_cancels_the_run_of_the_one_before() {
    let (mut script, source) = script();
    let log = Log::default();
    let _pool = slow_pool(source, &log, 1000 * S);
    let first = script.assign(0);
    script.deliver(first, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    script.revoke(first, 600 * S);
    let second = script.assign(0);
    tokio::time::sleep(S).await;
    script.lose(second);
    tokio::time::sleep(S).await;
    assert_eq!(log.cancelled(), 1);
}

/// And its revocation has a deadline that the run of the epoch before must keep.
#[tokio::test(start_paused = true)]
async fn p3_the_revocation_of_a_held_back_epoch_hastens_the_one_before() {
    let (mut script, source) = script();
    let log = Log::default();
    let _pool = slow_pool(source, &log, 1000 * S);
    let first = script.assign(0);
    script.deliver(first, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    script.revoke(first, 600 * S);
    let second = script.assign(0);
    script.revoke(second, 5 * S);
    tokio::time::sleep(6 * S).await;
    assert_eq!(log.cancelled(), 1);
}

/// `Driver::end` provides for an ownership "known to the source and not to us", and indexes past the end of `partitions`.
#[tokio::test(start_paused = true)]
async fn p3_a_revocation_of_what_was_never_assigned_is_released() {
    let (script, source) = script();
    let pool = Pool::start(source, config()).expect("valid");
    pool.subscribe(topic(), handler(|_| async { Outcome::Ack })).expect("open");
    let unknown = Owned { slot: ebus_core::Slot(7), epoch: ebus_core::Epoch(1) };
    script.revoke(unknown, S);
    tokio::time::sleep(S).await;
    assert!(pool.subscribe(topic(), handler(|_| async { Outcome::Ack })).is_ok(), "the driver has panicked");
    // One that the source knows.
    let (id, lease) = (PartitionId::new(topic(), 0), Lease::unlimited());
    let known = script.ownership().assign(id, Epoch(1), &Position::default(), lease).owned;
    script.revoke(known, S);
    until("it is released", || script.released()).await;
}

/// `Ownership::assign` ends a former ownership that is still there. The pool does not: its runs go on beside those of the next
/// epoch, and the lanes of what was queued are never started again.
#[tokio::test(start_paused = true)]
async fn p3_an_assignment_over_a_live_epoch_ends_that_one() {
    let (mut script, source) = script();
    let log = Log::default();
    let _pool = slow_pool(source, &log, S);
    let first = script.assign(0);
    script.deliver(first, Some("a"));
    script.deliver(first, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    let second = script.assign(0);
    script.rewind(second, 0);
    script.deliver(second, Some("a"));
    script.deliver(second, Some("b"));
    until("the new epoch goes on", || {
        let done: Vec<Said> =
            script.said().into_iter().filter(|s| matches!(s, Said::Finished { epoch: 2, .. })).collect();
        done.len() == 2
    })
    .await;
}

/// Notes whether runs were open when it was dropped.
struct Panicking {
    source: Box<ScriptedSource>,
    now: Arc<AtomicBool>,
    log: Log,
    open_at_drop: Arc<AtomicUsize>,
}

impl Drop for Panicking {
    fn drop(&mut self) {
        self.open_at_drop.store(self.log.starts().len() - self.log.cancelled(), SeqCst);
    }
}

#[async_trait::async_trait]
impl ebus_core::Source for Panicking {
    async fn recv(&mut self, room: usize, out: &mut Vec<SourceEvent>) -> Result<usize, Error> {
        assert!(!self.now.load(SeqCst), "a bug of the source");
        self.source.recv(room, out).await
    }

    hands_on!();

    async fn close(self: Box<Self>, _within: Duration) -> Result<(), Error> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn p3_a_source_that_panics_is_dropped_after_the_last_run() {
    let (mut script, source) = script();
    let log = Log::default();
    let (now, open) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(usize::MAX)));
    let source = Panicking { source, now: now.clone(), log: log.clone(), open_at_drop: open.clone() };
    let pool = Pool::start(Box::new(source), config()).expect("valid");
    let seen = log.clone();
    pool.subscribe(
        topic(),
        handler(move |delivery| {
            let _entry = seen.run(&delivery);
            async move {
                let _entry = _entry;
                std::future::pending::<Outcome>().await
            }
        }),
    )
    .expect("open");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    now.store(true, SeqCst);
    let _ = pool.pause_all();
    let _ = pool.ended().await;
    script.gone().await;
    assert_eq!(open.load(SeqCst), 0, "runs that were open when the source was dropped");
}

/// It was kept for an ownership that never begins, and its place in the budget with it.
#[tokio::test(start_paused = true)]
async fn p5_what_arrives_of_a_partition_that_is_revoked_before_it_began_holds_no_place() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = slow_pool(source, &log, 10 * S);
    let first = script.assign(0);
    script.deliver(first, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    script.revoke(first, 60 * S);
    let second = script.assign(0);
    script.revoke(second, 60 * S);
    script.rewind(second, 0);
    script.deliver(second, Some("a"));
    until("it is dropped at once", || script.dropped() == [0]).await;
    assert_eq!(log.cancelled(), 0, "the run of the former epoch goes on");
    until("released", || script.released()).await;
    assert_eq!((pool.state().await.held_messages, log.starts()), (0, vec![0]));
}
