//! Reading a bounded range beside all groups: no membership, no commit (g03).
//!
//! The range ends at its end, or where the partition ends: the last offsets may hold transaction markers or may be compacted
//! away, so that no message with the last offset ever comes. librdkafka says when the partition is read to its end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ebus_core::{Error, ErrorKind, Message, ReadRange, Reader};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::Notify;

use crate::clients::{self, Log};
use crate::config::KafkaConfig;
use crate::convert::Slabs;
use crate::elsewhere::drop_elsewhere;
use crate::error::{from_code, from_kafka};
use crate::sys::queue::{Batch, PartitionQueue};
use crate::topics::Control;

/// The most messages taken from librdkafka at once.
const BATCH: usize = 512;

/// How often logs and errors of the handle are served while nothing comes.
const SERVE: Duration = Duration::from_millis(200);

pub(crate) struct KafkaReader {
    range: ReadRange,
    /// The next offset to give.
    at: u64,
    queue: Option<PartitionQueue<Log>>,
    handle: Option<Arc<BaseConsumer<Log>>>,
    ready: Arc<Notify>,
    batch: Batch,
    slabs: Slabs,
    held: VecDeque<(u64, Message)>,
    ended: bool,
    /// Without a message for so long, the reader gives up.
    patience: Duration,
}

impl KafkaReader {
    /// Starts to read; blocks.
    pub(crate) fn open(control: &Control, config: &KafkaConfig, range: ReadRange) -> Result<Self, Error> {
        let described = control.existing(&range.topic)?;
        if range.partition >= described.partitions {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no such partition; the topic has {}", described.partitions),
            )
            .with_context("topic", &range.topic)
            .with_context("partition", range.partition));
        }
        let there = control.range(&range.topic, range.partition)?;
        // What is gone is skipped, and beyond the end there is nothing.
        let at = range.from.max(there.earliest);
        let mut reader = Self {
            at,
            queue: None,
            handle: None,
            ready: Arc::new(Notify::new()),
            batch: Batch::default(),
            slabs: Slabs::default(),
            held: VecDeque::new(),
            ended: at >= range.to.0 || at >= there.end.0,
            patience: config.request_timeout.max(Duration::from_secs(5)),
            range,
        };
        if !reader.ended {
            reader.start(config)?;
        }
        Ok(reader)
    }

    fn start(&mut self, config: &KafkaConfig) -> Result<(), Error> {
        let handle = Arc::new(clients::consumer(&clients::reader(config), Log::default(), "read")?);
        let number = i32::try_from(self.range.partition).unwrap_or(i32::MAX);
        let ready = self.ready.clone();
        let wake = Box::new(move || ready.notify_one());
        let queue = PartitionQueue::split(&handle, self.range.topic.as_str(), number, wake)
            .ok_or_else(|| from_code("read", RDKafkaErrorCode::UnknownPartition))?;
        let wrong = |error| from_kafka("read", error);
        let mut list = TopicPartitionList::new();
        let from = Offset::Offset(i64::try_from(self.at).unwrap_or(i64::MAX));
        list.add_partition_offset(self.range.topic.as_str(), number, from).map_err(wrong)?;
        handle.assign(&list).map_err(wrong)?;
        queue.rearm();
        self.queue = Some(queue);
        self.handle = Some(handle);
        Ok(())
    }

    /// Takes what is there now.
    fn take(&mut self) -> Result<(), Error> {
        let Some(queue) = &self.queue else { return Ok(()) };
        queue.take(BATCH, &mut self.batch);
        for (offset, fetched) in self.slabs.messages(&self.batch) {
            match fetched {
                Ok(_) if offset >= self.range.to.0 => {
                    self.ended = true;
                    return Ok(());
                }
                Ok(message) if offset >= self.at => {
                    self.at = offset + 1;
                    self.held.push_back((offset, message));
                }
                Ok(_) => {}
                Err(RDKafkaErrorCode::PartitionEOF) => {
                    self.ended = true;
                    return Ok(());
                }
                Err(code @ (RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)) => {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        "the range was removed while it was read; read again",
                    )
                    .with_source(from_code("read", code)));
                }
                Err(code) => {
                    let error = from_code("read", code);
                    if matches!(error.kind(), ErrorKind::Denied | ErrorKind::NotFound) {
                        return Err(error);
                    }
                    tracing::debug!(%error, "reading goes on");
                }
            }
        }
        self.ended |= self.at >= self.range.to.0;
        Ok(())
    }
}

#[async_trait]
impl Reader for KafkaReader {
    async fn next(&mut self, most: usize, out: &mut Vec<(u64, Message)>) -> Result<usize, Error> {
        if most == 0 {
            return Ok(0);
        }
        let give_up = Instant::now() + self.patience;
        let context = |error: Error, range: &ReadRange| {
            error
                .with_operation("read")
                .with_context("topic", &range.topic)
                .with_context("partition", range.partition)
        };
        while self.held.is_empty() && !self.ended {
            self.take().map_err(|error| context(error, &self.range))?;
            if !self.held.is_empty() || self.ended {
                break;
            }
            if Instant::now() >= give_up {
                let error = Error::new(
                    ErrorKind::Timeout,
                    "the broker gives no more of the range; check it and read again",
                );
                return Err(context(error, &self.range).with_context("offset", self.at));
            }
            if let Some(handle) = &self.handle {
                while handle.poll(Duration::ZERO).is_some() {}
            }
            let _ = tokio::time::timeout(SERVE, self.ready.notified()).await;
        }
        let count = most.min(self.held.len());
        out.extend(self.held.drain(..count));
        Ok(count)
    }
}

impl Drop for KafkaReader {
    /// Dropping the handle blocks for about 100 ms: elsewhere.
    fn drop(&mut self) {
        let (queue, handle) = (self.queue.take(), self.handle.take());
        let batch = std::mem::take(&mut self.batch);
        if handle.is_some() {
            drop_elsewhere(move || drop((batch, queue, handle)));
        }
    }
}
