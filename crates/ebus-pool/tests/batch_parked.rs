//! Parked keys in batches: a dead letter takes its key out of them, and a redrive runs by itself (G2).

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use common::batches::*;
use common::letters::Letters;
use common::*;
use ebus_core::{BatchOutcome, Failures};
use ebus_pool::Batch;

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn p2_a_key_that_is_parked_leaves_its_batch_and_comes_back_in_order() {
    let (mut script, source) = script();
    let letters = Letters::default();
    let healed = Arc::new(AtomicBool::new(false));
    let healed_too = healed.clone();
    let config = letters.config(10).with_shards(1);
    let (pool, seen) = pool_that_says(source, config, Batch::of(100).max_age(500 * MS), move |batch| {
        let mut failures = Failures::new();
        for (place, delivery) in batch.iter().enumerate() {
            if delivery.offset() == 0 && !healed_too.load(SeqCst) {
                failures.add(place, reject());
            }
        }
        BatchOutcome::Each(failures)
    });
    let owned = script.assign(0);
    for key in ["a", "a", "b", "a", "b"] {
        script.deliver(owned, Some(key));
    }
    until("all are done, or dead letters", || script.finished().len() == 5).await;
    assert_eq!(seen.offsets(), [[0, 1, 3, 2, 4]], "what follows a dead letter has no run of its own");
    let told: Vec<u64> = letters.told().into_iter().map(|(offset, _)| offset).collect();
    assert_eq!(told, [0, 1, 3]);
    healed.store(true, SeqCst);
    letters.redrive("a").await.expect("it is parked");
    while !letters.parked().await.is_empty() {
        tokio::time::sleep(MS).await;
    }
    script.deliver(owned, Some("a"));
    script.deliver(owned, Some("a"));
    until("the key goes on", || script.finished().len() == 7).await;
    assert_eq!(seen.offsets()[1..], [vec![0], vec![1], vec![3], vec![5, 6]]);
    let given = seen.given();
    assert!(
        given[3].at - given[1].at < 500 * MS,
        "a dead letter waits for no others, and takes none with it: {given:?}"
    );
    let counters = pool.counters();
    assert_eq!((counters.handled, counters.redriven, counters.parked), (4, 3, 2));
}
