//! What a backend gives to the suite.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{Backend, Error, Topic};
use ebus_pool::Pool;

use super::faults::{Faults, LogFaults};
use super::link::Link;
use super::own_broker::OwnBroker;

/// A backend as the suite sees it: one broker, and connections to it.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// A new connection, sharing nothing in this process with the others that another process would not share. Called inside
    /// the runtime of the case, which is gone after it.
    ///
    /// # Errors
    /// Fails the case.
    async fn connect(&self) -> Result<Arc<dyn Backend>, Error>;

    /// A new connection whose publishers treat a topic that does not exist like this; `None` where that cannot be chosen.
    ///
    /// # Errors
    /// Fails the case.
    async fn connect_with(&self, policy: TopicPolicy) -> Result<Option<Arc<dyn Backend>>, Error> {
        let _ = policy;
        Ok(None)
    }

    /// A new connection with a network of its own, which a case can break; `None` where there is none to break. Waits while all
    /// such networks are in use.
    ///
    /// # Errors
    /// Fails the case.
    async fn connect_linked(&self) -> Result<Option<(Arc<dyn Backend>, Arc<dyn Link>)>, Error> {
        Ok(None)
    }

    /// Whether [`connect_linked`](Self::connect_linked) gives something.
    fn has_links(&self) -> bool {
        false
    }

    /// Ends a member as a SIGKILL would: nothing more is committed or released, and nobody is told. `backend` is the connection
    /// of that member alone; the suite has dropped all else of it. `link` is its network, if it has one; the suite keeps it
    /// until the case is over.
    ///
    /// By default the network is cut, so that whatever destructors say does not reach the broker, and then both are dropped.
    async fn kill(&self, pool: Pool, backend: Arc<dyn Backend>, link: Option<Arc<dyn Link>>) {
        if let Some(link) = link {
            link.cut();
        }
        drop(pool);
        drop(backend);
    }

    /// A broker of so many nodes for one case alone, to be stopped and killed; `None` where there is no such thing.
    ///
    /// # Errors
    /// Fails the case.
    async fn own_broker(&self, nodes: usize) -> Result<Option<Arc<dyn OwnBroker>>, Error> {
        let _ = nodes;
        Ok(None)
    }

    /// Makes trouble for those who publish to this topic, that is over when this resolves; where connections have no network that a
    /// case can break ([`connect_linked`](Self::connect_linked)). False where it cannot. Nothing that was acknowledged may be lost
    /// by it.
    async fn disturb(&self, topic: &Topic) -> bool {
        let _ = topic;
        false
    }

    /// Faults of ownership on request; `None` where the broker cannot be told to.
    fn faults(&self) -> Option<Arc<dyn Faults>> {
        None
    }

    /// Faults of what is stored; `None` where nobody has taught the suite how.
    fn log_faults(&self) -> Option<Arc<dyn LogFaults>> {
        None
    }

    /// How long a case waits for a condition before it fails: at least what a rebalance, or the take-over from a member that
    /// was killed, can take, and what a slow machine adds to it.
    fn patience(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// When a publish has an answer at the latest, with the settings of [`connect`](Self::connect).
    fn publish_deadline(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// Whether a member that cannot reach the broker stops by its own clock before another one takes over.
    fn has_leases(&self) -> bool {
        false
    }

    /// How long a case may last.
    fn time_limit(&self) -> Duration {
        Duration::from_secs(120)
    }

    /// Why a case cannot run on this backend, for reasons that its capability does not say; `case` is its whole name. It is
    /// then shown as ignored.
    fn lacks(&self, case: &str) -> Option<String> {
        let _ = case;
        None
    }
}

/// What happens when somebody publishes to a topic that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicPolicy {
    /// `NotFound`.
    MustExist,
    /// It is created.
    Create {
        /// With this many partitions.
        partitions: u32,
    },
}

/// Whether the suite can run.
#[non_exhaustive]
pub enum Setup {
    /// On this.
    Ready(Arc<dyn Harness>),
    /// Not: its broker is missing.
    Missing {
        /// Why, and what helps.
        reason: String,
        /// Whether that is a failure; if not, every case is shown as ignored.
        required: bool,
    },
}

impl Setup {
    /// On the shared server that tests are given, or missing: a failure when `EBUS_REQUIRE` names it.
    #[cfg(all(feature = "brokers", unix))]
    pub fn shared<H: Harness>(need: crate::brokers::Need, harness: impl FnOnce(String) -> H) -> Self {
        match need.shared() {
            crate::brokers::Found::Available(url) => Self::Ready(Arc::new(harness(url))),
            crate::brokers::Found::Missing(missing) => {
                Self::Missing { reason: missing.to_string(), required: need.is_required() }
            }
        }
    }
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready(_) => f.write_str("Ready"),
            Self::Missing { reason, .. } => f.debug_tuple("Missing").field(reason).finish(),
        }
    }
}
