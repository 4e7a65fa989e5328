//! The pool alone: messages from memory, a handler that does nothing, 10,000 keys.
//!
//! The baseline is what is usually written: a bounded queue per worker, a hash of the key to the worker, one send per message.

use std::time::{Duration, Instant};

use ahash::RandomState;
use anyhow::Result;
use async_trait::async_trait;
use ebus_core::{
    Error, Group, Inbound, Key, Lease, LedgerLimits, Message, Outcome, Owned, Ownership, PartitionId,
    Position, Settlement, Source, SourceEvent, Token, Topic,
};
use ebus_pool::{Handlers, Pool, PoolConfig};

use crate::work::{KEYS, messages};

const PARTITIONS: u32 = 8;

/// Hands out messages made beforehand, as fast as they are taken.
struct Ready {
    ownership: Ownership,
    owned: Vec<Owned>,
    next: Vec<u64>,
    messages: Vec<Message>,
    left: usize,
    unsettled: usize,
    done: Option<tokio::sync::oneshot::Sender<()>>,
}

#[async_trait]
impl Source for Ready {
    async fn recv(&mut self, room: usize, out: &mut Vec<SourceEvent>) -> Result<usize, Error> {
        if self.owned.is_empty() {
            let mut assigned = Vec::new();
            for partition in 0..PARTITIONS {
                let id = PartitionId::new(Topic::new("bench")?, partition);
                let one =
                    self.ownership.assign(id, ebus_core::Epoch(1), &Position::default(), Lease::unlimited());
                self.owned.push(one.owned);
                self.next.push(0);
                assigned.push(one);
            }
            out.push(SourceEvent::Assigned { owned: assigned });
            return Ok(1);
        }
        let n = room.min(self.left);
        if n == 0 {
            return std::future::pending().await;
        }
        for i in 0..n {
            let message = self.messages[(self.left - i) % KEYS].clone();
            let partition = (self.left - i) % self.owned.len();
            let offset = self.next[partition];
            self.next[partition] += 1;
            let Ok(Some(token)) = self.ownership.track(self.owned[partition], offset) else {
                unreachable!("ascending")
            };
            out.push(SourceEvent::Message(Inbound { token, message }));
        }
        self.left -= n;
        Ok(n)
    }

    fn settle(&mut self, batch: &mut Vec<(Token, Settlement)>) {
        self.unsettled -= self.ownership.settle(batch).finished;
        if self.unsettled == 0 {
            self.done.take().map(|done| done.send(()));
        }
    }

    fn release(&mut self, _owned: &[Owned]) {}
    fn pause(&mut self, _owned: &[Owned]) {}
    fn resume(&mut self, _owned: &[Owned]) {}
    fn subscribe(&mut self, _topics: &[Topic]) {}

    fn stale(&self) -> u64 {
        self.ownership.stale()
    }

    async fn close(self: Box<Self>, _within: Duration) -> Result<(), Error> {
        Ok(())
    }
}

pub(crate) async fn ours(n: usize) -> Result<f64> {
    let (done, all_done) = tokio::sync::oneshot::channel();
    let source = Ready {
        ownership: Ownership::new(LedgerLimits::default().with_max_span(1 << 20)),
        owned: Vec::new(),
        next: Vec::new(),
        messages: messages(),
        left: n,
        unsettled: n,
        done: Some(done),
    };
    let group = Group::new("bench")?;
    let handler = tower::service_fn(|_| std::future::ready(Ok::<_, std::convert::Infallible>(Outcome::Ack)));
    let begun = Instant::now();
    let pool = Pool::start_with(
        Box::new(source),
        PoolConfig::new(group),
        Handlers::new().on(Topic::new("bench")?, handler),
    )?;
    all_done.await?;
    let rate = n as f64 / begun.elapsed().as_secs_f64();
    pool.drain(Duration::from_secs(1)).await.committed?;
    Ok(rate)
}

pub(crate) async fn baseline(n: usize) -> Result<f64> {
    let messages = messages();
    let state = RandomState::with_seeds(1, 2, 3, 4);
    let workers = 2;
    let mut senders = Vec::new();
    let mut tasks = Vec::new();
    for _ in 0..workers {
        let (tx, mut rx) = tokio::sync::mpsc::channel::<(u64, Message)>(1024);
        senders.push(tx);
        tasks.push(tokio::spawn(async move {
            let mut batch = Vec::with_capacity(256);
            let mut seen = 0u64;
            while rx.recv_many(&mut batch, 256).await > 0 {
                for (offset, message) in batch.drain(..) {
                    std::hint::black_box(&message);
                    seen = seen.wrapping_add(offset);
                }
            }
            seen
        }));
    }
    let begun = Instant::now();
    for i in 0..n {
        let message = messages[i % KEYS].clone();
        let hash = state.hash_one(message.key.as_ref().map(Key::as_bytes).unwrap_or_default());
        senders[hash as usize % workers].send((i as u64, message)).await?;
    }
    drop(senders);
    for task in tasks {
        std::hint::black_box(task.await?);
    }
    Ok(n as f64 / begun.elapsed().as_secs_f64())
}
