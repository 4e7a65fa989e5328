//! Where messages come from: ownership of partitions, messages of them, and the duty to settle (G1, G3, G5, G6).

use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::{Error, Lease, Message, Owned, PartitionId, Settlement, Token, Topic};

/// What a source says.
#[derive(Debug)]
#[non_exhaustive]
pub enum SourceEvent {
    /// This member owns these partitions now; their messages follow. Each starts unpaused.
    Assigned {
        /// The new ownerships.
        owned: Vec<Assigned>,
    },
    /// A message of a partition that is owned.
    Message(Inbound),
    /// These partitions shall be given up: start nothing of them any more, settle what ends, and answer by
    /// [`Source::release`] when nothing of them runs or is queued, at the deadline at the latest.
    Revoking {
        /// The ownerships that end.
        owned: Vec<Owned>,
        /// When the source gives them up unasked, as `Lost`.
        deadline: Instant,
    },
    /// The answer to [`Source::release`]: the hand-over is complete.
    Released {
        /// The ownerships that have ended.
        owned: Vec<Owned>,
        /// Whether the last commit was accepted; if not, what finished since the one before runs again elsewhere.
        committed: Result<(), Error>,
    },
    /// These partitions are owned by this member no more, without notice: cancel their runs, settle nothing, do not release.
    Lost {
        /// The ownerships that have ended.
        owned: Vec<Owned>,
    },
    /// The answer to [`Source::commit_now`]: an accepted commit covers what had been settled when it was called.
    Committed {
        /// The ownerships that it was called for.
        owned: Vec<Owned>,
    },
    /// Of some partitions the next message is there and not read, because what is read and not finished takes up all of their
    /// ledgers ([`Full`](crate::Full)): what waits for more of these waits in vain. Of others it may be read again.
    Full {
        /// Those that are full by now.
        full: Vec<Owned>,
        /// Those that were and have room again.
        freed: Vec<Owned>,
    },
    /// Something failed that the source goes on trying: for health and the log.
    Trouble(Error),
}

/// A partition that is owned from now on.
#[derive(Debug, Clone)]
pub struct Assigned {
    /// The ownership.
    pub owned: Owned,
    /// The partition.
    pub partition: PartitionId,
    /// Until when runs may start.
    pub lease: Lease,
}

/// A message and the duty to settle it.
#[derive(Debug)]
pub struct Inbound {
    /// The duty.
    pub token: Token,
    /// The message.
    pub message: Message,
}

/// What a backend gives to one member of a group.
///
/// One task owns a source; there is no lock on the path of a message. Only [`recv`](Self::recv) and [`close`](Self::close)
/// wait. Everything else is recorded at once, done by the source from within `recv`, and answered through it. So a pool that
/// is full still sees ownership events, and a dead coordinator never stops the partitions that work.
///
/// # Contract
/// - If `recv` is not called for [`Capability::max_idle`](crate::Capability::max_idle), the source gives its membership up.
/// - The messages of a partition come in ascending order of offset, each at most once per epoch, and none that a former
///   owner's accepted commit calls finished.
/// - After `Revoking` and after `Lost` no message of these ownerships comes.
/// - The partition of a `Revoking` goes to nobody else before `release` or the deadline.
/// - The span of uncommitted messages of a partition is bounded by the source; it stops reading that partition alone, and
///   says so by `Full`.
/// - What finished is committed every [`commit_interval`](crate::SourceOptions::with_commit_interval), and once more before
///   `Released`.
#[async_trait]
pub trait Source: Send {
    /// Waits for events and appends them to `out`; how many. Messages only while `room > 0`, at most `room` of them;
    /// all other events always. Drives commits, heartbeats and hand-overs: call it without pause.
    ///
    /// `Ok(0)` only at the end of the stream.
    ///
    /// # Cancel safety
    /// Nothing is appended before its last await: a dropped call loses nothing.
    ///
    /// # Errors
    /// Only what ends the source for good. What is passing comes as [`SourceEvent::Trouble`].
    async fn recv(&mut self, room: usize, out: &mut Vec<SourceEvent>) -> Result<usize, Error>;

    /// Takes settlements in and empties `batch`. A token of an older epoch is void, and counted.
    fn settle(&mut self, batch: &mut Vec<(Token, Settlement)>);

    /// The answer to `Revoking`: nothing of these runs or is queued any more. Answered by `Released`. A stale one is void,
    /// and counted.
    fn release(&mut self, owned: &[Owned]);

    /// Stops reading these partitions; they stay owned. A stale one is void.
    fn pause(&mut self, owned: &[Owned]);

    /// Reads these partitions again. A stale one is void.
    fn resume(&mut self, owned: &[Owned]);

    /// Commits what is settled now, without waiting for the interval, also while a hand-over is under way. Answered by `Committed`
    /// for each ownership, once an accepted commit covers all that was settled before this call; asked again before that, both are
    /// answered by one that covers the later. A commit that is refused is made again. There is no answer once the ownership has
    /// ended, and nobody knows then whether it was accepted. A stale one is void.
    fn commit_now(&mut self, owned: &[Owned]);

    /// Reads these topics from now on, all of them and no others.
    fn subscribe(&mut self, topics: &[Topic]);

    /// Settlements and releases that were void since the source began.
    fn stale(&self) -> u64;

    /// Commits what finished and leaves the group. What is not settled by now is the next owner's.
    ///
    /// # Errors
    /// When the last commit was not accepted within `within`; the source is closed all the same.
    async fn close(self: Box<Self>, within: Duration) -> Result<(), Error>;
}
