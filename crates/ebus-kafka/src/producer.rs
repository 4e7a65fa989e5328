//! Publishing: idempotent, acknowledged by all in-sync replicas, in the order of `call` (G1, G7), bounded (G5).
//!
//! `call` hands the message to librdkafka before it returns, so that the order of calls is the order on the wire. A topic that
//! was not seen yet is looked up first, and created if the policy says so; what is published to it meanwhile waits in the order
//! of `call`, and goes out before anything that is published after. So the broker's own auto-creation never happens.
//!
//! librdkafka gives no message up (G7, see `deadlines.rs`): past the deadline the caller has an answer, and the message keeps its
//! place, in flight and in the order, until the broker has answered or the connection is closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ebus_core::{Error, ErrorKind, FOR_EVER, Message, Publish, Receipt, Retryability, Topic};
use parking_lot::{Mutex, RwLock};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig};
use rdkafka::statistics::Statistics;
use tower_service::Service;

use crate::clients::{self, Log};
use crate::config::KafkaConfig;
use crate::deadlines::Deadlines;
use crate::elsewhere::Elsewhere;
use crate::error::{fatal, from_kafka, no_place, publish_failed};
use crate::flight::{Flight, KafkaPublishFuture};
use crate::in_flight::{InFlight, NoPlace, Waiter};
use crate::known::{Seen, Topics};
use crate::places::Places;
use crate::serving::Serving;
use crate::sys::produce::may_be_stored;
use crate::takes::Takes;
use crate::topics::Control;

/// After so many reports what has landed is forgotten, between two turns of the polling thread.
const REPORTS_BETWEEN_SWEEPS: usize = 512;

/// A publisher of one connection: a `tower` service that is cheap to clone.
///
/// `poll_ready` reserves one message of the in-flight bound and waits while too many messages or bytes are unacknowledged; a clone
/// that is dropped gives its place back. `call` enqueues before it returns. The future resolves with the acknowledgement of all
/// in-sync replicas.
///
/// While the broker is away, what is past its deadline keeps its place in flight. When all places are held so, `poll_ready` does
/// not wait: `call` fails with `Unavailable`, and nothing of that message is ever sent.
///
/// # Errors
/// `Closed` from `poll_ready` and `call` after the backend was closed; `TooLarge` and `Unavailable` at `call`, nothing sent; and
/// what [`KafkaPublishFuture`] says.
#[derive(Debug)]
pub struct KafkaProducer {
    shared: Arc<Shared>,
    reserved: bool,
    /// There was no place, and waiting for one was in vain: the next `call` is refused unless it finds one.
    stalled: bool,
    waiter: Waiter,
    /// The last topic that was known, and the generation of the list that it was found in.
    known: Option<(Topic, u64, Takes)>,
}

pub(crate) struct Shared {
    client: Arc<Elsewhere<BaseProducer<Reports>>>,
    control: Control,
    in_flight: Arc<InFlight>,
    deadlines: Arc<Deadlines>,
    max_message_bytes: usize,
    topics: Arc<Topics>,
    /// True once closed. Held for reading while a message is handed over, so that closing flushes all that were.
    gate: RwLock<bool>,
    runtime: tokio::runtime::Handle,
    stop: Arc<AtomicBool>,
    /// With `stop`: nothing is sent any more.
    closed: Arc<AtomicBool>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

/// What librdkafka's thread does with delivery reports.
pub(crate) struct Reports {
    log: Log,
    in_flight: Arc<InFlight>,
    deadlines: Arc<Deadlines>,
    reports: AtomicUsize,
    places: Places,
    topics: Arc<Topics>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(error, reason);
    }

    fn stats(&self, _: Statistics) {}

    fn stats_raw(&self, statistics: &[u8]) {
        self.log.stats_raw(statistics);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Arc<Flight>;

    fn delivery(&self, result: &DeliveryResult<'_>, flight: Arc<Flight>) {
        let result = match result {
            Ok(stored) => {
                let (topic, partition) = (stored.topic(), stored.partition());
                let place =
                    u32::try_from(partition).ok().zip(self.places.place(topic, partition, stored.offset()));
                place.ok_or_else(|| no_place(partition))
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                // It is gone, or takes less than it did.
                if matches!(crate::error::kind_of(code), ErrorKind::NotFound | ErrorKind::TooLarge) {
                    self.topics.forget(message.topic());
                }
                Err(publish_failed(code, may_be_stored(message)))
            }
        };
        self.in_flight.land(&flight, result);
        if (self.reports.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(REPORTS_BETWEEN_SWEEPS) {
            self.deadlines.sweep(Instant::now());
        }
    }
}

impl Shared {
    pub(crate) fn new(config: &KafkaConfig, control: Control) -> Result<Arc<Self>, Error> {
        let in_flight = Arc::new(InFlight::new(config.in_flight_messages, config.in_flight_bytes));
        let topics = Arc::new(Topics::default());
        let deadlines = Arc::new(Deadlines::new(config.delivery_timeout, in_flight.clone()));
        let reports = Reports {
            log: Log::default(),
            in_flight: in_flight.clone(),
            deadlines: deadlines.clone(),
            reports: AtomicUsize::new(0),
            places: Places::default(),
            topics: topics.clone(),
        };
        let client: BaseProducer<Reports> = clients::producer(config)
            .create_with_context(reports)
            .map_err(|error| from_kafka("connect", error))?;
        let client = Arc::new(Elsewhere::new(client));
        let stop = Arc::new(AtomicBool::new(false));
        let closed = Arc::new(AtomicBool::new(false));
        let thread = {
            let serving = Serving {
                client: client.clone(),
                control: control.clone(),
                deadlines: deadlines.clone(),
                stop: stop.clone(),
                closed: closed.clone(),
                grace: config.delivery_timeout,
                has_failed: false,
            };
            std::thread::Builder::new().name("ebus-kafka-pub".into()).spawn(move || serving.run()).map_err(
                |error| {
                    Error::new(ErrorKind::Unexpected, "no thread for delivery reports could be started")
                        .with_operation("connect")
                        .with_source(error)
                },
            )?
        };
        Ok(Arc::new(Self {
            client,
            control,
            in_flight,
            deadlines,
            max_message_bytes: config.max_message_bytes,
            topics,
            gate: RwLock::new(false),
            runtime: tokio::runtime::Handle::current(),
            stop,
            closed,
            thread: Mutex::new(Some(thread)),
        }))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.in_flight.is_closed()
    }

    /// Nothing more is taken.
    pub(crate) fn refuse(&self) {
        *self.gate.write() = true;
        self.in_flight.close();
    }

    /// Sends what is enqueued and ends. Blocks for up to `within`; what is left then is given up. `Timeout` if the publish of some
    /// of that had no answer yet.
    pub(crate) fn close(&self, within: Duration) -> Result<(), Error> {
        let end = Instant::now() + within.min(FOR_EVER);
        self.refuse();
        // What waits for its topic is enqueued or refused by the task that looks it up.
        while self.topics.list.read().values().any(|seen| matches!(seen, Seen::LookedUp(_))) {
            if Instant::now() >= end {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let flushed = self.client.flush(end.saturating_duration_since(Instant::now()));
        // librdkafka counts its errors and log lines too; ours counts places that nobody has used.
        let left = usize::try_from(self.client.in_flight_count()).unwrap_or(0).min(self.in_flight.messages());
        // Whose publish has failed with `Timeout` before: closing need not fail because of them again.
        let overdue = self.in_flight.overdue();
        if flushed.is_err() {
            tracing::warn!(
                unacknowledged = left,
                overdue,
                "messages are given up, for the connection closes"
            );
            self.client.purge(PurgeConfig::default().queue().inflight());
            // The reports of what was purged.
            let _ = self.client.flush(Duration::from_millis(500));
        }
        self.closed.store(true, Ordering::Release);
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
        match flushed {
            Err(_) if left > overdue => Err(Error::new(
                ErrorKind::Timeout,
                "not everything was acknowledged in time; each publish has its own error",
            )
            .with_operation("close")
            .with_context("unacknowledged", left - overdue)),
            _ => Ok(()),
        }
    }

    /// Hands a message to librdkafka; it owns the flight from here on, or the flight has landed.
    fn enqueue(&self, topic: &str, message: &Message, flight: Arc<Flight>) {
        let mut record = BaseRecord::<[u8], [u8], _>::with_opaque_to(topic, flight)
            .payload(&message.payload)
            .timestamp(message.timestamp.as_millis());
        if let Some(key) = &message.key {
            record = record.key(key.as_bytes());
        }
        if !message.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(message.headers.len());
            record = record.headers(message.headers.iter().fold(headers, |headers, (name, value)| {
                headers.insert(Header { key: name, value: Some(value.as_ref()) })
            }));
        }
        if let Err((error, record)) = self.client.send(record) {
            let flight = record.delivery_opaque;
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::InvalidArgument);
            let error = match self.client.client().fatal_error() {
                Some((code, reason)) => fatal(code, &reason),
                None => publish_failed(code, false),
            };
            self.in_flight.land(&flight, Err(error));
        }
    }

    /// The same, unless the topic does not take the message.
    fn enqueue_if(&self, takes: Takes, topic: &str, message: &Message, flight: Arc<Flight>) {
        match takes.check(message) {
            Ok(()) => self.enqueue(topic, message, flight),
            Err(error) => self.in_flight.land(&flight, Err(error)),
        }
    }

    /// Looks a topic up in the background, and then enqueues or refuses what waits for it.
    fn look_up(self: &Arc<Self>, topic: Topic) {
        let shared = self.clone();
        self.runtime.spawn(async move {
            let name = topic.clone();
            let found = shared
                .control
                .run("publish", move |control| {
                    control.ensure(&name)?;
                    Ok(control.takes(&name).unwrap_or_default())
                })
                .await;
            let mut list = shared.topics.list.write();
            let Some(Seen::LookedUp(waiting)) = list.remove(&topic) else { return };
            match found {
                Ok(takes) => {
                    // Under the lock: nobody's later message overtakes these.
                    for (message, flight) in waiting {
                        shared.enqueue_if(takes, topic.as_str(), &message, flight);
                    }
                    list.insert(topic, Seen::Known(takes, Instant::now()));
                }
                Err(error) => {
                    drop(list);
                    for (_, flight) in waiting {
                        shared.in_flight.land(&flight, Err(error.clone()));
                    }
                }
            }
        });
    }

    /// The topic may take by now what it did not: asks for it once in a while, beside what is published meanwhile.
    fn ask_again(self: &Arc<Self>, topic: Topic) {
        if !self.topics.asks_again(&topic, Instant::now()) {
            return;
        }
        let shared = self.clone();
        self.runtime.spawn(async move {
            let name = topic.clone();
            // What is not told stays as it was.
            if let Ok(Some(takes)) =
                shared.control.run("publish", move |control| Ok(control.takes(&name))).await
            {
                shared.topics.told(&topic, takes);
            }
        });
    }
}

impl Drop for Shared {
    /// Without `close`: the thread sends what is enqueued and logs what it could not; nothing is waited for here.
    fn drop(&mut self) {
        self.in_flight.close();
        self.stop.store(true, Ordering::Release);
    }
}

impl KafkaProducer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, reserved: false, stalled: false, waiter: Waiter::default(), known: None }
    }

    /// What a topic takes that was looked up.
    fn takes(&mut self, topic: &Topic) -> Option<Takes> {
        let generation = self.shared.topics.generation.load(Ordering::Acquire);
        if let Some((known, of, takes)) = &self.known
            && *of == generation
            && known == topic
        {
            return Some(*takes);
        }
        let list = self.shared.topics.list.read();
        let Some(Seen::Known(takes, _)) = list.get(topic) else { return None };
        let takes = *takes;
        drop(list);
        self.known = Some((topic.clone(), generation, takes));
        Some(takes)
    }
}

impl Service<Publish> for KafkaProducer {
    type Response = Receipt;
    type Error = Error;
    type Future = KafkaPublishFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.reserved {
            return Poll::Ready(if self.shared.is_closed() { Err(Error::closed("publish")) } else { Ok(()) });
        }
        self.shared.in_flight.poll_reserve(&mut self.waiter, cx).map(|reserved| match reserved {
            Ok(()) => {
                self.reserved = true;
                Ok(())
            }
            Err(NoPlace::Stalled) => {
                self.stalled = true;
                Ok(())
            }
            Err(NoPlace::Closed) => Err(Error::closed("publish")),
        })
    }

    fn call(&mut self, publish: Publish) -> KafkaPublishFuture {
        let Publish { topic, message, .. } = publish;
        let shared = self.shared.clone();
        let closed = shared.gate.read();
        if *closed {
            return KafkaPublishFuture::refused(topic, Error::closed("publish"));
        }
        let bytes = message.byte_len();
        if bytes > self.shared.max_message_bytes {
            let error = Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the message has {bytes} bytes; at most {} are allowed",
                    self.shared.max_message_bytes
                ),
            );
            return KafkaPublishFuture::refused(topic, error.with_operation("publish"));
        }
        if message.timestamp.as_millis() <= 0 {
            // librdkafka takes 0 as "now", and brokers refuse what is below.
            let error = Error::new(
                ErrorKind::Unsupported,
                "Kafka keeps no timestamp before 1970-01-01 00:00:00.001 UTC",
            );
            return KafkaPublishFuture::refused(topic, error.with_operation("publish"));
        }
        let takes = self.takes(&topic);
        if let Some(Err(error)) = takes.map(|takes| takes.check(&message)) {
            drop(closed);
            shared.ask_again(topic.clone());
            return KafkaPublishFuture::refused(topic, error);
        }
        let stalled = std::mem::take(&mut self.stalled);
        if !std::mem::take(&mut self.reserved) && !self.shared.in_flight.try_reserve() {
            let error = if stalled || self.shared.in_flight.is_stalled() {
                Error::new(
                    ErrorKind::Unavailable,
                    "the broker has acknowledged nothing of what is in flight within the delivery timeout, and there is no \
                     room for more; this message was not sent and is not stored; check the broker",
                )
                .with_retryability(Retryability::Safe)
            } else {
                Error::new(ErrorKind::Overloaded, "too much is in flight; wait for poll_ready before call")
            };
            return KafkaPublishFuture::refused(topic, error.with_operation("publish"));
        }
        self.shared.in_flight.add_bytes(bytes);
        let flight = Arc::new(Flight::new(bytes));
        let future = KafkaPublishFuture::of(topic.clone(), flight.clone());
        self.shared.deadlines.watch(&flight, Instant::now());
        if takes.is_some() {
            self.shared.enqueue(topic.as_str(), &message, flight);
            return future;
        }
        let mut list = self.shared.topics.list.write();
        match list.get_mut(&topic) {
            Some(Seen::Known(takes, _)) => self.shared.enqueue_if(*takes, topic.as_str(), &message, flight),
            Some(Seen::LookedUp(waiting)) => waiting.push((message, flight)),
            None => {
                list.insert(topic.clone(), Seen::LookedUp(vec![(message, flight)]));
                drop(list);
                self.shared.look_up(topic);
            }
        }
        future
    }
}

impl Clone for KafkaProducer {
    /// Readiness is not cloned: each clone reserves its own place.
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            reserved: false,
            stalled: false,
            waiter: Waiter::default(),
            known: self.known.clone(),
        }
    }
}

impl Drop for KafkaProducer {
    fn drop(&mut self) {
        self.shared.in_flight.leave(&mut self.waiter);
        if self.reserved {
            self.shared.in_flight.give_back(0);
        }
    }
}

#[cfg(test)]
#[path = "producer_tests.rs"]
mod tests;
