//! Faults that a broker makes on request: what no network trouble brings about at a chosen moment.
//!
//! A broker in this process can revoke a partition at will, or lose one without a word; a real one cannot be told to. A case that
//! needs such a fault is shown as ignored where there is none.

use async_trait::async_trait;
use ebus_core::{Error, Group, NextOffset, PartitionId, Topic};

/// Faults of ownership, on request.
///
/// Members of a group are counted from 0 in the order in which they joined, those that live.
///
/// # Errors
/// Every method gives `NotFound` for a group, partition or member that is not there, or a partition that nobody owns.
pub trait Faults: Send + Sync {
    /// How many members a group has.
    fn members(&self, group: &Group) -> usize;

    /// Who owns which partition of a group's topics.
    fn owners(&self, group: &Group) -> Vec<(PartitionId, usize)>;

    /// Has a partition given up with notice, and handed straight back to the same member once it is released.
    ///
    /// # Errors
    /// Those of the trait.
    fn revoke(&self, group: &Group, partition: &PartitionId) -> Result<(), Error>;

    /// Has a partition given up with notice, and handed to `to`.
    ///
    /// # Errors
    /// Those of the trait.
    fn revoke_to(&self, group: &Group, partition: &PartitionId, to: usize) -> Result<(), Error>;

    /// Takes a partition away without notice, as when a session timed out, and gives it to the same member again.
    ///
    /// # Errors
    /// Those of the trait.
    fn lose(&self, group: &Group, partition: &PartitionId) -> Result<(), Error>;

    /// Takes a partition away without notice, and gives it to `to`, which may begin before its former owner has learnt of it.
    ///
    /// # Errors
    /// Those of the trait.
    fn lose_to(&self, group: &Group, partition: &PartitionId, to: usize) -> Result<(), Error>;

    /// Ends a member without its doing.
    ///
    /// # Errors
    /// Those of the trait.
    fn crash(&self, group: &Group, member: usize) -> Result<(), Error>;

    /// Whether commits of a group are refused with `Unavailable`.
    ///
    /// # Errors
    /// Those of the trait.
    fn commits_fail(&self, group: &Group, fail: bool) -> Result<(), Error>;
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
