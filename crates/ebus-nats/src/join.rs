//! How a member joins a group (G1, G3).
//!
//! It sets its topics up, says that it is there, and owns nothing yet: its share comes to it from within `recv`
//! ([`crate::balance`]), as it does to every other member.

use std::sync::Arc;
use std::time::Duration;

use ebus_core::{Error, Source, SourceOptions};
use tokio::sync::watch;

use crate::config::NatsConfig;
use crate::connection::Connection;
use crate::group::Member;
use crate::source::NatsSource;
use crate::store::Store;

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
