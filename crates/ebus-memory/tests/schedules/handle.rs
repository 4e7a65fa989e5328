//! Handlers that do what the plan says of each message.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ebus_core::{Delivery, Error, ErrorKind, Outcome};
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
        Box::pin(async move { Ok(run(fate, delivery.attempt()).await) })
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
