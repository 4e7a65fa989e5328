//! One hot key beside many others: how long the others take from the source to the end of their handler, with it and without.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use async_trait::async_trait;
use ebus_core::{
    Delivery, Epoch, Error, Group, Inbound, Key, Lease, LedgerLimits, Message, Outcome, Owned, Ownership,
    PartitionId, Position, Settlement, Source, SourceEvent, Timestamp, Token, Topic,
};
use ebus_pool::{Handlers, Pool, PoolConfig};
use tokio::sync::oneshot;

use crate::latency::{Latency, Percentiles};
use crate::work::PARTITIONS;

/// Messages of the hot key, all there at once, and how long each of them takes.
const HOT: usize = 2_000;
const HOT_TAKES: Duration = Duration::from_millis(2);
/// Messages of the other keys: evenly, for as long as the hot key takes.
const OTHERS: usize = 5_000;
const OTHER_KEYS: usize = 1_000;
const EVERY: Duration = Duration::from_micros(800);

/// The others, beside a hot key and without it.
pub(crate) struct HotKey;

#[async_trait]
impl Latency for HotKey {
    fn name(&self) -> &'static str {
        "pool-hot"
    }

    fn work(&self) -> String {
        format!(
            "{OTHERS} messages of {OTHER_KEYS} keys, one each {EVERY:?}, from the source to the end of a handler that does nothing"
        )
    }

    fn ours_is(&self) -> String {
        format!(
            "Pool with its defaults, behind {HOT} messages of one hot key whose handler sleeps {HOT_TAKES:?}"
        )
    }

    fn baseline_is(&self) -> String {
        "the same without the hot key".to_owned()
    }

    async fn ours(&mut self) -> Result<Percentiles> {
        others(HOT).await
    }

    async fn baseline(&mut self) -> Result<Percentiles> {
        others(0).await
    }
}

/// When each of the other keys' messages was handed out, and when it was handled: nanoseconds since the beginning.
struct Times {
    begun: Instant,
    of: Vec<[AtomicU64; 2]>,
}

impl Times {
    fn note(&self, message: usize, which: usize) {
        self.of[message][which].store(self.begun.elapsed().as_nanos() as u64, Relaxed);
    }

    fn percentiles(&self) -> Percentiles {
        let took = self.of.iter().map(|[out, end]| end.load(Relaxed).saturating_sub(out.load(Relaxed)));
        Percentiles::of(took.map(Duration::from_nanos).collect())
    }
}

/// Handles the others behind `hot` messages of a hot key, and says how long they took.
async fn others(hot: usize) -> Result<Percentiles> {
    let of = (0..OTHERS).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect();
    let times = Arc::new(Times { begun: Instant::now(), of });
    let (done, all_done) = oneshot::channel();
    let source = Paced {
        ownership: Ownership::new(LedgerLimits::default()),
        owned: Vec::new(),
        next: [0; PARTITIONS as usize],
        hot_left: hot,
        given: 0,
        times: times.clone(),
        unsettled: hot + OTHERS,
        done: Some(done),
    };
    let seen = times.clone();
    let handler = tower::service_fn(move |delivery: Delivery| {
        let seen = seen.clone();
        async move {
            match number(delivery.message()) {
                None => tokio::time::sleep(HOT_TAKES).await,
                Some(other) => seen.note(other, 1),
            }
            Ok::<_, Infallible>(Outcome::Ack)
        }
    });
    let config = PoolConfig::new(Group::new("bench")?);
    let pool = Pool::start_with(Box::new(source), config, Handlers::new().on(Topic::new("bench")?, handler))?;
    all_done.await?;
    let report = pool.drain(Duration::from_secs(1)).await;
    report.committed?;
    let handled = report.counters.handled;
    ensure!(handled == (hot + OTHERS) as u64, "{handled} messages were handled, not {}", hot + OTHERS);
    Ok(times.percentiles())
}

/// Which of the other keys' messages it is, in place of a time; `None` is the hot key's.
fn number(message: &Message) -> Option<usize> {
    usize::try_from(message.timestamp.as_millis()).ok()
}

/// Hands out the hot key's messages at once, and the others as time goes.
struct Paced {
    ownership: Ownership,
    owned: Vec<Owned>,
    next: [u64; PARTITIONS as usize],
    hot_left: usize,
    /// Of the others.
    given: usize,
    times: Arc<Times>,
    unsettled: usize,
    done: Option<oneshot::Sender<()>>,
}

impl Paced {
    fn hand_out(&mut self, key: usize, number: i64, out: &mut Vec<SourceEvent>) {
        let partition = key % PARTITIONS as usize;
        let offset = self.next[partition];
        self.next[partition] += 1;
        let Ok(Some(token)) = self.ownership.track(self.owned[partition], offset) else {
            unreachable!("ascending")
        };
        let message =
            Message::made_at(Timestamp::from_millis(number), "").with_key(Key::from(format!("order-{key}")));
        out.push(SourceEvent::Message(Inbound { token, message }));
    }
}

#[async_trait]
impl Source for Paced {
    async fn recv(&mut self, room: usize, out: &mut Vec<SourceEvent>) -> Result<usize, Error> {
        if self.owned.is_empty() {
            let mut assigned = Vec::new();
            for partition in 0..PARTITIONS {
                let id = PartitionId::new(Topic::new("bench")?, partition);
                assigned.push(self.ownership.assign(id, Epoch(1), &Position::default(), Lease::unlimited()));
            }
            self.owned = assigned.iter().map(|one| one.owned).collect();
            out.push(SourceEvent::Assigned { owned: assigned });
            return Ok(1);
        }
        if room == 0 || (self.hot_left == 0 && self.given == OTHERS) {
            return std::future::pending().await;
        }
        if self.hot_left > 0 {
            let n = room.min(self.hot_left);
            (0..n).for_each(|_| self.hand_out(0, -1, out));
            self.hot_left -= n;
            return Ok(n);
        }
        let due = self.times.begun + EVERY * self.given as u32;
        tokio::time::sleep_until(due.into()).await;
        let late = self.times.begun.elapsed().as_nanos() / EVERY.as_nanos();
        let n = (late as usize + 1).min(OTHERS).saturating_sub(self.given).clamp(1, room);
        for _ in 0..n {
            let other = self.given;
            self.hand_out(1 + other % OTHER_KEYS, other as i64, out);
            self.times.note(other, 0);
            self.given += 1;
        }
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
    fn commit_now(&mut self, _owned: &[Owned]) {}
    fn subscribe(&mut self, _topics: &[Topic]) {}

    fn stale(&self) -> u64 {
        self.ownership.stale()
    }

    async fn close(self: Box<Self>, _within: Duration) -> Result<(), Error> {
        Ok(())
    }
}
