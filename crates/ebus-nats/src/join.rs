//! How a member joins a group (G3). In this version a group has one member.
//!
//! A record that was released is claimed at once. One that names an owner is watched for up to one lease: if it moves,
//! the owner is alive and the member is refused; if not, he is dead and it is taken over.

use std::sync::Arc;
use std::time::Duration;

use ebus_core::{Error, ErrorKind, Source, SourceOptions};
use futures_util::{StreamExt, stream};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::NatsConfig;
use crate::connection::Connection;
use crate::group::{Claimed, Member, Outcome, Seen};
use crate::record::{Record, Stored};
use crate::source::NatsSource;
use crate::store::Store;
use crate::stream::TopicStream;
use crate::watch::Watch;

/// Claims that are made at once.
const CONCURRENCY: usize = 32;

/// A partition, and its record as it was last seen.
struct Wanted {
    stream: Arc<TopicStream>,
    partition: u32,
    seen: Seen,
}

/// The lease of members on this connection.
pub(crate) fn lease(connection: &Connection) -> Duration {
    let default = if connection.is_clustered() { Duration::from_secs(15) } else { Duration::from_secs(3) };
    connection.config.lease.unwrap_or(default)
}

/// Joins.
///
/// # Errors
/// `Unsupported` when the group has a member that is alive; those of setting the topics up.
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
    let member = Member { connection, store, group: options.group.clone(), owner: owner.into(), lease };
    let mut ready = Vec::new();
    for (i, topic) in options.topics.iter().enumerate() {
        if !options.topics[..i].contains(topic) {
            ready.push(member.set_up(topic, options.start).await?);
        }
    }
    let mut wanted: Vec<Wanted> = ready
        .iter()
        .flat_map(|ready| {
            (0..).zip(&ready.records).map(|(partition, seen)| Wanted {
                stream: ready.stream.clone(),
                partition,
                seen: seen.clone(),
            })
        })
        .collect();
    wait_for_owners(&member, &mut wanted).await?;
    let claimed = claim(&member, wanted).await?;
    let mut source = NatsSource::new(member, options, backend_closed);
    for ready in &ready {
        source.add_topic(ready);
    }
    for (at, claimed) in claimed.into_iter().enumerate() {
        source.hold(at, claimed); // in the order in which they were added
    }
    Ok(Box::new(source))
}

/// Waits until no record names an owner that may be alive.
async fn wait_for_owners(member: &Member, wanted: &mut [Wanted]) -> Result<(), Error> {
    let mut others: Vec<(usize, Watch)> = (0..wanted.len())
        .filter(|at| wanted[*at].seen.owner().is_some())
        .map(|at| (at, Watch::new(wanted[at].seen.revision, wanted[at].seen.answered)))
        .collect();
    let every = (member.lease / 10).max(Duration::from_millis(50));
    while !others.is_empty() {
        tokio::time::sleep(every).await; // the records are polled: a watch can stay silent
        let looks = others.iter().map(|(at, _)| {
            let Wanted { stream, partition, .. } = &wanted[*at];
            member.look(&stream.topic, *partition)
        });
        let looks: Vec<_> = stream::iter(looks.collect::<Vec<_>>()).buffered(CONCURRENCY).collect().await;
        let mut left = Vec::new();
        for ((at, mut watch), look) in others.into_iter().zip(looks) {
            let Ok(seen) = look? else {
                return Err(gone(member, &wanted[at]));
            };
            let lease = member.lease.max(seen.lease());
            let released = seen.owner().is_none();
            if !released && watch.is_other_than(seen.revision) {
                return Err(has_a_member(member, &wanted[at], seen.owner().unwrap_or_default()));
            }
            watch.saw(seen.revision, seen.answered, lease);
            let free = released || watch.is_dead(seen.asked, lease);
            wanted[at].seen = seen;
            if !free {
                left.push((at, watch));
            }
        }
        others = left;
    }
    Ok(())
}

/// Claims all: the first one alone, so that of two members that join at once only one goes on.
async fn claim(member: &Member, wanted: Vec<Wanted>) -> Result<Vec<Claimed>, Error> {
    let mut claimed = Vec::with_capacity(wanted.len());
    let Some(first) = wanted.first() else { return Ok(claimed) };
    claimed.push(claim_one(member, first).await?);
    let rest: Vec<Result<Claimed, Error>> =
        stream::iter(wanted[1..].iter().map(|wanted| claim_one(member, wanted)).collect::<Vec<_>>())
            .buffered(CONCURRENCY)
            .collect()
            .await;
    let mut failed = None;
    let mut done = Vec::new();
    for result in rest {
        match result {
            Ok(claim) => done.push(Some(claim)),
            Err(error) => {
                failed.get_or_insert(error);
                done.push(None);
            }
        }
    }
    let Some(error) = failed else {
        claimed.extend(done.into_iter().flatten());
        return Ok(claimed);
    };
    let all = claimed.into_iter().map(Some).chain(done);
    for (wanted, claim) in wanted.iter().zip(all) {
        if let Some(claim) = claim {
            give_back(member, wanted, claim).await;
        }
    }
    Err(error)
}

async fn claim_one(member: &Member, wanted: &Wanted) -> Result<Claimed, Error> {
    let deadline = Instant::now() + member.connection.request_timeout;
    let mut seen = wanted.seen.clone();
    loop {
        let error = match member.claim(&wanted.stream, wanted.partition, &seen).await {
            Ok(claimed) => return Ok(claimed),
            Err(error) => error,
        };
        let again = matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Timeout | ErrorKind::Unavailable);
        if !again || Instant::now() >= deadline {
            return Err(error);
        }
        seen = match member.look(&wanted.stream.topic, wanted.partition).await? {
            Ok(seen) => seen,
            Err(_) => return Err(gone(member, wanted)),
        };
        match seen.owner() {
            Some(other) if *other != *member.owner => return Err(has_a_member(member, wanted, other)),
            _ => {}
        }
    }
}

/// Best effort: what is not given back is free after a lease.
async fn give_back(member: &Member, wanted: &Wanted, claimed: Claimed) {
    let record = Record {
        owner: String::new(),
        write: 1,
        ..member.owned(wanted.stream.mark, &claimed.position, claimed.epoch)
    };
    let topic = &wanted.stream.topic;
    let outcome = member.put(topic, wanted.partition, record, claimed.revision, member.lease / 3).await;
    if let Outcome::Failed(error) = outcome {
        tracing::debug!(%topic, partition = wanted.partition, %error, "a claim was not given back");
    }
}

fn gone(member: &Member, wanted: &Wanted) -> Error {
    Error::new(ErrorKind::NotFound, "the group's record of this partition is gone")
        .with_operation("source")
        .with_context("group", &member.group)
        .with_context("topic", &wanted.stream.topic)
        .with_context("partition", wanted.partition)
}

fn has_a_member(member: &Member, wanted: &Wanted, owner: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "the group has a member already, and this version of the NATS backend has one member per group; close it, or \
         use another group",
    )
    .with_operation("source")
    .with_context("group", &member.group)
    .with_context("topic", &wanted.stream.topic)
    .with_context("partition", wanted.partition)
    .with_context("owner", owner)
}

impl Seen {
    /// For `committed`: the record, if it is one.
    pub(crate) fn record(&self) -> Option<&Record> {
        match &self.stored {
            Stored::Record(record) => Some(record),
            Stored::Damaged => None,
        }
    }
}
