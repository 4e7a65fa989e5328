//! The erased publisher: one type for every backend and every stack of layers (G7).

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tower_service::Service;

use crate::{BoxError, Error, Publish, Receipt};

/// A service that publishes: `poll_ready` reserves a place in flight, `call` enqueues **synchronously**, so that the order of
/// `call` is the order on the wire, and the future resolves with the broker's acknowledgement.
///
/// # Contract
/// - A clone that is dropped gives its place back.
/// - Dropping the future does not un-publish.
/// - Of the messages of one key, those that are stored are stored in the order of `call`, and none is sent again after a
///   later one of its key was sent.
/// - An error of kind `Timeout` means "may have been stored".
pub trait PublishService:
    Service<Publish, Response = Receipt, Error: Into<BoxError>, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> PublishService for S where
    S: Service<Publish, Response = Receipt, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Any [`PublishService`], erased. Costs one box per message; made once, after the layers.
pub struct Publisher(Box<dyn Erased>);

/// What [`Publisher::call`] gives: resolves with the broker's acknowledgement.
///
/// # Cancel safety
/// Dropping it does not un-publish: the message is on its way since `call`.
pub struct PublishFuture(Pin<Box<dyn Future<Output = Result<Receipt, Error>> + Send>>);

trait Erased: Send + Sync {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>>;
    fn call(&mut self, publish: Publish) -> PublishFuture;
    fn clone_box(&self) -> Box<dyn Erased>;
}

impl<S: PublishService> Erased for S {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Service::poll_ready(self, cx).map_err(|error| Error::from_boxed(error.into()))
    }

    fn call(&mut self, publish: Publish) -> PublishFuture {
        let future = Service::call(self, publish);
        PublishFuture(Box::pin(async move { future.await.map_err(|error| Error::from_boxed(error.into())) }))
    }

    fn clone_box(&self) -> Box<dyn Erased> {
        Box::new(self.clone())
    }
}

impl Publisher {
    /// Erases `service`.
    pub fn new<S: PublishService>(service: S) -> Self {
        Self(Box::new(service))
    }

    /// Waits for a place in flight and enqueues; resolves as soon as the message is in order.
    ///
    /// # Cancel safety
    /// Dropped before it resolved: nothing was enqueued.
    ///
    /// # Errors
    /// What `poll_ready` of the layers and of the backend gives, such as `Closed`.
    pub async fn enqueue(&mut self, publish: Publish) -> Result<PublishFuture, Error> {
        std::future::poll_fn(|cx| self.0.poll_ready(cx)).await?;
        Ok(self.0.call(publish))
    }

    /// Enqueues and waits for the broker's acknowledgement.
    ///
    /// # Errors
    /// What [`enqueue`](Self::enqueue) gives, and what the broker says.
    pub async fn publish(&mut self, publish: Publish) -> Result<Receipt, Error> {
        self.enqueue(publish).await?.await
    }
}

impl Service<Publish> for Publisher {
    type Response = Receipt;
    type Error = Error;
    type Future = PublishFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, publish: Publish) -> PublishFuture {
        self.0.call(publish)
    }
}

impl Clone for Publisher {
    fn clone(&self) -> Self {
        Self(self.0.clone_box())
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

impl Future for PublishFuture {
    type Output = Result<Receipt, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for PublishFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishFuture").finish_non_exhaustive()
    }
}
