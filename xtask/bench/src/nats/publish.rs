//! Publishing: stored in a file, keyed, every acknowledgement awaited.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use ebus_core::{Backend, Message};
use ebus_nats::{NatsBackend, NatsConfig};

use crate::nats::raw;
use crate::nats::server::Server;
use crate::ours;
use crate::runner::Benchmark;
use crate::work::{PARTITIONS, messages};

const MESSAGES: usize = 300_000;

/// Publishing to JetStream.
#[derive(Default)]
pub(crate) struct Publish(Option<Prepared>);

struct Prepared {
    server: Server,
    messages: Arc<[Message]>,
}

fn window() -> usize {
    NatsConfig::new(["nats://localhost"]).max_in_flight
}

impl Publish {
    fn prepared(&mut self) -> Result<&mut Prepared> {
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
        self.0 = Some(Prepared { server: Server::find().await?, messages: messages().into() });
        Ok(())
    }

    async fn ours(&mut self) -> Result<f64> {
        let Prepared { server, messages } = self.prepared()?;
        let backend = NatsBackend::connect(server.config()?).await?;
        let topic = server.create_topic(&backend).await?;
        let rate =
            ours::publish(backend.producer(), topic.clone(), messages.clone(), MESSAGES, window()).await?;
        backend.close(Duration::from_secs(10)).await?;
        server.check_length(topic.as_str(), MESSAGES).await?;
        server.delete_stream(topic.as_str()).await?;
        Ok(rate)
    }

    async fn baseline(&mut self) -> Result<f64> {
        let Prepared { server, messages } = self.prepared()?;
        let stream = server.create_stream().await?;
        let rate =
            raw::publish(server.client.clone(), stream.clone(), messages.clone(), MESSAGES, window()).await?;
        server.check_length(&stream, MESSAGES).await?;
        server.delete_stream(&stream).await?;
        Ok(rate)
    }

    async fn clean_up(&mut self) -> Result<()> {
        if let Some(mut prepared) = self.0.take() {
            prepared.server.delete_streams().await;
        }
        Ok(())
    }
}
