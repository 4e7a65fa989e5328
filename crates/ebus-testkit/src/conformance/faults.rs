//! Faults that a broker makes on request: what no network trouble brings about at a chosen moment.
//!
//! A broker in this process can lose a partition without a word, or refuse commits; a real one cannot be told to, or only by
//! writing into its state. A case that needs a fault which there is not is shown as ignored: by [`None`], or by
//! [`Harness::lacks`](super::Harness::lacks).

use async_trait::async_trait;
use ebus_core::{Error, Group, NextOffset, PartitionId, Topic};

/// Faults of ownership, on request.
///
/// # Errors
/// Every method gives `NotFound` for a group or partition that is not there, or a partition that nobody owns.
#[async_trait]
pub trait Faults: Send + Sync {
    /// Takes a partition away without notice, as when a session timed out; the same member may have it again.
    ///
    /// # Errors
    /// Those of the trait.
    async fn lose(&self, group: &Group, partition: &PartitionId) -> Result<(), Error>;

    /// Whether commits of a group are refused with `Unavailable`.
    ///
    /// # Errors
    /// Those of the trait.
    async fn commits_fail(&self, group: &Group, fail: bool) -> Result<(), Error>;
}

/// Faults of what is stored, on request: of a log, and of what a group has committed about it.
///
/// # Errors
/// Every method gives `NotFound` for what is not there.
#[async_trait]
pub trait LogFaults: Send + Sync {
    /// Drops all messages below an offset, as retention does.
    ///
    /// # Errors
    /// Those of the trait.
    async fn trim(&self, partition: &PartitionId, below: u64) -> Result<(), Error>;

    /// Leaves a gap at the end, as compaction or an aborted transaction does: of so many offsets, or of as many as the broker can
    /// be made to leave out. Zero is none.
    ///
    /// # Errors
    /// Those of the trait.
    async fn skip_offsets(&self, partition: &PartitionId, offsets: u64) -> Result<(), Error>;

    /// Puts any bytes in the place of what a group has committed. They count from the next assignment on.
    ///
    /// # Errors
    /// Those of the trait.
    async fn overwrite_position(
        &self,
        group: &Group,
        partition: &PartitionId,
        watermark: NextOffset,
        text: &[u8],
    ) -> Result<(), Error>;

    /// Removes a topic with its messages, and makes an empty one of the same name and size.
    ///
    /// # Errors
    /// Those of the trait.
    async fn remake_topic(&self, topic: &Topic) -> Result<(), Error>;
}
