//! How fast the in-process broker is by itself: `cargo run --release -p ebus-memory --example memory_throughput [messages]`.
//!
//! Prints messages per second of `poll_ready` and `call` alone, of `recv` alone from a full log, and of both at once with
//! every message settled.
#![allow(missing_docs)]

use std::future::poll_fn;
use std::time::{Duration, Instant};

use ebus_core::{
    Backend, Error, Group, Key, LedgerLimits, Message, Publish, Settlement, Source, SourceEvent,
    SourceOptions, Timestamp, Topic,
};
use ebus_memory::{MemoryBackend, MemoryConfig};
use tower_service::Service;

const ROUNDS: usize = 5;

fn messages(count: usize) -> Vec<Publish> {
    let topic = Topic::new("orders").expect("legal");
    let keys: Vec<Key> = (0..10_000).map(|n| Key::from(format!("order-{n}"))).collect();
    let payload = Message::new(vec![b'x'; 200]).payload;
    let now = Timestamp::now();
    let one = |n: usize| {
        let message = Message::new("").with_key(keys[n % keys.len()].clone()).with_timestamp(now);
        let mut publish = Publish::new(topic.clone(), message);
        publish.message.payload = payload.clone();
        publish
    };
    (0..count).map(one).collect()
}

async fn publish_all(backend: &MemoryBackend, batch: Vec<Publish>) -> Result<(), Error> {
    let mut producer = backend.producer();
    for (n, publish) in batch.into_iter().enumerate() {
        poll_fn(|cx| producer.poll_ready(cx)).await?;
        drop(producer.call(publish));
        if n % 1_024 == 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

async fn consume(source: &mut dyn Source, count: usize, settle: bool) -> Result<(), Error> {
    let (mut events, mut settled, mut seen) = (Vec::new(), Vec::new(), 0);
    while seen < count {
        source.recv(1_024, &mut events).await?;
        for event in events.drain(..) {
            if let SourceEvent::Message(inbound) = event {
                seen += 1;
                std::hint::black_box(&inbound.message);
                settled.push((inbound.token, Settlement::Finished));
            }
        }
        if settle {
            source.settle(&mut settled);
        }
        settled.clear();
    }
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn report(name: &str, count: usize, times: Vec<Duration>) {
    let rate = count as f64 / median(times).as_secs_f64() / 1e6;
    println!("{name:<40} {rate:>7.2} million/s");
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Error> {
    let count: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let options = || -> Result<SourceOptions, Error> {
        let limits = LedgerLimits::default().with_max_span(count).with_max_position_len(count);
        Ok(SourceOptions::new(Group::new("bench")?, vec![Topic::new("orders")?]).with_limits(limits))
    };
    let mut times = [(); 4].map(|()| Vec::new());
    for _ in 0..ROUNDS {
        let backend = MemoryBackend::new(MemoryConfig::default())?;
        let batch = messages(count);
        let began = Instant::now();
        publish_all(&backend, batch).await?;
        times[0].push(began.elapsed());
        let mut source = backend.source(options()?).await?;
        let began = Instant::now();
        consume(source.as_mut(), count, false).await?;
        times[1].push(began.elapsed());
        drop(source);
        let mut source = backend.source(options()?).await?;
        let began = Instant::now();
        consume(source.as_mut(), count, true).await?;
        times[2].push(began.elapsed());

        let backend = MemoryBackend::new(MemoryConfig::default())?;
        let mut source = backend.source(options()?).await?;
        let batch = messages(count);
        let began = Instant::now();
        let publisher = backend.clone();
        let publishing = tokio::spawn(async move { publish_all(&publisher, batch).await });
        consume(source.as_mut(), count, true).await?;
        times[3].push(began.elapsed());
        publishing.await.map_err(|error| Error::from_boxed(error.into()))??;
    }
    println!("{count} messages of 200 B, 10,000 keys, 8 partitions, median of {ROUNDS}");
    let names = ["poll_ready and call", "recv by 1,024", "recv by 1,024 and settle", "both at once, settled"];
    for (name, times) in names.into_iter().zip(times) {
        report(name, count, times);
    }
    Ok(())
}
