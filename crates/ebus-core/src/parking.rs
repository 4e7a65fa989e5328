//! What outlives an owner beside its positions: which keys are parked, and who asked for them (G2 across dead letters).
//!
//! Two things, as small as they can be on every broker: one value per partition that only its owner writes, fenced by epoch,
//! and a set of requests to the owner that anybody may add to. What they say is the pool's business.

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Epoch, Error, ErrorKind, Group, PartitionId};

/// Where a group keeps which of its keys are parked. Durable where the backend is.
///
/// # Contract
/// - A write that was accepted is what [`claim`](Self::claim) gives to every later owner, whatever happens in between.
/// - From an accepted claim on, no write of a lower epoch counts: it is refused as `Fenced`, or has no effect.
/// - A value belongs to one log: of a topic that was made anew there is none, and that is logged.
/// - Requests are a set: the same bytes twice are one. Their order says nothing.
///
/// # Errors
/// Every method: `Denied` without the right; `Unavailable` and `Timeout`, after which the call may be made again.
#[async_trait]
pub trait Parking: Send + Sync + 'static {
    /// The longest value in bytes that is kept for sure.
    fn max_bytes(&self) -> usize;

    /// Takes a partition over under `epoch`: its value as the last owner left it; `None` when there never was one.
    ///
    /// Asked again under the same epoch it gives the same.
    ///
    /// # Errors
    /// `Fenced` when it is claimed under a higher epoch.
    async fn claim(&self, partition: &PartitionId, epoch: Epoch) -> Result<Option<Bytes>, Error>;

    /// Writes the value of a partition that this member claimed under `epoch`. One write of a partition at a time.
    ///
    /// # Errors
    /// `Fenced` when it is claimed under a higher epoch; `TooLarge` above [`max_bytes`](Self::max_bytes).
    async fn keep(&self, partition: &PartitionId, epoch: Epoch, value: Bytes) -> Result<(), Error>;

    /// The value of a partition, for anybody who looks.
    async fn read(&self, partition: &PartitionId) -> Result<Option<Bytes>, Error>;

    /// Leaves a request for whoever owns the partition, now or later.
    async fn ask(&self, partition: &PartitionId, request: Bytes) -> Result<(), Error>;

    /// The requests that wait.
    async fn asked(&self, partition: &PartitionId) -> Result<Vec<Bytes>, Error>;

    /// Removes a request; one that is not there is no error.
    async fn answered(&self, partition: &PartitionId, request: &Bytes) -> Result<(), Error>;
}

/// For backends: nobody has parked keys in this group, as far as is known, see [`Backend::existing_parking`](crate::Backend::existing_parking).
pub fn no_parked_keys(group: &Group) -> Error {
    let message =
        "the group keeps no parked keys: no member of it was ever started with parked keys; check its name";
    Error::new(ErrorKind::NotFound, message).with_operation("parking").with_context("group", group)
}
