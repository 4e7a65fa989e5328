//! Catching up: a stream full of messages, read by a new group of one member, positions committed.

use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use ebus_core::{Backend, Topic};
use ebus_nats::NatsBackend;

use crate::nats::raw::{self, Acks, Ids};
use crate::nats::server::Server;
use crate::ours;
use crate::runner::Benchmark;
use crate::work::{PARTITIONS, messages};

const MESSAGES: usize = 1_000_000;
/// While the streams are filled.
const IN_FLIGHT: usize = 4_000;

/// Reading from JetStream.
pub(crate) struct Consume {
    acks: Acks,
    prepared: Option<Prepared>,
}

/// Each side reads messages as it publishes them.
struct Prepared {
    server: Server,
    topic: Topic,
    stream: String,
    groups: usize,
}

impl Consume {
    /// Beside a raw client that acknowledges so.
    pub(crate) fn beside(acks: Acks) -> Self {
        Self { acks, prepared: None }
    }

    fn prepared(&mut self) -> Result<(&Prepared, String)> {
        let prepared = self.prepared.as_mut().context("not prepared")?;
        prepared.groups += 1;
        let group = format!("bench-{}", prepared.groups);
        Ok((prepared, group))
    }
}

#[async_trait]
impl Benchmark for Consume {
    fn name(&self) -> &'static str {
        match self.acks {
            Acks::Each => "nats-consume",
            Acks::Floor => "nats-consume-floor",
            Acks::None => "nats-consume-bare",
        }
    }

    fn messages(&self) -> usize {
        MESSAGES
    }

    fn work(&self) -> String {
        format!(
            "{MESSAGES} stored messages of {PARTITIONS} subjects of a stream on file, 10,000 keys, 230 bytes; a new group \
             for each run"
        )
    }

    fn ours_is(&self) -> String {
        format!("{}; a lone member", ours::SETTINGS)
    }

    fn baseline_is(&self) -> String {
        let how = match self.acks {
            Acks::Each => "a durable, AckPolicy::Explicit, an acknowledgement for each message".to_owned(),
            Acks::Floor => {
                format!("a durable, AckPolicy::All, an acknowledgement every {} messages", raw::FLOOR)
            }
            Acks::None => {
                "one in memory for each subject, AckPolicy::None: what was read is kept nowhere".to_owned()
            }
        };
        format!(
            "async-nats pull consumers by Consumer::stream, pulls of {}: {how}; key and payload owned",
            self.acks.pull()
        )
    }

    async fn prepare(&mut self) -> Result<()> {
        let mut server = Server::find().await?;
        let stream = server.create_stream().await?;
        let filled =
            raw::publish(server.client.clone(), stream.clone(), messages(), MESSAGES, IN_FLIGHT, Ids::None)
                .await;
        let backend = NatsBackend::connect(server.config()?.with_max_in_flight(IN_FLIGHT)).await?;
        let topic = server.create_topic(&backend).await?;
        let prepared = self.prepared.insert(Prepared {
            server,
            topic: topic.clone(),
            stream: stream.clone(),
            groups: 0,
        });
        filled?;
        ours::publish(backend.producer(), topic.clone(), messages(), MESSAGES, IN_FLIGHT).await?;
        backend.close(Duration::from_secs(10)).await?;
        for stream in [topic.as_str(), &stream] {
            prepared.server.check_length(stream, MESSAGES).await?;
        }
        Ok(())
    }

    async fn ours(&mut self) -> Result<f64> {
        let (Prepared { server, topic, .. }, group) = self.prepared()?;
        let backend = NatsBackend::connect(server.config()?).await?;
        let rate = ours::consume(&backend, topic, &group, MESSAGES).await?;
        backend.close(Duration::from_secs(10)).await?;
        Ok(rate)
    }

    async fn baseline(&mut self) -> Result<f64> {
        let acks = self.acks;
        let (Prepared { server, stream, .. }, group) = self.prepared()?;
        match acks {
            Acks::None => raw::consume_bare(server, stream, MESSAGES).await,
            acks => raw::consume(server, stream, group, MESSAGES, acks).await,
        }
    }

    async fn clean_up(&mut self) -> Result<()> {
        if let Some(mut prepared) = self.prepared.take() {
            prepared.server.delete_streams().await;
        }
        Ok(())
    }
}
