//! A shard with a backlog: it hears what the driver says, and shares its thread (G3, G9).

mod common;

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use ebus_core::{Delivery, Error, ErrorKind, Outcome, SourceEvent};
use ebus_pool::{Handlers, Pool};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

/// A handler that computes for 2 ms and never awaits: far below the 100 ms that the documentation allows.
fn computing(log: &Log) -> impl ebus_core::Handler + use<> {
    let seen = log.clone();
    handler(move |delivery: Delivery| {
        let entry = seen.run(&delivery);
        std::thread::sleep(2 * MS);
        entry.end();
        std::future::ready(Outcome::Ack)
    })
}

/// Real time, one shard, 3,000 keys, 2 ms of computing each: 6 s of work stand in the shard's channel before `Revoking`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_nothing_starts_after_revoking_though_much_is_queued() {
    let (mut script, source) = script();
    let log = Log::default();
    let owned = script.assign(0);
    for i in 0..3_000 {
        script.deliver(owned, Some(&format!("k{i}")));
    }
    // All of it is one read.
    let handlers = Handlers::new().on(topic(), computing(&log));
    let _pool = Pool::start_with(source, config().with_shards(1), handlers).expect("valid");
    until("they run", || log.starts().len() > 50).await;
    script.revoke(owned, S);
    tokio::time::sleep(S).await;
    let at_deadline = log.starts().len();
    let released_in_time = script.released();
    until("released", || script.released()).await;
    let after = log.starts().len() - at_deadline;
    assert!(
        released_in_time && after == 0,
        "{after} runs started after the deadline; released in time: {released_in_time}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_nothing_starts_after_lost_though_much_is_queued() {
    let (mut script, source) = script();
    let log = Log::default();
    let owned = script.assign(0);
    for i in 0..3_000 {
        script.deliver(owned, Some(&format!("k{i}")));
    }
    // All of it is one read.
    let handlers = Handlers::new().on(topic(), computing(&log));
    let _pool = Pool::start_with(source, config().with_shards(1), handlers).expect("valid");
    until("they run", || log.starts().len() > 50).await;
    let before = log.starts().len();
    script.lose(owned);
    let mut last = 0;
    while last != log.starts().len() {
        last = log.starts().len();
        tokio::time::sleep(S).await;
    }
    assert!(
        last - before < 500,
        "{} runs, {} ms of work, started after the loss",
        last - before,
        2 * (last - before)
    );
}

/// One poll of a shard takes 16 passes of 128 jobs. On a runtime of one thread nothing else is polled meanwhile: no `recv`, no
/// timer, no heartbeat. With handlers of 50 ms, half of what the documentation allows, that is 100 s.
#[tokio::test]
async fn p3_a_shard_lets_others_of_its_thread_run() {
    let (mut script, source) = script();
    let log = Log::default();
    let pool = Pool::start(source, config().with_shards(1)).expect("valid");
    pool.subscribe(topic(), computing(&log)).expect("open");
    let owned = script.assign(0);
    for i in 0..1_000 {
        script.deliver(owned, Some(&format!("k{i}")));
    }
    let (mut longest, mut last) = (Duration::ZERO, std::time::Instant::now());
    while script.finished().len() < 1_000 {
        tokio::time::sleep(10 * MS).await;
        longest = longest.max(last.elapsed());
        last = std::time::Instant::now();
    }
    assert!(longest < 500 * MS, "nothing else ran for {longest:?}");
}

/// The same on a runtime with idle threads: what a shard sends wakes the driver into the LIFO slot of the shard's own worker, from
/// which no other worker takes it, and there it waits for the end of the shard's poll. `recv` rests meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p3_recv_is_polled_without_pause_while_handlers_compute() {
    let (mut script, source) = script();
    let log = Log::default();
    let owned = script.assign(0);
    for i in 0..2_000 {
        script.deliver(owned, Some(&format!("k{i}")));
    }
    let longest = Arc::new(Mutex::new((std::time::Instant::now(), Duration::ZERO)));
    let source = Ticking { source, longest: longest.clone() };
    let handlers = Handlers::new().on(topic(), computing(&log));
    let _pool = Pool::start_with(Box::new(source), config().with_shards(1), handlers).expect("valid");
    until("all are done", || script.finished().len() == 2_000).await;
    let longest = longest.lock().expect("no panic").1;
    assert!(longest < 500 * MS, "recv rested for {longest:?}");
}

/// Has something to do every 10 ms, and notes how long it was not polled.
struct Ticking {
    source: Box<ScriptedSource>,
    longest: Arc<Mutex<(std::time::Instant, Duration)>>,
}

#[async_trait::async_trait]
impl ebus_core::Source for Ticking {
    async fn recv(&mut self, room: usize, out: &mut Vec<SourceEvent>) -> Result<usize, Error> {
        {
            let mut longest = self.longest.lock().expect("no panic");
            longest.1 = longest.1.max(longest.0.elapsed());
            longest.0 = std::time::Instant::now();
        }
        match tokio::time::timeout(10 * MS, self.source.recv(room, out)).await {
            Ok(received) => received,
            Err(_) => {
                out.push(SourceEvent::Trouble(Error::new(ErrorKind::Unavailable, "tick")));
                Ok(1)
            }
        }
    }

    hands_on!();

    async fn close(self: Box<Self>, within: Duration) -> Result<(), Error> {
        self.source.close(within).await
    }
}

/// A handler that blocks its thread until it is told to go on, run by run.
fn blocking(log: &Log) -> (impl ebus_core::Handler + use<>, Sender<()>) {
    let (go, told) = channel();
    let (seen, told) = (log.clone(), Arc::new(Mutex::new(told)));
    let blocks = handler(move |delivery: Delivery| {
        let entry = seen.run(&delivery);
        let _ = told.lock().expect("no run panics with it").recv();
        entry.end();
        std::future::ready(Outcome::Ack)
    });
    (blocks, go)
}

/// Nothing can cancel it. What it has done is the next owner's to find out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_a_run_that_ends_after_its_partition_was_lost_is_not_settled() {
    let (mut script, source) = script();
    let log = Log::default();
    let (blocks, go) = blocking(&log);
    let handlers = Handlers::new().on(topic(), blocks);
    let pool = Pool::start_with(source, config().with_shards(1), handlers).expect("valid");
    let lost = script.assign(0);
    script.deliver(lost, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    script.lose(lost);
    let next = script.assign(1);
    pool.pause_all().expect("open");
    let paused = [Said::Paused { partition: next.slot.0 }];
    until("the driver has heard of the loss", || script.said().ends_with(&paused)).await;
    go.send(()).expect("it waits");
    let _ = pool.drain(10 * S).await;
    assert_eq!((log.entries().len(), log.cancelled()), (2, 0), "it ran to its end");
    assert_eq!(script.finished(), [], "somebody else owns it");
}

/// A token is stale that somebody settles too late; this is nobody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_what_a_shard_drops_unread_after_a_hand_over_is_no_stale_token() {
    let (mut script, source) = script();
    let log = Log::default();
    let (go, told) = channel::<()>();
    let (seen, told) = (log.clone(), Arc::new(Mutex::new(told)));
    let some_block = handler(move |delivery: Delivery| {
        let entry = seen.run(&delivery);
        let waits = delivery.key().is_some_and(|key| *key == "waits".into());
        if !waits {
            let _ = told.lock().expect("no run panics with it").recv();
        }
        async move {
            if waits {
                tokio::time::sleep(S).await;
            }
            entry.end();
            Outcome::Ack
        }
    });
    let (backlog, other) = (script.assign(0), script.assign(1));
    script.deliver(other, Some("waits"));
    for i in 0..1_000 {
        script.deliver(backlog, Some(&format!("k{i}")));
    }
    let handlers = Handlers::new().on(topic(), some_block);
    let pool = Pool::start_with(source, config().with_shards(1), handlers).expect("valid");
    until("one blocks, with the others behind it", || log.starts().len() == 2).await;
    script.revoke(backlog, 60 * S);
    script.revoke(other, 60 * S);
    let last = script.assign(2);
    pool.pause_all().expect("open");
    let paused = [Said::Paused { partition: last.slot.0 }];
    until("the driver has heard of both ends", || script.said().ends_with(&paused)).await;
    drop(go);
    // The other one ends while the driver hears what was dropped.
    while pool.state().await.held_messages > 0 {
        tokio::time::sleep(MS).await;
    }
    assert_eq!((log.starts().len(), pool.counters().stale, script.ownership().stale()), (2, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn p8_a_shard_is_said_to_be_blocked_when_it_is_and_not_when_it_is_busy() {
    let (mut script, source) = script();
    let log = Log::default();
    let (blocks, go) = blocking(&log);
    let handlers = Handlers::new().on(topic(), blocks);
    let pool = Pool::start_with(source, config().with_shards(1), handlers).expect("valid");
    let owned = script.assign(0);
    script.deliver(owned, Some("a"));
    until("it runs", || log.starts() == [0]).await;
    let (state, ()) = tokio::join!(pool.state(), async {
        tokio::time::sleep(20 * MS).await;
        go.send(()).expect("it waits");
    });
    assert_eq!(state.blocked_shards, 0, "{state:?}");
    script.deliver(owned, Some("b"));
    until("it runs", || log.starts() == [0, 1]).await;
    assert_eq!(pool.state().await.blocked_shards, 1);
    drop(go);
}
