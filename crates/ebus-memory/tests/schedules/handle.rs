//! Handlers that do what the plan says of each message.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ebus_core::{BatchOutcome, Delivery, Error, ErrorKind, Failures, Outcome};
use ebus_pool::dead_letter;
use tower_service::Service;

use crate::ON_PURPOSE;
use crate::plan::{Fate, Plan};
use crate::world::key_and_version;

#[derive(Clone)]
pub(crate) struct Planned(pub(crate) Arc<Plan>);

impl Service<Delivery> for Planned {
    type Response = Outcome;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Outcome, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, delivery: Delivery) -> Self::Future {
        let fate = self.fate(&delivery);
        Box::pin(async move { Ok(run(fate, delivery.attempt()).await) })
    }
}

/// One message after the other, and none of a key behind one that failed.
impl Service<Vec<Delivery>> for Planned {
    type Response = BatchOutcome;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<BatchOutcome, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, batch: Vec<Delivery>) -> Self::Future {
        let planned: Vec<_> = batch.into_iter().map(|delivery| (self.fate(&delivery), delivery)).collect();
        Box::pin(async move {
            let (mut failures, mut failed) = (Failures::new(), None);
            for (place, (fate, delivery)) in planned.into_iter().enumerate() {
                if delivery.key().is_some() && delivery.key() == failed.as_ref() {
                    continue;
                }
                let outcome = run(fate, delivery.attempt()).await;
                if !matches!(outcome, Outcome::Ack) {
                    failed = delivery.key().cloned();
                    failures.add(place, outcome);
                }
            }
            // Some say of the whole batch what is true of one of them.
            match failures.into_vec() {
                named if named.len() == 1 && named[0].0 == 1 => {
                    let error = Error::new(ErrorKind::Handler, "one of them fails on purpose");
                    Ok(BatchOutcome::Retry { after: None, error })
                }
                named => Ok(BatchOutcome::Each(
                    named.into_iter().fold(Failures::new(), |all, (place, outcome)| all.with(place, outcome)),
                )),
            }
        })
    }
}

impl Planned {
    /// What is planned for a delivery; some panic here, before anything is awaited.
    fn fate(&self, delivery: &Delivery) -> Fate {
        let fate = match key_and_version(delivery.message()) {
            Some((key, version)) if delivery.headers().contains(dead_letter::ID) => {
                self.0.fate_again(key, version)
            }
            Some((key, version)) => self.0.fate(key, version),
            None => Fate::AtOnce,
        };
        if matches!(fate, Fate::Panics(times) if delivery.attempt() <= times && delivery.offset().is_multiple_of(3))
        {
            std::panic::panic_any(ON_PURPOSE);
        }
        fate
    }
}

async fn run(fate: Fate, attempt: u32) -> Outcome {
    let error = || Error::new(ErrorKind::Handler, "fails on purpose");
    match fate {
        Fate::After(time) => tokio::time::sleep(time).await,
        Fate::Fails(times) if attempt <= times => return Outcome::Retry { after: None, error: error() },
        Fate::Panics(times) if attempt <= times => {
            tokio::time::sleep(Duration::from_millis(1)).await;
            std::panic::panic_any(ON_PURPOSE);
        }
        Fate::Rejected => return Outcome::Reject { error: error() },
        Fate::Hopeless => return Outcome::Retry { after: Some(Duration::from_millis(5)), error: error() },
        Fate::AtOnce | Fate::Fails(_) | Fate::Panics(_) => {}
    }
    Outcome::Ack
}
