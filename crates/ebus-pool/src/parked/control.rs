//! What a program may ask for that owns nothing: which keys are parked, and to redrive one.

use ebus_core::{Error, ErrorKind, Key, Parking, PartitionId};

use super::ParkedKey;
use super::set::{ParkedSet, Request};

/// The parked keys of a partition, as its owner last wrote them.
///
/// # Errors
/// Those of [`Parking::read`]; `Decode` when the list cannot be read.
pub async fn parked_keys(parking: &dyn Parking, partition: &PartitionId) -> Result<Vec<ParkedKey>, Error> {
    let text = parking.read(partition).await?;
    let set = text.as_deref().map(ParkedSet::decode).transpose();
    let set = set.map_err(|error| error.with_context("partition", partition))?.unwrap_or_default();
    Ok(set.iter().cloned().collect())
}

/// Asks the owner of the partition, now or later, to redrive a key that is parked. When the key is not in
/// [`parked_keys`] any more, all of its dead letters have run.
///
/// # Errors
/// `NotFound` when the key is not parked; those of [`Parking`].
pub async fn redrive(parking: &dyn Parking, partition: &PartitionId, key: &Key) -> Result<(), Error> {
    let parked = parked_keys(parking, partition).await?;
    let Some(parked) = parked.iter().find(|parked| parked.key == *key) else {
        return Err(Error::new(ErrorKind::NotFound, "the key is not parked in this partition")
            .with_operation("redrive")
            .with_context("partition", partition)
            .with_context("key", key));
    };
    let request = Request { key: key.clone(), offset: parked.offset };
    parking.ask(partition, request.encode()).await
}
