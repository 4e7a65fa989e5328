//! What a backend can do: what it lacks is refused, never accepted and ignored (G8).

use std::time::Duration;

/// What a backend can do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capability {
    /// The backend's name: `memory`, `kafka`, `nats`.
    pub backend: &'static str,
    /// Several members of a group share the partitions of a topic.
    pub several_members: bool,
    /// Messages and positions outlive this process.
    pub durable: bool,
    /// A publish with an id that the broker saw lately is stored once.
    pub deduplicates: bool,
    /// It keeps which keys of a group are parked: [`Backend::parking`](crate::Backend::parking).
    pub parks_keys: bool,
    /// A topic that does not exist is created, by the policy that the user chose, when it is published to or subscribed to.
    pub creates_topics: bool,
    /// The largest message in bytes: key, headers and payload.
    pub max_message_bytes: usize,
    /// How long `recv` may rest before membership is given up; `None` when the backend cannot tell.
    pub max_idle: Option<Duration>,
}

impl Capability {
    /// Of the backend of this name, with everything off.
    pub fn new(backend: &'static str, max_message_bytes: usize) -> Self {
        Self {
            backend,
            several_members: false,
            durable: false,
            deduplicates: false,
            parks_keys: false,
            creates_topics: false,
            max_message_bytes,
            max_idle: None,
        }
    }

    /// Whether several members share a group.
    #[must_use]
    pub fn with_several_members(mut self, yes: bool) -> Self {
        self.several_members = yes;
        self
    }

    /// Whether messages and positions outlive this process.
    #[must_use]
    pub fn with_durable(mut self, yes: bool) -> Self {
        self.durable = yes;
        self
    }

    /// Whether ids are used for deduplication.
    #[must_use]
    pub fn with_deduplicates(mut self, yes: bool) -> Self {
        self.deduplicates = yes;
        self
    }

    /// Whether it keeps which keys are parked.
    #[must_use]
    pub fn with_parks_keys(mut self, yes: bool) -> Self {
        self.parks_keys = yes;
        self
    }

    /// Whether topics that do not exist are created by a policy.
    #[must_use]
    pub fn with_creates_topics(mut self, yes: bool) -> Self {
        self.creates_topics = yes;
        self
    }

    /// How long `recv` may rest.
    #[must_use]
    pub fn with_max_idle(mut self, idle: Duration) -> Self {
        self.max_idle = Some(idle);
        self
    }
}
