//! One connection to the servers, and what is known of it (G9): whether it is up, how often it was made anew, which
//! version answers.

use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use ebus_core::{Error, ErrorKind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::address::without_user;
use crate::config::NatsConfig;
use crate::denials::Denials;
use crate::error;

/// How often an idle connection is probed. Two unanswered probes end it: a cut network is noticed within 6 s.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// How often a connection that is down is looked at without an event.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The longest pause between two attempts to connect again.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// A connection. Cheap to clone; it ends when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) context: Context,
    /// Bumped by everything that happens to the connection: only a reason to look, not a state.
    events: watch::Receiver<u64>,
    pub(crate) denials: Arc<Denials>,
    pub(crate) config: Arc<NatsConfig>,
    pub(crate) request_timeout: Duration,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// `Denied` for wrong credentials, `Unavailable` when no server answers within `connect_timeout`, `Unsupported` for a
    /// server that is too old or has no JetStream.
    pub(crate) async fn open(config: Arc<NatsConfig>, role: &str) -> Result<Self, Error> {
        let shown = config.servers.iter().map(|server| without_user(server)).collect::<Vec<_>>().join(",");
        let addresses: Vec<ServerAddr> = config
            .servers
            .iter()
            .map(|server| server.parse())
            .collect::<Result<_, _>>()
            .map_err(|why: std::io::Error| {
                Error::new(ErrorKind::ConfigInvalid, "a server address cannot be read; use nats://host:port")
                    .with_operation("connect")
                    .with_context("servers", &shown)
                    .with_source(why)
            })?;
        let (bump, events) = watch::channel(0u64);
        let denials = Arc::<Denials>::default();
        let heard = denials.clone();
        let mut options = ConnectOptions::new()
            .name(format!("{} {role}", config.name))
            .connection_timeout(config.connect_timeout)
            .request_timeout(Some(config.request_timeout))
            .ping_interval(PING_INTERVAL)
            .reconnect_delay_callback(reconnect_delay)
            .event_callback(move |event| {
                if let Event::ServerError(error) = &event {
                    tracing::warn!(%error, "the server reports an error");
                    heard.hear(&error.to_string());
                }
                bump.send_modify(|count| *count += 1);
                std::future::ready(())
            });
        options = config.tls.apply(options);
        if let Some(credentials) = &config.credentials {
            options = credentials.apply(options).await?;
        }
        let connecting = async_nats::connect_with_options(addresses, options);
        let client = match tokio::time::timeout(config.connect_timeout, connecting).await {
            Ok(connected) => {
                connected.map_err(|why| error::connect(why, &shown, config.tls.is_asked_for()))?
            }
            Err(_) => {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "no server answered in time; check address and network",
                )
                .with_operation("connect")
                .with_context("servers", &shown)
                .with_context("connect_timeout", format_args!("{:?}", config.connect_timeout)));
            }
        };
        let mut context = jetstream::new(client.clone());
        context.set_timeout(config.request_timeout);
        let request_timeout = config.request_timeout;
        let connection = Self { client, context, events, denials, config, request_timeout };
        connection.require(2, 9, "the NATS backend").map_err(|e| e.with_context("servers", &shown))?;
        Ok(connection)
    }

    /// Refuses what this server is too old for.
    pub(crate) fn require(&self, major: i64, minor: i64, what: &str) -> Result<(), Error> {
        if self.is_at_least(major, minor) {
            return Ok(());
        }
        let version = self.client.server_info().version;
        Err(Error::new(ErrorKind::Unsupported, format!("{what} needs nats-server {major}.{minor} or later"))
            .with_context("server_version", version))
    }

    pub(crate) fn is_at_least(&self, major: i64, minor: i64) -> bool {
        self.client.is_server_compatible(major, minor, 0)
    }

    /// Whether the server is one node of a cluster.
    pub(crate) fn is_clustered(&self) -> bool {
        self.client.server_info().cluster.is_some()
    }

    /// Whether it is up now, as far as this side knows.
    pub(crate) fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// How often it was made: another number means that messages may be missing in between.
    pub(crate) fn generation(&self) -> u64 {
        self.client.statistics().connects.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether its task has ended, such as by a panic of async-nats at headers that it cannot hold: it never comes back by itself,
    /// and does not say so.
    pub(crate) fn has_ended(&self) -> bool {
        self.events.has_changed().is_err()
    }

    /// Waits a moment for what failed to show whether its task has ended: a request fails somewhat before.
    pub(crate) async fn has_settled(&self) {
        let mut events = self.events.clone();
        let ended = async { while events.changed().await.is_ok() {} };
        tokio::time::timeout(LOOK_AGAIN, ended).await.unwrap_or_default();
    }

    /// Resolves when something happened to the connection since the last call of this clone, and now and then while it is
    /// down: the client tells of an event just before its state changes, so a look right after it may come too early.
    pub(crate) async fn changed(&mut self) {
        let changed = self.events.changed();
        let ended = if self.client.connection_state() == State::Connected {
            changed.await.is_err()
        } else {
            tokio::time::timeout(LOOK_AGAIN, changed).await.is_ok_and(|changed| changed.is_err())
        };
        if ended {
            // The client's event task has ended: nothing will happen any more.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until it is up.
    ///
    /// # Errors
    /// `Unavailable` when it is not within `within`.
    pub(crate) async fn up(&self, within: Duration, operation: &'static str) -> Result<(), Error> {
        let mut this = self.clone();
        let up = async {
            while !this.is_up() {
                this.changed().await;
            }
        };
        if self.is_up() {
            return Ok(());
        }
        tokio::time::timeout(within, up).await.map_err(|_| {
            error::unavailable(operation, "the connection is down and was not made anew in time")
        })
    }

    /// Waits for an answer, or for the server to say that publishing to such a subject is not allowed.
    ///
    /// # Errors
    /// `Denied`.
    pub(crate) async fn allowed<T>(
        &self,
        is_it: impl Fn(&str) -> bool,
        operation: &'static str,
        answer: impl Future<Output = T>,
    ) -> Result<T, Error> {
        let mut events = self.events.clone();
        let count = self.denials.count();
        let denied = async {
            while !self.denials.has_since(count, &is_it) {
                if events.changed().await.is_err() {
                    // The answer says so too.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            () = denied => Err(error::denied(operation)),
        }
    }

    /// A request of the JetStream API. Nothing is sent while the connection is down: it would be sent later, after its
    /// caller was told that it failed.
    ///
    /// # Errors
    /// What the server says, `Unavailable` or `Timeout` when it says nothing, `Denied` when it does not allow it.
    pub(crate) async fn api<T: DeserializeOwned>(
        &self,
        subject: String,
        payload: &impl Serialize,
        operation: &'static str,
    ) -> Result<Result<T, jetstream::Error>, Error> {
        use async_nats::jetstream::context::RequestErrorKind;
        use async_nats::jetstream::response::Response;

        self.up(self.request_timeout, operation).await?;
        let full = format!("$JS.API.{subject}");
        let asking = self.context.request::<_, _, Response<T>>(subject, payload);
        match self.allowed(|denied| denied == full, operation, asking).await? {
            Ok(Response::Ok(answer)) => Ok(Ok(answer)),
            Ok(Response::Err { error }) => Ok(Err(error)),
            Err(why) => Err(match why.kind() {
                RequestErrorKind::NoResponders => Error::new(
                    ErrorKind::Unavailable,
                    "JetStream does not answer; it is not enabled on the server, or the server is starting",
                )
                .with_operation(operation)
                .with_source(why),
                RequestErrorKind::TimedOut => error::timeout(operation).with_source(why),
                _ if self.has_ended() => {
                    error::unavailable(operation, "the connection has ended").with_source(why)
                }
                _ => Error::new(ErrorKind::Unexpected, "the server's answer cannot be read")
                    .with_operation(operation)
                    .with_source(why),
            }),
        }
    }
}

fn reconnect_delay(attempts: usize) -> Duration {
    let exponent = u32::try_from(attempts.saturating_sub(1).min(8)).unwrap_or(8);
    if attempts <= 1 {
        Duration::ZERO
    } else {
        (Duration::from_millis(10) * 2u32.pow(exponent)).min(MAX_RECONNECT_DELAY)
    }
}
