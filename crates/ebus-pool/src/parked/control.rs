//! What a program may ask for that owns nothing: which keys are parked, and to redrive one.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ebus_core::{Backend, Error, ErrorKind, Group, Key, Parking, PartitionId, Topic};

use super::ParkedKey;
use super::set::{ParkedSet, Request};

/// The parked keys of a group in a topic, as the owners of its partitions last wrote them.
///
/// Reads only.
///
/// # Errors
/// `NotFound` when the topic does not exist, or no member of the group has ever parked keys; those of [`Backend::existing_parking`] and
/// [`Parking::read`]; `Decode` when a list cannot be read.
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
/// Asked again before that redrive begins, both are one; while it is under way, the key is redriven once more if it stays parked.
///
/// # Errors
/// `NotFound` when the key is not parked; those of [`parked_keys`] and [`Parking::ask`].
pub async fn redrive(backend: &dyn Backend, group: &Group, topic: &Topic, key: &Key) -> Result<(), Error> {
    let read = read(backend, group, topic).await;
    let (parking, keys) = read.map_err(|error| error.with_operation("redrive").with_context("key", key))?;
    let mut found = false;
    // In two partitions, if the topic has got more of them.
    for parked in keys.iter().filter(|parked| parked.key == *key) {
        ask(&*parking, parked).await?;
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

/// Leaves a request in the place of those that are there for the same parking: however often it is asked for while nobody owns the
/// partition, one is left (of those who ask at the same moment, one each). It is stored before they are removed, so that an owner
/// that has begun one of them, and one that takes over meanwhile, finds it.
async fn ask(parking: &dyn Parking, parked: &ParkedKey) -> Result<(), Error> {
    let partition = &parked.partition;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut request = Request { key: parked.key.clone(), offset: parked.offset, asked: now };
    let same = |text: &Bytes| {
        Request::decode(text).filter(|other| other.key == request.key && other.offset == request.offset)
    };
    let before = parking.asked(partition).await?;
    let before: Vec<_> = before.into_iter().filter_map(|text| Some((same(&text)?.asked, text))).collect();
    request.asked = later_than(before.iter().map(|(asked, _)| *asked), now);
    let request = request.encode();
    parking.ask(partition, request.clone()).await?;
    // One of the largest time there is was not asked by us, and is as good as the one that could not be later.
    for (_, former) in before.iter().filter(|(_, former)| *former != request) {
        if let Err(error) = parking.answered(partition, former).await {
            tracing::debug!(%partition, error = %error.chain(), "a former request stays; it is done together with this one");
        }
    }
    Ok(())
}

/// Another time than any of these, whatever the clocks say of those who asked: the same request would be answered with the former.
fn later_than(asked: impl Iterator<Item = u128>, now: u128) -> u128 {
    asked.map(|asked| asked.saturating_add(1)).fold(now, u128::max)
}

async fn read(
    backend: &dyn Backend,
    group: &Group,
    topic: &Topic,
) -> Result<(Arc<dyn Parking>, Vec<ParkedKey>), Error> {
    let partitions = backend.describe_topic(topic).await?.partitions.len();
    let parking = backend.existing_parking(group).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p8_no_request_is_the_same_as_one_before_it_whatever_the_clocks_say() {
        assert_eq!(later_than([].into_iter(), 7), 7);
        assert_eq!(later_than([3, 5].into_iter(), 7), 7);
        assert_eq!(later_than([7, 3].into_iter(), 7), 8);
        assert_eq!(later_than([9, 12].into_iter(), 7), 13);
    }
}
