//! Publishing: stored in a file, keyed, every acknowledgement awaited.

use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use ebus_core::Backend;
use ebus_nats::{NatsBackend, NatsConfig};

use crate::nats::raw;
use crate::nats::server::Server;
use crate::ours;
use crate::runner::Benchmark;
use crate::work::{PARTITIONS, messages};

const MESSAGES: usize = 300_000;

/// Publishing to JetStream.
#[derive(Default)]
pub(crate) struct Publish(Option<Server>);

fn window() -> usize {
    NatsConfig::new(["nats://localhost"]).max_in_flight
}

impl Publish {
    fn server(&mut self) -> Result<&mut Server> {
        self.0.as_mut().context("not prepared")
    }
}

#[async_trait]
impl Benchmark for Publish {
    fn name(&self) -> &'static str {
        "nats-publish"
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
            "NatsProducer (not erased), every receipt awaited; default of {} messages in flight, no ids",
            window()
        )
    }

    fn baseline_is(&self) -> String {
        format!(
            "async-nats publish with a reply subject, one subscription for all acknowledgements, each read; {} messages in \
             flight, key in a header, no ids",
            window()
        )
    }

    async fn prepare(&mut self) -> Result<()> {
        self.0 = Some(Server::find().await?);
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
        let server = self.server()?;
        let stream = server.create_stream().await?;
        let rate =
            raw::publish(server.client.clone(), stream.clone(), messages(), MESSAGES, window()).await?;
        server.check_length(&stream, MESSAGES).await?;
        server.delete_stream(&stream).await?;
        Ok(rate)
    }

    async fn clean_up(&mut self) -> Result<()> {
        if let Some(mut server) = self.0.take() {
            server.delete_streams().await;
        }
        Ok(())
    }
}
