//! One hot key beside many others: how long the others take from the source to the end of their handler, with it and without.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use async_trait::async_trait;
use ebus_core::{Delivery, Group, Key, LedgerLimits, Message, Outcome, SourceEvent, Timestamp, Topic};
use ebus_pool::{Handlers, Pool, PoolConfig};

use crate::latency::{Latency, Percentiles};
use crate::source::{HandsOut, Kept, source};
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
    let paced = Paced { hot_left: hot, given: 0, times: times.clone() };
    let (source, all_done) = source(hot + OTHERS, LedgerLimits::default(), paced);
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
    hot_left: usize,
    /// Of the others.
    given: usize,
    times: Arc<Times>,
}

fn give(key: usize, number: i64, kept: &mut Kept, out: &mut Vec<SourceEvent>) {
    let message = Message::made_at(Timestamp::from_millis(number), "");
    kept.give(key % PARTITIONS as usize, message.with_key(Key::from(format!("order-{key}"))), out);
}

impl HandsOut for Paced {
    async fn hand_out(&mut self, room: usize, kept: &mut Kept, out: &mut Vec<SourceEvent>) -> usize {
        if room == 0 || (self.hot_left == 0 && self.given == OTHERS) {
            return std::future::pending().await;
        }
        if self.hot_left > 0 {
            let n = room.min(self.hot_left);
            (0..n).for_each(|_| give(0, -1, kept, out));
            self.hot_left -= n;
            return n;
        }
        let due = self.times.begun + EVERY * self.given as u32;
        tokio::time::sleep_until(due.into()).await;
        let late = self.times.begun.elapsed().as_nanos() / EVERY.as_nanos();
        let n = (late as usize + 1).min(OTHERS).saturating_sub(self.given).clamp(1, room);
        for _ in 0..n {
            let other = self.given;
            give(1 + other % OTHER_KEYS, other as i64, kept, out);
            self.times.note(other, 0);
            self.given += 1;
        }
        n
    }
}
