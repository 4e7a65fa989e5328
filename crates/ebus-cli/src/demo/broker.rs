//! Connections to the broker of a run: each publisher and each member has its own.

use std::sync::Arc;
use std::time::Duration;

use ebus::memory::{MemoryBroker, MemoryConfig};
use ebus::{Backend, Error, ErrorKind};

/// The longest that connecting may take, whatever the backend thinks.
const WITHIN: Duration = Duration::from_secs(30);

/// Where to connect to.
pub(crate) enum Broker {
    /// All connections must be to one broker in this process.
    Memory(MemoryBroker),
    Url(String),
}

impl Broker {
    pub(crate) fn new(url: &str) -> Result<Self, Error> {
        if url.starts_with("memory:") {
            return Ok(Self::Memory(MemoryBroker::new(MemoryConfig::from_url(url)?)?));
        }
        Ok(Self::Url(url.to_owned()))
    }

    /// One connection more.
    ///
    /// # Errors
    /// What the backend says, and what to do.
    pub(crate) async fn connect(&self) -> Result<Arc<dyn Backend>, Error> {
        let url = match self {
            Self::Memory(broker) => return Ok(Arc::new(broker.connect())),
            Self::Url(url) => url,
        };
        let connected = tokio::time::timeout(WITHIN, ebus::connect(url)).await;
        let error = match connected {
            Ok(Ok(backend)) => return Ok(backend),
            Ok(Err(error)) => error,
            Err(_) => Error::new(ErrorKind::Timeout, "the broker did not take the connection in time")
                .with_operation("connect")
                .with_context("within", format_args!("{WITHIN:?}")),
        };
        if !matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) {
            return Err(error);
        }
        let message = "no broker answers there; see that it runs and that host and port of --url are right, start one with \
                       `cargo xtask brokers up`, or leave --url out for the broker in memory";
        Err(Error::new(error.kind(), message).with_operation("connect").with_source(error))
    }
}
