//! Writing parked keys: acknowledged by all in-sync replicas, each key's writes in order (G1).
//!
//! As with messages, librdkafka gives nothing up: a write that is not answered in time stays in its queue, so that one that
//! follows cannot be overtaken by it. Written again meanwhile, it is waited for and not sent twice.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use ebus_core::{Error, ErrorKind, Retryability, Topic};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use rdkafka::statistics::Statistics;
use tokio::sync::watch;

use crate::clients::{self, Log};
use crate::config::KafkaConfig;
use crate::elsewhere::Elsewhere;
use crate::error::from_kafka;

const OPERATION: &str = "keep parked keys";

/// `None` until the broker has answered.
type Answer = Option<Result<(), Error>>;

pub(super) struct Writer {
    producer: Elsewhere<ThreadedProducer<Answers>>,
    topic: Topic,
    timeout: Duration,
    pending: Mutex<HashMap<Bytes, Pending>>,
}

/// The last write of a key that has no answer yet: what it writes, and where the answer comes.
type Pending = (Option<Bytes>, watch::Receiver<Answer>);

impl Writer {
    /// # Errors
    /// `ConfigInvalid` for what librdkafka does not take.
    pub(super) fn new(config: &KafkaConfig, topic: Topic) -> Result<Self, Error> {
        let producer = clients::keeper(config).create_with_context(Answers(Log::default()));
        let producer = Elsewhere::new(producer.map_err(|error| from_kafka("parking", error))?);
        Ok(Self { producer, topic, timeout: config.request_timeout, pending: Mutex::default() })
    }

    /// # Errors
    /// `Denied` without the right; `Timeout` when there is no answer in time: make the same write again.
    pub(super) async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Error> {
        self.write(key, Some(value)).await
    }

    /// # Errors
    /// Those of [`put`](Self::put).
    pub(super) async fn remove(&self, key: Bytes) -> Result<(), Error> {
        self.write(key, None).await
    }

    /// Removes, and does not wait: what stays harms nobody.
    pub(super) fn forget(&self, key: Bytes) {
        let (answer, _) = watch::channel(None);
        if let Err(error) = self.send(&key, None, answer) {
            tracing::debug!(error = %error.chain(), "a record of a former owner stays");
        }
    }

    async fn write(&self, key: Bytes, value: Option<Bytes>) -> Result<(), Error> {
        let mut answer = self.begin(&key, value)?;
        let answered = tokio::time::timeout(self.timeout, answer.wait_for(Option::is_some)).await;
        let result = match answered.map(|answered| answered.map(|answer| answer.clone())) {
            Ok(Ok(answer)) => answer.unwrap_or(Ok(())),
            Ok(Err(_)) => Err(Error::closed(OPERATION)),
            Err(_) => {
                let message =
                    "the broker has not acknowledged it in time; it is kept later, or written again";
                return Err(Error::new(ErrorKind::Timeout, message)
                    .with_retryability(Retryability::Safe)
                    .with_operation(OPERATION)
                    .with_context("topic", &self.topic));
            }
        };
        let mut pending = self.pending.lock();
        if pending.get(&key).is_some_and(|(_, last)| last.same_channel(&answer)) {
            pending.remove(&key);
        }
        result.map_err(|error| error.with_context("topic", &self.topic))
    }

    /// The write that is on its way already, or a new one.
    fn begin(&self, key: &Bytes, value: Option<Bytes>) -> Result<watch::Receiver<Answer>, Error> {
        let mut pending = self.pending.lock();
        if let Some((same, answer)) = pending.get(key)
            && *same == value
            && answer.borrow().is_none()
        {
            return Ok(answer.clone());
        }
        let (answer, answered) = watch::channel(None);
        self.send(key, value.as_ref(), answer)?;
        pending.insert(key.clone(), (value, answered.clone()));
        Ok(answered)
    }

    fn send(&self, key: &Bytes, value: Option<&Bytes>, answer: watch::Sender<Answer>) -> Result<(), Error> {
        let record =
            BaseRecord::with_opaque_to(self.topic.as_str(), Box::new(answer)).key(&key[..]).partition(0);
        let record = match value {
            Some(value) => record.payload(&value[..]),
            // No payload at all removes the key.
            None => record,
        };
        self.producer.send::<[u8], [u8]>(record).map_err(|(error, _)| from_kafka(OPERATION, error))
    }
}

/// Hands the broker's answers on.
struct Answers(Log);

impl ClientContext for Answers {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }

    fn stats(&self, _: Statistics) {}

    fn stats_raw(&self, statistics: &[u8]) {
        self.0.stats_raw(statistics);
    }
}

impl ProducerContext for Answers {
    type DeliveryOpaque = Box<watch::Sender<Answer>>;

    fn delivery(&self, result: &DeliveryResult<'_>, answer: Box<watch::Sender<Answer>>) {
        let result = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(from_kafka(OPERATION, error.clone())),
        };
        answer.send_replace(Some(result));
    }
}
