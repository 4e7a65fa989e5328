//! What a program may ask for that owns nothing: which keys are parked, and to redrive one.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ebus_core::{Backend, Error, ErrorKind, Group, Key, Parking, PartitionId, Topic};

use super::ParkedKey;
use super::set::{ParkedSet, Request};

/// The parked keys of a group in a topic, as the owners of its partitions last wrote them.
///
/// # Errors
/// `NotFound` when the topic does not exist; those of [`Backend::parking`] and [`Parking::read`]; `Decode` when a list cannot be
/// read.
pub async fn parked_keys(
    backend: &dyn Backend,
    group: &Group,
    topic: &Topic,
) -> Result<Vec<ParkedKey>, Error> {
    read(backend, group, topic).await.map(|(_, keys)| keys)
}

/// Asks the owner of its partition, now or later, to redrive a key that is parked. When the key is not among the
/// [`parked_keys`] any more, all of its dead letters have run.
///
/// # Errors
/// `NotFound` when the key is not parked; those of [`parked_keys`] and [`Parking::ask`].
pub async fn redrive(backend: &dyn Backend, group: &Group, topic: &Topic, key: &Key) -> Result<(), Error> {
    let (parking, keys) = read(backend, group, topic).await?;
    let mut found = false;
    // In two partitions, if the topic has got more of them.
    for parked in keys.iter().filter(|parked| parked.key == *key) {
        let asked = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let request = Request { key: key.clone(), offset: parked.offset, asked };
        parking.ask(&parked.partition, request.encode()).await?;
        found = true;
    }
    if found {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotFound, "the key is not parked")
        .with_operation("redrive")
        .with_context("group", group)
        .with_context("topic", topic)
        .with_context("key", key))
}

async fn read(
    backend: &dyn Backend,
    group: &Group,
    topic: &Topic,
) -> Result<(Arc<dyn Parking>, Vec<ParkedKey>), Error> {
    let partitions = backend.describe_topic(topic).await?.partitions.len();
    let parking = backend.parking(group).await?;
    let mut keys = Vec::new();
    for number in (0..).take(partitions) {
        let partition = PartitionId::new(topic.clone(), number);
        if let Some(text) = parking.read(&partition).await? {
            let set = ParkedSet::decode(&text, &partition);
            let set = set
                .map_err(|error| error.with_operation("parked_keys").with_context("partition", &partition))?;
            keys.extend(set.parked().cloned());
        }
    }
    Ok((parking, keys))
}
