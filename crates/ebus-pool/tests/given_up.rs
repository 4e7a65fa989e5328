//! What is given up: its letter, what is said of it, and what a drain counts (G1, G8).

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use ebus_core::{Error, ErrorKind, Outcome, Publish, Publisher, Receipt, Topic};
use ebus_pool::{Pool, PoolConfig, dead_letter};

const MS: Duration = Duration::from_millis(1);

/// Dead letters go to `store`, which may refuse them.
fn with_letters<F>(store: F) -> PoolConfig
where
    F: Fn(&Publish) -> Result<(), ErrorKind> + Clone + Send + Sync + 'static,
{
    let publisher = Publisher::new(tower::service_fn(move |publish: Publish| {
        let said = store(&publish).map(|()| Receipt::new(publish.topic, 0, 0));
        std::future::ready(said.map_err(|kind| Error::new(kind, "refused")))
    }));
    config().with_dead_letter(Topic::new("dlq").expect("legal"), publisher)
}

fn error_bytes(publish: &Publish) -> usize {
    publish.message.headers.first_str(dead_letter::ERROR).map_or(0, str::len)
}

#[tokio::test(start_paused = true)]
async fn p1_a_letter_is_cut_short_where_it_is_too_large_and_for_no_other_trouble() {
    for (trouble, is_cut) in [(ErrorKind::TooLarge, true), (ErrorKind::Unavailable, false)] {
        let tries = Arc::new(Mutex::new(Vec::new()));
        let seen = tries.clone();
        let config = with_letters(move |publish| {
            let mut tries = seen.lock().expect("no panic");
            tries.push(error_bytes(publish));
            if tries.len() == 1 { Err(trouble) } else { Ok(()) }
        });
        let (mut script, source) = script();
        let wordy = handler(|_| async {
            Outcome::Reject { error: Error::new(ErrorKind::Handler, "x".repeat(2_000)) }
        });
        let _pool = start(source, config, wordy);
        let owned = script.assign(0);
        script.deliver(owned, Some("k"));
        until("it is a dead letter", || script.finished() == [0]).await;
        let tries = tries.lock().expect("no panic");
        assert_eq!((tries.len(), tries[1] < tries[0]), (2, is_cut), "{trouble:?}: {tries:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn p8_what_is_said_of_one_letter_stays_when_another_goes_through() {
    let up = Arc::new(Mutex::new(Vec::<String>::new()));
    let allowed = up.clone();
    let config = with_letters(move |publish| {
        let key = publish.message.key.as_ref().map(ToString::to_string).unwrap_or_default();
        if allowed.lock().expect("no panic").contains(&key) { Ok(()) } else { Err(ErrorKind::Unavailable) }
    });
    let (mut script, source) = script();
    let pool = start(source, config, handler(|_| async { reject() }));
    let owned = script.assign(0);
    for key in ["a", "b", "c"] {
        script.deliver(owned, Some(key));
    }
    tokio::time::sleep(100 * MS).await;
    for (number, key) in ["a", "b", "c"].into_iter().enumerate() {
        assert!(pool.state().await.dead_letter_error.is_some(), "{key} waits");
        up.lock().expect("no panic").push(key.to_owned());
        until("it is a dead letter", || script.finished().len() > number).await;
    }
    assert!(pool.state().await.dead_letter_error.is_none(), "nothing waits");
}

#[tokio::test(start_paused = true)]
async fn g02_a_drain_counts_what_is_dropped_as_finished_too() {
    let (mut script, source) = script();
    let slow = handler(|delivery| async move {
        tokio::time::sleep(100 * MS).await;
        if delivery.offset() < 2 { reject() } else { Outcome::Ack }
    });
    let pool = start(source, config().with_drop_on_failure(), slow);
    let owned = script.assign(0);
    for key in ["a", "b", "c", "d", "e"] {
        script.deliver(owned, Some(key));
    }
    tokio::time::sleep(50 * MS).await;
    let report = pool.drain(Duration::from_secs(1)).await;
    assert_eq!((report.finished, report.counters.dropped, report.counters.handled), (5, 2, 3), "{report:?}");
}

fn start(source: Box<ScriptedSource>, config: PoolConfig, handler: impl ebus_core::Handler) -> Pool {
    Pool::start_with(source, config, ebus_pool::Handlers::new().on(topic(), handler)).expect("valid")
}
