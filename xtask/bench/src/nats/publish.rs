//! Publishing: stored in a file, keyed, every acknowledgement awaited.

use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use ebus_core::Backend;
use ebus_nats::{NatsBackend, NatsConfig};

use crate::nats::raw::{self, Ids};
use crate::nats::server::Server;
use crate::ours;
use crate::runner::Benchmark;
use crate::work::{PARTITIONS, messages};

const MESSAGES: usize = 300_000;

/// Publishing to JetStream.
pub(crate) struct Publish {
    ids: Ids,
    server: Option<Server>,
}

fn window() -> usize {
    NatsConfig::new(["nats://localhost"]).max_in_flight
}

impl Publish {
    /// Beside a raw client whose messages have such ids.
    pub(crate) fn beside(ids: Ids) -> Self {
        Self { ids, server: None }
    }

    fn server(&mut self) -> Result<&mut Server> {
        self.server.as_mut().context("not prepared")
    }
}

#[async_trait]
impl Benchmark for Publish {
    fn name(&self) -> &'static str {
        match self.ids {
            Ids::None => "nats-publish",
            Ids::Each => "nats-publish-ids",
        }
    }

    fn messages(&self) -> usize {
        MESSAGES
    }

    fn work(&self) -> String {
        format!(
            "{MESSAGES} messages to {PARTITIONS} subjects of a stream on file, 10,000 keys, 230 bytes, from one task; a \
             stream for each run"
        )
    }

    fn ours_is(&self) -> String {
        format!(
            "NatsProducer (not erased), every receipt awaited; default of {} messages in flight, no ids of the caller's",
            window()
        )
    }

    fn baseline_is(&self) -> String {
        let ids = match self.ids {
            Ids::None => "no ids: what comes late from a broken connection is stored behind what came later",
            Ids::Each => "an id in another",
        };
        format!(
            "async-nats publish with a reply subject, one subscription for all acknowledgements, each read; {} messages in \
             flight, key in a header, {ids}",
            window()
        )
    }

    async fn prepare(&mut self) -> Result<()> {
        self.server = Some(Server::find().await?);
        Ok(())
    }

    async fn ours(&mut self) -> Result<f64> {
        let server = self.server()?;
        let backend = NatsBackend::connect(server.config()?).await?;
        let topic = server.create_topic(&backend).await?;
        let rate = ours::publish(backend.producer(), topic.clone(), messages(), MESSAGES, window()).await?;
        backend.close(Duration::from_secs(10)).await?;
        server.check_length(topic.as_str(), MESSAGES).await?;
        server.delete_stream(topic.as_str()).await?;
        Ok(rate)
    }

    async fn baseline(&mut self) -> Result<f64> {
        let ids = self.ids;
        let server = self.server()?;
        let stream = server.create_stream().await?;
        let client = server.client.clone();
        let rate = raw::publish(client, stream.clone(), messages(), MESSAGES, window(), ids).await?;
        server.check_length(&stream, MESSAGES).await?;
        server.delete_stream(&stream).await?;
        Ok(rate)
    }

    async fn clean_up(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.delete_streams().await;
        }
        Ok(())
    }
}
