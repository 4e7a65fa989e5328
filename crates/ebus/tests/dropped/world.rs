//! One bus, one consumer with a parked key, and what was handled.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebus::{
    Bus, Consumer, ConsumerBuilder, Delivery, Error, ErrorKind, Handled, Handler, HandlerError, Message,
    NextOffset, Publish, ReadRange, Topic, memory::MemoryBroker, memory::MemoryConfig, raw,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::yielding::Yielding;

pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) fn topic(name: &str) -> Topic {
    Topic::new(name).expect("legal")
}

/// What handlers did: the offsets of each key, in the order in which their runs ended well.
#[derive(Debug, Default)]
pub(crate) struct Log {
    done: Mutex<BTreeMap<String, Vec<u64>>>,
    passes: AtomicBool,
}

pub(crate) type Done = Arc<Log>;

/// Handles slowly; the key `bad` is refused until it may pass.
pub(crate) async fn handle(done: Done, delivery: Delivery) -> Handled {
    let key = delivery.key().and_then(|key| key.as_str()).unwrap_or_default().to_owned();
    let offset = delivery.offset();
    tokio::time::sleep(Duration::from_millis(3)).await;
    if key == "bad" && !done.passes.load(SeqCst) {
        return Err(HandlerError::permanent("not yet"));
    }
    done.done.lock().expect("nobody panicked").entry(key).or_default().push(offset);
    Ok(())
}

pub(crate) async fn see(seen: UnboundedSender<u64>, delivery: Delivery) -> Handled {
    seen.send(delivery.offset())?;
    Ok(())
}

pub(crate) struct World {
    broker: MemoryBroker,
    pub(crate) bus: Bus,
    pub(crate) consumer: Consumer,
    pub(crate) handled: Done,
    next: AtomicU64,
}

impl World {
    /// One place in flight for the whole connection; the key `bad` is parked.
    pub(crate) async fn new() -> Self {
        let mut config = MemoryConfig::default();
        config.max_in_flight = 1;
        let broker = MemoryBroker::new(config).expect("valid");
        let bus = Bus::new(Arc::new(Yielding(broker.connect())));
        let handled = Done::default();
        for name in ["orders", "orders.dlq", "late.dlq", "users", "bills"] {
            bus.create_topic(&ebus::TopicSpec::new(topic(name), 2)).await.expect("is made");
        }
        let consumer = consumer(&bus, &handled).start().await.expect("starts");
        let world = Self { broker, bus, consumer, handled, next: AtomicU64::new(0) };
        for _ in 0..2 {
            world.bus.publish(world.message("bad")).await.expect("is stored");
        }
        world.until("both are parked", async || world.consumer.counters().parked == 1).await;
        world
    }

    pub(crate) fn consumer_on(&self, bus: &Bus) -> ConsumerBuilder {
        consumer(bus, &self.handled)
    }

    pub(crate) fn handler(&self) -> impl Handler + use<> {
        raw(handle).with(self.handled.clone())
    }

    pub(crate) fn message(&self, key: &'static str) -> Result<Publish, Error> {
        let number = self.next.fetch_add(1, SeqCst);
        Publish::to("orders", Message::new(number.to_string()).with_key(key))
    }

    /// Leaves some of them running or queued.
    pub(crate) async fn publish_some(&self) {
        for key in ["k0", "k1", "k0", "k2", "k0", "k1"] {
            self.bus.publish(self.message(key)).await.expect("is stored");
        }
    }

    /// All partitions are read, and soon.
    pub(crate) async fn handles_within(&self, within: Duration) {
        let done =
            || self.handled.done.lock().expect("nobody panicked").values().map(Vec::len).sum::<usize>();
        self.publish_some().await;
        let parked = 2;
        let all = async {
            while done() + parked < self.stored().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(within, all).await.expect("nobody else is in the group");
    }

    /// Messages that are stored, whoever asks.
    pub(crate) async fn stored(&self) -> usize {
        // What was enqueued is stored at once; what gave way before that needs its turn.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let info = self.broker.connect();
        let info = ebus::Backend::describe_topic(&info, &topic("orders")).await.expect("is there");
        info.partitions.iter().map(|partition| partition.end.0 as usize).sum()
    }

    pub(crate) fn let_pass(&self) {
        self.handled.passes.store(true, SeqCst);
    }

    /// Redrives the key `bad` until it is parked no more.
    pub(crate) async fn redrive(&self) {
        redrive(&self.bus, &self.handled).await;
    }

    async fn until(&self, what: &str, reached: impl AsyncFn() -> bool) {
        until(what, reached).await;
    }

    /// Nothing is lost, doubled, hung or left behind.
    pub(crate) async fn goes_on(self) {
        let Self { broker, bus, consumer, handled, next } = self;
        if bus.describe_topic("orders").await.is_ok() && consumer.state().await.ended.is_none() {
            // One after the other, since there is one place.
            for key in ["k0", "k1", "k2", "k0"] {
                let number = next.fetch_add(1, SeqCst);
                let message = Message::new(number.to_string()).with_key(key);
                bus.publish(Publish::to("orders", message)).await.expect("a place is free");
            }
        }
        let report = consumer.drain(SOON).await;
        report.committed.expect("accepted");
        bus.close(SOON).await.expect("nothing is left open");
        let closed = bus.publish(Publish::to("orders", Message::new("late"))).await.expect_err("is closed");
        assert_eq!(closed.kind(), ErrorKind::Closed);
        drop((consumer, bus));

        // Whatever is left is the next one's, and nothing else.
        let bus = Bus::new(Arc::new(broker.connect()));
        let consumer = self::consumer(&bus, &handled).start().await.expect("starts");
        redrive(&bus, &handled).await;
        let mut stored = BTreeMap::<String, Vec<u64>>::new();
        let info = bus.describe_topic("orders").await.expect("is there");
        for (number, partition) in info.partitions.iter().enumerate() {
            let range = ReadRange::new(topic("orders"), number as u32, 0, NextOffset(partition.end.0));
            let mut reader = bus.backend().read(range).await.expect("is there");
            let mut read = Vec::new();
            while reader.next(100, &mut read).await.expect("is there") > 0 {}
            for (offset, message) in read {
                let key = message.key.as_ref().and_then(|key| key.as_str()).unwrap_or_default();
                stored.entry(key.to_owned()).or_default().push(offset);
            }
        }
        let all = stored.values().map(Vec::len).sum::<usize>();
        until("all are handled", async || {
            handled.done.lock().expect("nobody panicked").values().map(Vec::len).sum::<usize>() >= all
        })
        .await;
        assert_eq!(*handled.done.lock().expect("nobody panicked"), stored, "each once, in order");
        consumer.drain(SOON).await.committed.expect("accepted");
        bus.close(SOON).await.expect("nothing is left open");
    }
}

fn consumer(bus: &Bus, handled: &Done) -> ConsumerBuilder {
    bus.consumer("g")
        .on("orders", raw(handle).with(handled.clone()))
        .dead_letter("orders.dlq")
        .park_keys(10)
        .shards(2)
}

async fn redrive(bus: &Bus, handled: &Done) {
    handled.passes.store(true, SeqCst);
    until("the key is parked no more", async || match bus.redrive("g", "orders", "bad").await {
        Ok(()) => false,
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        Err(error) => panic!("{error}"),
    })
    .await;
}

async fn until(what: &str, reached: impl AsyncFn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(600), async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}
