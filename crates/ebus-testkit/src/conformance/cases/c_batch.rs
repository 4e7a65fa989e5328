//! C. Failure of a handler: batches.
//!
//! The oracle takes what of a key is in a batch for runs one after the other, up to the first that failed.

use std::sync::Arc;
use std::time::Duration;

use ebus_core::{BatchOutcome, Delivery, Failures, LedgerLimits};
use ebus_pool::{Batch, RetryPolicy};
use parking_lot::Mutex;

use super::super::ctx::{Ctx, keys};
use super::super::failure::Checked;
use super::super::handler::{fails, rejects};
use super::super::wait::Gate;
use crate::record::version_from_header;

/// Key and version of a message.
type Said = (String, u64);

/// What the handler was given.
#[derive(Clone, Default)]
struct Batches(Arc<Mutex<Vec<Vec<Said>>>>);

impl Batches {
    fn note(&self, batch: &[Delivery]) {
        self.0.lock().push(batch.iter().map(|delivery| (key(delivery), version(delivery))).collect());
    }

    fn all(&self) -> Vec<Vec<Said>> {
        self.0.lock().clone()
    }
}

fn key(delivery: &Delivery) -> String {
    delivery.key().map(ToString::to_string).unwrap_or_default()
}

fn version(delivery: &Delivery) -> u64 {
    version_from_header(delivery.message()).unwrap_or_default()
}

const DONE: BatchOutcome = BatchOutcome::Each(Failures::new());

/// c20: as many as there may be come together, in the order of their key; the last ones do not wait for more for ever.
pub(super) async fn c20_a_batch_fills_or_comes_of_age(ctx: &Ctx) -> Checked {
    const MOST: usize = 16;
    let topic = ctx.topic("batches", 2).await?;
    ctx.publish(&topic, &keys("k", 5), 1..=40).await?;
    let seen = Batches::default();
    let noted = seen.clone();
    let _member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .pool(|pool| pool.with_shards(1).with_max_in_flight(1))
        .batches(Batch::of(MOST).max_age(Duration::from_millis(50)), move |batch| {
            noted.note(&batch);
            async {
                // What comes meanwhile waits, and goes together after that.
                tokio::time::sleep(Duration::from_millis(5)).await;
                DONE
            }
        })
        .start()
        .await?;
    ctx.until_handled(200).await?;
    let all = seen.all();
    let largest = all.iter().map(Vec::len).max();
    assert_eq!(largest, Some(MOST), "{:?}", all.iter().map(Vec::len).collect::<Vec<_>>());
    for batch in &all {
        for pair in batch.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            assert_eq!(pair[0].1 + 1, pair[1].1, "{batch:?}");
        }
        let parts = batch.chunk_by(|a, b| a.0 == b.0).count();
        let keys: std::collections::BTreeSet<_> = batch.iter().map(|(key, _)| key).collect();
        assert_eq!(parts, keys.len(), "a key stands in two places of {batch:?}");
    }
    ctx.publish(&topic, &["alone"], 1..=1).await?;
    ctx.until_handled(201).await
}

/// c21: those that are named run again, with what follows of their key; the others go on meanwhile.
pub(super) async fn c21_only_the_failed_of_a_batch_run_again(ctx: &Ctx) -> Checked {
    const OTHERS: usize = 9;
    let topic = ctx.topic("partly", 1).await?;
    let dead = ctx.topic("partly.dead", 1).await?;
    let mut names = vec!["bad".to_owned(), "never".to_owned()];
    names.extend(keys("good", OTHERS));
    ctx.publish(&topic, &names, 1..=4).await?;
    let healed = Gate::closed();
    let (heals, log) = (healed.clone(), ctx.log.clone());
    let member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .dead_letter(&dead)
        .batches(Batch::of(100).max_age(Duration::from_millis(20)), move |batch| {
            let mut failures = Failures::new();
            for (place, delivery) in batch.iter().enumerate() {
                match (key(delivery).as_str(), version(delivery)) {
                    ("bad", 2) if !heals.is_open() => failures.add(place, fails("not yet")),
                    ("never", 3) => failures.add(place, rejects("never")),
                    _ => {}
                }
            }
            async move { BatchOutcome::Each(failures) }
        })
        .start()
        .await?;
    // All but the second and what follows of the bad key: and what is dead is none that a handler handled.
    ctx.until_handled(OTHERS * 4 + 1 + 3).await?;
    ctx.until("it is tried again", || log.count(|ran| ran.key == "bad" && ran.version == 2) > 2).await?;
    assert_eq!(ctx.log.count(|ran| ran.key == "bad" && ran.version > 2), 0, "what follows waits for it");
    healed.open();
    ctx.until_handled(OTHERS * 4 + 4 + 3).await?;
    let mut bad = ctx.log.versions("bad");
    bad.dedup();
    assert_eq!((bad, ctx.log.versions("never")), (vec![1, 2, 3, 4], vec![1, 2, 3, 4]));
    ctx.until("its dead letter is counted", || member.pool().counters().dead_letters == 1).await?;
    assert_eq!(ctx.count(&dead).await?, 1);
    assert_eq!(ctx.log.count(|ran| ran.attempt > 1 && ran.key != "bad"), 0, "nothing else ran twice");
    Ok(())
}

/// c22: a message that makes its handler panic takes those that are with it in a batch with it once, and nobody else is given
/// up for it.
pub(super) async fn c22_one_that_panics_takes_a_batch_with_it_once(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("poisoned", 1).await?;
    let dead = ctx.topic("poisoned.dead", 1).await?;
    let mut names = vec!["bad".to_owned()];
    names.extend(keys("good", 9));
    let receipts = ctx.publish(&topic, &names, 1..=4).await?;
    let seen = Batches::default();
    let noted = seen.clone();
    let member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .pool(|pool| {
            let retry = RetryPolicy::fixed(Duration::from_millis(20)).max_attempts(1);
            pool.with_shards(1).with_retry(retry)
        })
        .dead_letter(&dead)
        .batches(Batch::of(100).max_age(Duration::from_millis(20)), move |batch| {
            noted.note(&batch);
            async move {
                if batch.iter().any(|delivery| key(delivery) == "bad" && version(delivery) == 2) {
                    panic!("a handler of case c22 panics");
                }
                DONE
            }
        })
        .start()
        .await?;
    ctx.until_handled(receipts.len() - 1).await?;
    ctx.until("it is a dead letter", || member.pool().counters().dead_letters == 1).await?;
    assert_eq!(ctx.count(&dead).await?, 1);
    let poisoned = |batch: &Vec<Said>| batch.contains(&("bad".to_owned(), 2));
    let sizes: Vec<usize> = seen.all().iter().filter(|batch| poisoned(batch)).map(Vec::len).collect();
    assert!(sizes.len() <= 2 && sizes[1..].iter().all(|size| *size == 1), "{sizes:?}");
    Ok(())
}

/// c23: what of a batch had not ended at a drain, and what had only gathered, is the next owner's, in order.
pub(super) async fn c23_a_batch_that_outlives_a_drain_is_handled_by_the_next(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("outlived", 2).await?;
    let group = ctx.group("g");
    let receipts = ctx.publish(&topic, &keys("k", 10), 1..=4).await?;
    let began = Gate::closed();
    let begins = began.clone();
    let first = ctx
        .member("first", &group, &[&topic])
        .pool(|pool| pool.with_shards(1))
        // The first part of what there is runs and does not end; the rest never comes of age.
        .batches(Batch::of(25).max_age(Duration::from_secs(600)), move |_| {
            begins.open();
            std::future::pending()
        })
        .start()
        .await?;
    began.pass().await;
    let report = first.drain(Duration::from_millis(300)).await;
    assert!(report.committed.is_ok(), "{report:?}");
    assert_eq!(ctx.log.acked(), 0);
    let _second = ctx
        .member("second", &group, &[&topic])
        .batches(Batch::of(7).max_age(Duration::from_millis(10)), |_| async { DONE })
        .start()
        .await?;
    ctx.until_handled(receipts.len()).await
}

/// c26: a partition whose span is smaller than a batch hands its messages over as they are, instead of waiting for what is not read
/// before they are finished.
pub(super) async fn c26_a_batch_that_its_partition_cannot_fill_waits_for_nothing(ctx: &Ctx) -> Checked {
    const SPAN: usize = 10;
    let topic = ctx.topic("narrow", 1).await?;
    let group = ctx.group("g");
    let published = ctx.publish(&topic, &keys("k", 16), 1..=4).await?.len();
    let first = ctx
        .member("first", &group, &[&topic])
        .options(|options| options.with_limits(LedgerLimits::default().with_max_span(SPAN)))
        .batches(Batch::of(2 * SPAN).max_age(Duration::from_secs(3_600)), |_| async { DONE })
        .start()
        .await?;
    // The last ones do not fill it, and wait for others.
    ctx.until_handled(published - SPAN).await?;
    let report = first.drain(ctx.patience()).await;
    assert!(report.committed.is_ok(), "{report:?}");
    let _second = ctx
        .member("second", &group, &[&topic])
        .batches(Batch::of(7).max_age(Duration::from_millis(10)), |_| async { DONE })
        .start()
        .await?;
    ctx.until_handled(published).await
}

/// c24: members that handle in batches join and leave under load: nothing is lost, and nothing that was handled runs again.
pub(super) async fn c24_batches_are_handed_over_under_load(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("moving", 6).await?;
    let group = ctx.group("g");
    let names = keys("k", 40);
    let member = |label: &str| {
        ctx.member(label, &group, &[&topic]).batches(
            Batch::of(20).max_age(Duration::from_millis(20)),
            |batch: Vec<Delivery>| async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let mut failures = Failures::new();
                for (place, delivery) in batch.iter().enumerate() {
                    if version(delivery).is_multiple_of(7) && delivery.attempt() == 1 {
                        failures.add(place, fails("every seventh, once"));
                    }
                }
                BatchOutcome::Each(failures)
            },
        )
    };
    let first = member("first").start().await?;
    first.until_it_owns(6).await?;
    let mut published = ctx.publish(&topic, &names, 1..=20).await?.len();
    ctx.until_handled(published / 4).await?;
    let second = member("second").start().await?;
    published += ctx.publish(&topic, &names, 21..=40).await?.len();
    second.until_it_owns(1).await?;
    ctx.until_handled(published / 2).await?;
    let report = first.drain(ctx.patience()).await;
    assert!(report.committed.is_ok(), "{report:?}");
    ctx.until_handled(published).await
}
