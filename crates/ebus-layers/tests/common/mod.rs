//! A probe of readiness, and small helpers.
#![allow(dead_code, reason = "each test uses some")]

use std::convert::Infallible;
use std::future::{Ready, poll_fn, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use ebus_core::{Delivery, Epoch, Error, Message, Outcome, PartitionId, Publish, Receipt, Topic};
use tower_service::Service;

/// Panics when called without readiness of its own; a clone is not ready.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    ready: bool,
    calls: Arc<AtomicU64>,
}

impl Probe {
    pub(crate) fn calls(&self) -> Arc<AtomicU64> {
        self.calls.clone()
    }

    fn call(&mut self) -> u64 {
        assert!(std::mem::take(&mut self.ready), "called without readiness");
        self.calls.fetch_add(1, Ordering::Relaxed)
    }
}

impl Clone for Probe {
    fn clone(&self) -> Self {
        Self { ready: false, calls: self.calls.clone() }
    }
}

impl Service<Publish> for Probe {
    type Response = Receipt;
    type Error = Error;
    type Future = Ready<Result<Receipt, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, publish: Publish) -> Self::Future {
        ready(Ok(Receipt::new(publish.topic, 0, Probe::call(self))))
    }
}

impl Service<Delivery> for Probe {
    type Response = Outcome;
    type Error = Infallible;
    type Future = Ready<Result<Outcome, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Delivery) -> Self::Future {
        Probe::call(self);
        ready(Ok(Outcome::Ack))
    }
}

pub(crate) async fn until_ready<S: Service<R>, R>(service: &mut S) -> Result<(), S::Error> {
    poll_fn(|cx| service.poll_ready(cx)).await
}

/// Whether it is ready now.
pub(crate) fn is_ready<S: Service<R>, R>(service: &mut S) -> bool {
    service.poll_ready(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// Calls through a layer, also through clones made before and after readiness: the probe below sees each call ready.
pub(crate) async fn readiness_is_respected<S, R>(mut service: S, request: impl Fn() -> R)
where
    S: Service<R> + Clone,
    S::Error: std::fmt::Debug,
    S::Response: std::fmt::Debug,
{
    let mut before = service.clone();
    until_ready(&mut service).await.expect("ready");
    let mut after = service.clone();
    service.call(request()).await.expect("called");
    for clone in [&mut before, &mut after, &mut service] {
        until_ready(clone).await.expect("ready");
        until_ready(clone).await.expect("ready again");
        clone.call(request()).await.expect("called");
    }
}

pub(crate) fn publish(key: &str, payload: impl ToString) -> Publish {
    let message = Message::new(payload.to_string());
    let message = if key.is_empty() { message } else { message.with_key(key) };
    Publish::to("orders", message).expect("a legal topic")
}

pub(crate) fn delivery() -> Delivery {
    let partition = Arc::new(PartitionId::new(Topic::new("orders").expect("legal"), 0));
    Delivery::new(partition, Epoch(1), 0, 1, Message::new("m"))
}
