//! A backend that is in no hurry: each of its calls gives way before it begins and before it answers, so that whoever awaits it can
//! be dropped there.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ebus_core::{
    Backend, Capability, Committed, Epoch, Error, Group, Message, Owned, Parking, PartitionId, Publish,
    PublishFuture, Publisher, ReadRange, Reader, Receipt, Settlement, Source, SourceEvent, SourceOptions,
    Token, Topic, TopicInfo, TopicSpec,
};
use tokio::task::yield_now;
use tower::Service;

pub(crate) struct Yielding<T>(pub(crate) T);

async fn slowly<T>(call: impl Future<Output = T>) -> T {
    yield_now().await;
    let answer = call.await;
    yield_now().await;
    answer
}

#[async_trait]
impl<B: Backend> Backend for Yielding<B> {
    fn capability(&self) -> Capability {
        self.0.capability()
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(YieldingPublisher { inner: self.0.publisher(), has_yielded: false })
    }

    async fn source(&self, options: SourceOptions) -> Result<Box<dyn Source>, Error> {
        let source = slowly(self.0.source(options)).await?;
        Ok(Box::new(Yielding(source)))
    }

    async fn create_topic(&self, spec: &TopicSpec) -> Result<TopicInfo, Error> {
        slowly(self.0.create_topic(spec)).await
    }

    async fn describe_topic(&self, topic: &Topic) -> Result<TopicInfo, Error> {
        slowly(self.0.describe_topic(topic)).await
    }

    async fn read(&self, range: ReadRange) -> Result<Box<dyn Reader>, Error> {
        let reader = slowly(self.0.read(range)).await?;
        Ok(Box::new(Yielding(reader)))
    }

    async fn committed(&self, group: &Group, topic: &Topic) -> Result<Vec<Committed>, Error> {
        slowly(self.0.committed(group, topic)).await
    }

    async fn parking(&self, group: &Group) -> Result<Arc<dyn Parking>, Error> {
        let parking = slowly(self.0.parking(group)).await?;
        Ok(Arc::new(Yielding(parking)))
    }

    async fn existing_parking(&self, group: &Group) -> Result<Arc<dyn Parking>, Error> {
        let parking = slowly(self.0.existing_parking(group)).await?;
        Ok(Arc::new(Yielding(parking)))
    }

    async fn close(&self, within: Duration) -> Result<(), Error> {
        slowly(self.0.close(within)).await
    }
}

#[async_trait]
impl Source for Yielding<Box<dyn Source>> {
    /// Gives way before only: nothing may be appended before the last await.
    async fn recv(&mut self, room: usize, out: &mut Vec<SourceEvent>) -> Result<usize, Error> {
        yield_now().await;
        self.0.recv(room, out).await
    }

    fn settle(&mut self, batch: &mut Vec<(Token, Settlement)>) {
        self.0.settle(batch);
    }

    fn release(&mut self, owned: &[Owned]) {
        self.0.release(owned);
    }

    fn pause(&mut self, owned: &[Owned]) {
        self.0.pause(owned);
    }

    fn resume(&mut self, owned: &[Owned]) {
        self.0.resume(owned);
    }

    fn commit_now(&mut self, owned: &[Owned]) {
        self.0.commit_now(owned);
    }

    fn subscribe(&mut self, topics: &[Topic]) {
        self.0.subscribe(topics);
    }

    fn stale(&self) -> u64 {
        self.0.stale()
    }

    async fn close(self: Box<Self>, within: Duration) -> Result<(), Error> {
        slowly(self.0.close(within)).await
    }
}

#[async_trait]
impl Reader for Yielding<Box<dyn Reader>> {
    async fn next(&mut self, most: usize, out: &mut Vec<(u64, Message)>) -> Result<usize, Error> {
        yield_now().await;
        self.0.next(most, out).await
    }
}

#[async_trait]
impl Parking for Yielding<Arc<dyn Parking>> {
    fn max_bytes(&self) -> usize {
        self.0.max_bytes()
    }

    async fn claim(&self, partition: &PartitionId, epoch: Epoch) -> Result<Option<Bytes>, Error> {
        slowly(self.0.claim(partition, epoch)).await
    }

    async fn keep(&self, partition: &PartitionId, epoch: Epoch, value: Bytes) -> Result<(), Error> {
        slowly(self.0.keep(partition, epoch, value)).await
    }

    async fn read(&self, partition: &PartitionId) -> Result<Option<Bytes>, Error> {
        slowly(self.0.read(partition)).await
    }

    async fn ask(&self, partition: &PartitionId, request: Bytes) -> Result<(), Error> {
        slowly(self.0.ask(partition, request)).await
    }

    async fn asked(&self, partition: &PartitionId) -> Result<Vec<Bytes>, Error> {
        slowly(self.0.asked(partition)).await
    }

    async fn answered(&self, partition: &PartitionId, request: &Bytes) -> Result<(), Error> {
        slowly(self.0.answered(partition, request)).await
    }
}

/// Is not ready at first, and answers late. What it has reserved it holds while it gives way.
struct YieldingPublisher {
    inner: Publisher,
    has_yielded: bool,
}

impl Clone for YieldingPublisher {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), has_yielded: false }
    }
}

impl Service<Publish> for YieldingPublisher {
    type Response = Receipt;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Receipt, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let ready = self.inner.poll_ready(cx)?;
        if ready.is_pending() || std::mem::replace(&mut self.has_yielded, true) {
            return ready.map(Ok);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, publish: Publish) -> Self::Future {
        self.has_yielded = false;
        let receipt: PublishFuture = self.inner.call(publish);
        Box::pin(slowly(receipt))
    }
}
