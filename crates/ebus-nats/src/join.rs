//! How a member joins a group (G1, G3).
//!
//! It sets its topics up, says that it is there, and owns nothing yet: its share comes to it from within `recv`
//! ([`crate::balance`]), as it does to every other member. It stays the same member when its connection is lost for good.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use ebus_core::{Error, Source, SourceEvent, SourceOptions};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::NatsConfig;
use crate::connection::Connection;
use crate::consumer::STUCK;
use crate::group::Member;
use crate::source::{Done, NatsSource, link};
use crate::store::Store;

/// Between two attempts to make a connection in the place of one that has ended.
const CONNECT_AGAIN: Duration = Duration::from_millis(500);

/// The lease of members on this connection.
pub(crate) fn lease(connection: &Connection) -> Duration {
    let default = if connection.is_clustered() { Duration::from_secs(15) } else { Duration::from_secs(3) };
    connection.config.lease.unwrap_or(default)
}

/// Joins.
///
/// # Errors
/// Those of setting the topics up, and of the first heartbeat.
pub(crate) async fn join(
    config: Arc<NatsConfig>,
    options: SourceOptions,
    backend_closed: watch::Receiver<bool>,
) -> Result<Box<dyn Source>, Error> {
    // A connection of its own: commits never wait behind publishes, and a member that is dropped is gone.
    let connection = Connection::open(config, "source").await?;
    let store = Store::open(connection.clone()).await?;
    let unique = connection.client.new_inbox();
    let unique = unique.rsplit('.').next().unwrap_or_default();
    let owner = format!("{}-{}-{unique}", connection.config.name, std::process::id());
    let lease = lease(&connection);
    let (group, owner, has_joined) = (options.group.clone(), owner.into(), Arc::default());
    let member = Member { connection, store, group, owner, lease, has_joined };
    let mut streams = Vec::new();
    for (i, topic) in options.topics.iter().enumerate() {
        if !options.topics[..i].contains(topic) {
            streams.push(member.set_up(topic, options.start).await?);
        }
    }
    let hints = member.store.hints(&member.heartbeats()).await?;
    let mut source = NatsSource::new(member, options, hints, backend_closed);
    for stream in streams {
        source.add_topic(stream);
    }
    source.enter().await?;
    Ok(Box::new(source))
}

impl NatsSource {
    /// Makes a new connection where the old one will never come back.
    pub(crate) fn check_connection(&mut self, now: Instant) {
        if self.connecting || !self.member.connection.has_ended() {
            return;
        }
        if now < self.connect_at {
            self.next_tick = self.next_tick.min(self.connect_at);
            return;
        }
        self.connecting = true;
        self.connect_at = now + CONNECT_AGAIN;
        tracing::warn!(group = %self.member.group, "the connection has ended for good; a new one is made");
        let member = self.member.clone();
        self.jobs.push(Box::pin(async move {
            let connecting = async {
                let connection = Connection::open(member.connection.config.clone(), "source").await?;
                let hints = Store::bind(connection.clone()).hints(&member.heartbeats()).await?;
                Ok(Box::new((connection, hints)))
            };
            Done::Connected(connecting.await)
        }));
    }

    pub(crate) fn connected(&mut self, made: Result<Box<(Connection, Subscriber)>, Error>, now: Instant) {
        self.connecting = false;
        match made {
            Ok(made) => {
                let (connection, hints) = *made;
                self.generation = connection.generation();
                self.link = link(connection.clone());
                self.member.store = Store::bind(connection.clone());
                self.member.connection = connection;
                self.balance.hear(hints);
                self.read_anew(STUCK, now);
            }
            Err(error) => self.events.push(SourceEvent::Trouble(error)),
        }
    }
}
