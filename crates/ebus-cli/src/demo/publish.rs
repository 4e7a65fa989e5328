//! Publishing: several publishers at once, the versions of an aggregate in order, all by the same one.

use std::sync::Arc;

use ebus::{Bus, Error, Receipt, Topic};
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::done::Done;
use super::event;
use super::plan::{Place, Plan};

/// Receipts that a publisher waits for at most; the backend has a bound of its own.
const WINDOW: usize = 1_000;
/// Events between two pauses in which others may run: a broker in this process never makes a publisher wait.
const BREATH: usize = 64;

/// Publishes the share of one publisher, pipelined. Ends at the first error, once all that is on its way has its answer.
pub(crate) async fn publish(
    bus: Bus,
    share: Vec<u32>,
    plan: Arc<Plan>,
    topic: Topic,
    done: Arc<Done>,
) -> Result<(), Error> {
    let mut publisher = bus.publisher();
    let mut versions = vec![0; plan.aggregates() as usize];
    let mut receipts = FuturesUnordered::new();
    let mut failed = None;
    for (count, aggregate) in share.into_iter().enumerate() {
        let version: &mut u64 = &mut versions[aggregate as usize];
        *version += 1;
        let publish = event::publish(Place { aggregate, version: *version }, &topic)?;
        match publisher.enqueue(publish).await {
            Ok(receipt) => receipts.push(receipt),
            Err(error) => failed = Some(error),
        }
        while receipts.len() >= WINDOW
            && let Some(receipt) = receipts.next().await
        {
            take(receipt, &done, &mut failed);
        }
        while let Some(Some(receipt)) = receipts.next().now_or_never() {
            take(receipt, &done, &mut failed);
        }
        if failed.is_some() {
            break;
        }
        if count % BREATH == 0 {
            tokio::task::yield_now().await;
        }
    }
    while let Some(receipt) = receipts.next().await {
        take(receipt, &done, &mut failed);
    }
    failed.map_or(Ok(()), Err)
}

fn take(receipt: Result<Receipt, Error>, done: &Done, failed: &mut Option<Error>) {
    match receipt {
        Ok(_) => done.store(),
        Err(error) => drop(failed.get_or_insert(error)),
    }
}
