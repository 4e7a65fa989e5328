//! Settings of the NATS backend: typed, validated together, secrets never shown (G8, G9).

use std::path::PathBuf;
use std::time::Duration;

use ebus_core::{Error, ErrorKind};

use crate::auth::{Credentials, Secret, Tls};

/// What to do when a topic that is published to or subscribed to does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MissingTopic {
    /// The call fails with `NotFound`.
    #[default]
    Refuse,
    /// It is created.
    Create {
        /// With this many partitions.
        partitions: u32,
        /// On this many nodes.
        replicas: u16,
    },
}

/// Settings of the NATS backend.
///
/// ```
/// use std::time::Duration;
/// use ebus_nats::NatsConfig;
///
/// let config = NatsConfig::new(["nats://127.0.0.1:4222"])
///     .with_max_in_flight(2_000)
///     .with_publish_timeout(Duration::from_secs(3));
/// config.validate()?;
/// let same = NatsConfig::from_url("nats://127.0.0.1:4222?max_in_flight=2000&publish_timeout=3s")?;
/// assert_eq!(config, same);
/// # Ok::<(), ebus_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct NatsConfig {
    /// Addresses, `nats://host:port` or `tls://host:port`.
    pub servers: Vec<String>,
    /// What the server's operators see as the name of the connection; `ebus` by default.
    pub name: String,
    /// The most messages that are published and not acknowledged, over all publishers of a connection; 2,000 by default. Far
    /// more starves the consumers of the same server.
    pub max_in_flight: usize,
    /// The most bytes of them; 64 MiB by default. One message above it is let through when nothing else is in flight.
    pub max_in_flight_bytes: usize,
    /// Whether to publish in batches where the server has them (2.14), and to make topics that take them; `true` by default. A
    /// topic that takes batches cannot be served by a server before 2.14 any more.
    pub batches: bool,
    /// How long a publish waits for its acknowledgement; 5 s by default. Then it fails with `Timeout`: it may have been stored.
    pub publish_timeout: Duration,
    /// How long connecting may take; 5 s by default.
    pub connect_timeout: Duration,
    /// How long a request of the control plane may take; 5 s by default.
    pub request_timeout: Duration,
    /// How long an ownership lasts without a word of its owner. `None`: 15 s in a cluster, where an election takes 5 to 9 s,
    /// and 3 s on a single server. The owner stops at two thirds of it.
    pub lease: Option<Duration>,
    /// What to do when a topic that is published to or subscribed to does not exist.
    pub missing_topic: MissingTopic,
    /// The key-value bucket that keeps the groups' records; `ebus` by default.
    pub bucket: String,
    /// On how many nodes the bucket is kept when it is created. `None`: 3 in a cluster, 1 on a single server.
    pub bucket_replicas: Option<u16>,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) tls: Tls,
}

impl NatsConfig {
    /// For these servers of one cluster, with the defaults.
    pub fn new<I>(servers: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Self {
            servers: servers.into_iter().map(Into::into).collect(),
            name: "ebus".into(),
            max_in_flight: 2_000,
            max_in_flight_bytes: 64 << 20,
            batches: true,
            publish_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            lease: None,
            missing_topic: MissingTopic::Refuse,
            bucket: "ebus".into(),
            bucket_replicas: None,
            credentials: None,
            tls: Tls::default(),
        }
    }

    /// The most messages in flight.
    #[must_use]
    pub fn with_max_in_flight(mut self, messages: usize) -> Self {
        self.max_in_flight = messages;
        self
    }

    /// The most bytes in flight.
    #[must_use]
    pub fn with_max_in_flight_bytes(mut self, bytes: usize) -> Self {
        self.max_in_flight_bytes = bytes;
        self
    }

    /// Whether to publish in batches where the server has them.
    #[must_use]
    pub fn with_batches(mut self, batches: bool) -> Self {
        self.batches = batches;
        self
    }

    /// How long a publish waits for its acknowledgement.
    #[must_use]
    pub fn with_publish_timeout(mut self, timeout: Duration) -> Self {
        self.publish_timeout = timeout;
        self
    }

    /// How long connecting may take.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a request of the control plane may take.
    #[must_use]
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How long an ownership lasts without a word of its owner.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// What to do when a topic that is published to does not exist.
    #[must_use]
    pub fn with_missing_topic(mut self, policy: MissingTopic) -> Self {
        self.missing_topic = policy;
        self
    }

    /// The name of the connection.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The key-value bucket that keeps the groups' records.
    #[must_use]
    pub fn with_bucket(mut self, bucket: impl Into<String>) -> Self {
        self.bucket = bucket.into();
        self
    }

    /// On how many nodes the bucket is kept when it is created.
    #[must_use]
    pub fn with_bucket_replicas(mut self, replicas: u16) -> Self {
        self.bucket_replicas = Some(replicas);
        self
    }

    /// Authenticates by a token.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.credentials = Some(Credentials::Token(Secret(token.into())));
        self
    }

    /// Authenticates by user and password.
    #[must_use]
    pub fn with_user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.credentials = Some(Credentials::User { user: user.into(), password: Secret(password.into()) });
        self
    }

    /// Authenticates by an nkey, given as its seed.
    #[must_use]
    pub fn with_nkey(mut self, seed: impl Into<String>) -> Self {
        self.credentials = Some(Credentials::Nkey(Secret(seed.into())));
        self
    }

    /// Authenticates by a `.creds` file.
    #[must_use]
    pub fn with_credentials_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.credentials = Some(Credentials::File(path.into()));
        self
    }

    /// Authenticates by the text of a `.creds` file.
    #[must_use]
    pub fn with_credentials(mut self, text: impl Into<String>) -> Self {
        self.credentials = Some(Credentials::Text(Secret(text.into())));
        self
    }

    /// Connects with TLS or not at all. Also by the scheme `tls://`.
    #[must_use]
    pub fn with_tls(mut self) -> Self {
        self.tls.required = true;
        self
    }

    /// Begins TLS before the server says anything, for servers with `handshake_first`.
    #[must_use]
    pub fn with_tls_first(mut self) -> Self {
        self.tls.first = true;
        self
    }

    /// Trusts the root certificates in this PEM file, and connects with TLS.
    #[must_use]
    pub fn with_root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.root = Some(path.into());
        self
    }

    /// Shows this client certificate (PEM files), and connects with TLS.
    #[must_use]
    pub fn with_client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.tls.client = Some((certificate.into(), key.into()));
        self
    }

    /// Checks all settings before any connection.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming every problem at once.
    pub fn validate(&self) -> Result<(), Error> {
        let mut problems = Vec::new();
        if self.servers.is_empty() {
            problems.push("servers: give at least one address, such as nats://127.0.0.1:4222".to_owned());
        }
        for server in &self.servers {
            if let Err(why) = crate::address::check_server(server) {
                problems.push(why);
            }
        }
        let mut positive = |name: &str, bad: bool| {
            if bad {
                problems.push(format!("{name}: must be above zero"));
            }
        };
        positive("max_in_flight", self.max_in_flight == 0);
        positive("max_in_flight_bytes", self.max_in_flight_bytes == 0);
        positive("publish_timeout", self.publish_timeout.is_zero());
        positive("connect_timeout", self.connect_timeout.is_zero());
        positive("request_timeout", self.request_timeout.is_zero());
        positive("bucket_replicas", self.bucket_replicas == Some(0));
        if self.max_in_flight > MAX_IN_FLIGHT {
            problems
                .push(format!("max_in_flight: at most {MAX_IN_FLIGHT}; more starves the server's consumers"));
        }
        if self.lease.is_some_and(|lease| lease < MIN_LEASE) {
            problems.push("lease: at least 1s; below that a pause of the scheduler ends ownership".into());
        }
        if self.lease.is_some_and(|lease| lease > MAX_LEASE) {
            problems.push("lease: at most 5m; nobody takes over before it has passed".into());
        }
        if let MissingTopic::Create { partitions, replicas } = self.missing_topic
            && (partitions == 0 || replicas == 0)
        {
            problems.push("missing_topic: partitions and replicas must be above zero".into());
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if self.bucket.is_empty() || self.bucket.len() > 100 || !self.bucket.chars().all(legal) {
            problems.push("bucket: 1 to 100 letters, digits, '_' and '-'".into());
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::ConfigInvalid, format!("invalid settings: {}", problems.join("; ")))
            .with_operation("connect"))
    }
}

/// Half of the capacity of async-nats' subscription for acknowledgements (65,536): beyond it some would be dropped.
const MAX_IN_FLIGHT: usize = 32_768;

/// A lease is judged by clocks that stand still when the process is not scheduled.
const MIN_LEASE: Duration = Duration::from_secs(1);

/// What is longer is a mistake of units.
const MAX_LEASE: Duration = Duration::from_secs(300);
