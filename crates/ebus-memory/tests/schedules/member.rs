//! One member: a pool on a recorded source that can be frozen.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{Backend, Error, Owned, Settlement, Source, SourceEvent, SourceOptions, Token, Topic};
use ebus_memory::MemoryBroker;
use ebus_pool::{Batch, DrainReport, Handlers, Pool, PoolConfig};
use ebus_testkit::history::History;
use ebus_testkit::record::{Recorded, RecordedHandler};
use tokio::sync::watch;

use crate::handle::Planned;
use crate::plan::Plan;
use crate::world::{dead, group, topic};

pub(crate) struct Member {
    pub(crate) pool: Pool,
    backend: Arc<dyn Backend>,
    frozen: watch::Sender<bool>,
}

impl Member {
    pub(crate) async fn join(broker: &MemoryBroker, history: &History, plan: &Arc<Plan>, name: &str) -> Self {
        let backend: Arc<dyn Backend> =
            Arc::new(Recorded::new(Arc::new(broker.connect()), history.clone(), name));
        let options = plan.options(SourceOptions::new(group(), vec![topic()]));
        let source = backend.source(options).await.expect("the broker takes members");
        let (frozen, freezes) = watch::channel(false);
        let mut config = plan.pool(PoolConfig::new(group()));
        if !plan.once {
            config = config.with_dead_letter(dead(), backend.publisher());
        }
        if let Some(most) = plan.parks {
            let parking = loop {
                match backend.parking(&group()).await {
                    Ok(parking) => break parking,
                    // By fault injection: who starts then, starts again.
                    Err(_) => broker.faults().parking_fails(&group(), None),
                }
            };
            config = config.with_parked_keys(most).with_parking(parking, backend.clone());
        }
        let handler = RecordedHandler::new(Planned(plan.clone()), history.clone(), &group(), name);
        let source = Box::new(Freezing { inner: source, freezes });
        let handlers = match plan.batches {
            Some((messages, age)) => {
                Handlers::new().batch(topic(), Batch::of(messages).max_age(age), handler)
            }
            None => Handlers::new().on(topic(), handler),
        };
        let pool = Pool::start_with(source, config, handlers).expect("the plan is legal");
        Self { pool, backend, frozen }
    }

    /// Whether it has ended by itself: its source was crashed.
    pub(crate) async fn has_ended(&self) -> bool {
        tokio::select! {
            biased;
            _ = self.pool.ended() => true,
            () = std::future::ready(()) => false,
        }
    }

    pub(crate) async fn leave(self, within: Duration) -> DrainReport {
        let report = self.pool.drain(within).await;
        let _ = self.backend.close(within).await;
        report
    }

    /// Its source is polled no more until it is thawed, as in a process that was stopped; its runs go on.
    pub(crate) fn freeze(&self, time: Duration) -> impl Future<Output = ()> + use<> {
        self.frozen.send_replace(true);
        let frozen = self.frozen.clone();
        async move {
            tokio::time::sleep(time).await;
            frozen.send_replace(false);
        }
    }
}

struct Freezing {
    inner: Box<dyn Source>,
    freezes: watch::Receiver<bool>,
}

#[async_trait]
impl Source for Freezing {
    async fn recv(&mut self, room: usize, out: &mut Vec<SourceEvent>) -> Result<usize, Error> {
        loop {
            // A member that is gone thaws nobody: its sender is dropped.
            let _ = self.freezes.wait_for(|frozen| !frozen).await;
            let mut freezes = self.freezes.clone();
            tokio::select! {
                biased;
                Ok(_) = freezes.wait_for(|frozen| *frozen) => {}
                received = self.inner.recv(room, out) => return received,
            }
        }
    }

    fn settle(&mut self, batch: &mut Vec<(Token, Settlement)>) {
        self.inner.settle(batch);
    }

    fn release(&mut self, owned: &[Owned]) {
        self.inner.release(owned);
    }

    fn pause(&mut self, owned: &[Owned]) {
        self.inner.pause(owned);
    }

    fn resume(&mut self, owned: &[Owned]) {
        self.inner.resume(owned);
    }

    fn commit_now(&mut self, owned: &[Owned]) {
        self.inner.commit_now(owned);
    }

    fn subscribe(&mut self, topics: &[Topic]) {
        self.inner.subscribe(topics);
    }

    fn stale(&self) -> u64 {
        self.inner.stale()
    }

    async fn close(self: Box<Self>, within: Duration) -> Result<(), Error> {
        self.inner.close(within).await
    }
}
