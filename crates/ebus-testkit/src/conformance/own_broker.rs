//! A broker that belongs to one case, which may stop and kill it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{Error, Topic};

use super::Harness;

/// A broker that nobody else uses, and connections to it. It ends when it is dropped.
///
/// # Errors
/// Every method fails when the broker did not do what it was told, in time.
#[async_trait]
pub trait OwnBroker: Send + Sync {
    /// How its clients connect.
    fn harness(&self) -> Arc<dyn Harness>;

    /// How many nodes it has.
    fn nodes(&self) -> usize;

    /// Ends a node as an operator does.
    ///
    /// # Errors
    /// Those of the trait.
    async fn stop(&self, node: usize) -> Result<(), Error>;

    /// Ends a node as a crash does.
    ///
    /// # Errors
    /// Those of the trait.
    async fn kill(&self, node: usize) -> Result<(), Error>;

    /// Starts a node that has ended, on its data, and waits until it can be used.
    ///
    /// # Errors
    /// Those of the trait.
    async fn start(&self, node: usize) -> Result<(), Error>;

    /// Suspends a node: connections stay open, nothing is answered. `Unsupported` where it cannot.
    ///
    /// # Errors
    /// Those of the trait.
    async fn freeze(&self, node: usize) -> Result<(), Error>;

    /// Lets a frozen node go on.
    ///
    /// # Errors
    /// Those of the trait.
    async fn thaw(&self, node: usize) -> Result<(), Error>;

    /// Is told of each topic that the case makes; for a broker that cannot be stopped as a whole.
    fn has_topic(&self, topic: &Topic) {
        let _ = topic;
    }

    /// How long after its return its clients may need to go on, at most.
    fn recovers_within(&self) -> Duration {
        Duration::from_secs(30)
    }
}

#[cfg(all(feature = "brokers", unix))]
pub use server::OwnServer;

#[cfg(all(feature = "brokers", unix))]
mod server {
    use parking_lot::Mutex;

    use super::{Arc, Error, Harness, OwnBroker, async_trait};
    use crate::brokers::{BrokerError, Found, Home, Need, Node, Server};
    use ebus_core::ErrorKind;

    /// A private [`Server`] as a case's own broker.
    #[derive(Clone)]
    pub struct OwnServer {
        server: Arc<Mutex<Server>>,
        harness: Arc<dyn Harness>,
        nodes: usize,
    }

    impl OwnServer {
        /// Launches a server and says how its clients connect; `None` when it is not installed.
        ///
        /// # Errors
        /// When it cannot be launched, or is missing though `EBUS_REQUIRE` names it.
        pub async fn launch<L, H>(
            need: Need,
            launch: L,
            harness: H,
        ) -> Result<Option<Arc<dyn OwnBroker>>, Error>
        where
            L: FnOnce(&Home) -> Result<Server, BrokerError> + Send + 'static,
            H: FnOnce(&Server) -> Arc<dyn Harness> + Send,
        {
            let home = match need.private() {
                Found::Available(home) => home,
                Found::Missing(missing) if need.is_required() => {
                    return Err(Error::new(ErrorKind::Unavailable, missing.to_string()));
                }
                Found::Missing(_) => return Ok(None),
            };
            let mut server = blocking(move || launch(&home)).await?;
            let (harness, nodes) = (harness(&server), server.nodes().len());
            Ok(Some(Arc::new(Self { server: Arc::new(Mutex::new(server)), harness, nodes })))
        }

        async fn act(
            &self,
            node: usize,
            act: impl FnOnce(&mut Node) -> Result<(), BrokerError> + Send + 'static,
        ) -> Result<(), Error> {
            let server = self.server.clone();
            blocking(move || match server.lock().node(node) {
                Some(node) => act(node),
                None => Ok(()),
            })
            .await
        }
    }

    /// On a thread that may block.
    async fn blocking<T: Send + 'static>(
        act: impl FnOnce() -> Result<T, BrokerError> + Send + 'static,
    ) -> Result<T, Error> {
        let done = tokio::task::spawn_blocking(act).await;
        let unexpected = |why: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Unavailable, format!("the case's own broker: {why}"))
        };
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(unexpected(&error)),
            Err(error) => Err(unexpected(&error)),
        }
    }

    #[async_trait]
    impl OwnBroker for OwnServer {
        fn harness(&self) -> Arc<dyn Harness> {
            self.harness.clone()
        }

        fn nodes(&self) -> usize {
            self.nodes
        }

        async fn stop(&self, node: usize) -> Result<(), Error> {
            self.act(node, Node::stop).await
        }

        async fn kill(&self, node: usize) -> Result<(), Error> {
            self.act(node, Node::kill).await
        }

        async fn start(&self, node: usize) -> Result<(), Error> {
            self.act(node, Node::start).await
        }

        async fn freeze(&self, node: usize) -> Result<(), Error> {
            self.act(node, Node::freeze).await
        }

        async fn thaw(&self, node: usize) -> Result<(), Error> {
            self.act(node, Node::thaw).await
        }
    }

    impl std::fmt::Debug for OwnServer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("OwnServer").field("nodes", &self.nodes).finish_non_exhaustive()
        }
    }
}
