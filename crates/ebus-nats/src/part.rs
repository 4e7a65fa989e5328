//! What a source keeps of one partition.

use std::sync::Arc;
use std::time::Duration;

use ebus_core::{Epoch, Lease, Message, Owned, PartitionId};
use tokio::time::Instant;

use crate::consumer::Feed;
use crate::stream::TopicStream;
use crate::watch::Watch;

/// A partition of a topic that is or was subscribed.
pub(crate) struct Part {
    pub(crate) id: PartitionId,
    pub(crate) stream: Arc<TopicStream>,
    /// The topic is subscribed.
    pub(crate) wanted: bool,
    /// It is part of this member's share.
    pub(crate) share: Share,
    /// Owned, or not.
    pub(crate) state: PartState,
}

/// Whether a partition is part of this member's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Share {
    /// As long as all members live who are not dead.
    pub(crate) now: bool,
    /// If those who missed heartbeats are dead.
    pub(crate) soon: bool,
}

impl Share {
    /// Neither now nor soon.
    pub(crate) fn is_none(self) -> bool {
        !self.now && !self.soon
    }
}

pub(crate) enum PartState {
    Seeking(Seeking),
    Holding(Box<Holding>),
}

/// Not owned: the record is looked at until it may be claimed.
pub(crate) struct Seeking {
    /// It may be for this member, so its record is looked at.
    pub(crate) looking: bool,
    /// What is known of the owner.
    pub(crate) watch: Option<Watch>,
    /// When to look next.
    pub(crate) next_look: Instant,
    /// A look or a claim is under way.
    pub(crate) busy: bool,
}

/// Owned.
pub(crate) struct Holding {
    pub(crate) owned: Owned,
    /// That of the record.
    pub(crate) epoch: Epoch,
    pub(crate) revision: u64,
    /// Writes of this epoch so far.
    pub(crate) writes: u64,
    pub(crate) lease: Lease,
    /// When the last accepted write was sent.
    pub(crate) renewed: Instant,
    /// When to write again if nothing is to be committed before.
    pub(crate) next_write: Instant,
    /// After a write that failed: none before this.
    pub(crate) blocked_until: Instant,
    pub(crate) writing: Option<Writing>,
    pub(crate) leaving: Option<Leaving>,
    pub(crate) reading: Reading,
    pub(crate) paused: bool,
}

/// A write without an answer.
pub(crate) struct Writing {
    /// It carries a commit.
    pub(crate) commit: bool,
    /// It gives the partition up.
    pub(crate) release: bool,
}

/// The partition is to be given up.
pub(crate) struct Leaving {
    pub(crate) deadline: Instant,
    /// Nothing of it runs any more: the last write may go.
    pub(crate) released: bool,
}

/// Where reading is.
pub(crate) struct Reading {
    pub(crate) feed: FeedState,
    /// The offset after the last one that was taken from a feed.
    pub(crate) next: u64,
    /// Taken from the feed and not handed on: there was no room.
    pub(crate) held: Option<(u64, Message)>,
    /// Instances so far.
    pub(crate) instance: u32,
    /// Since when an open feed is not read.
    pub(crate) unread_since: Option<Instant>,
    /// Failures in a row.
    pub(crate) failures: u32,
    /// Consumers in a row that ended before a message came.
    pub(crate) stuck: u32,
}

pub(crate) enum FeedState {
    /// To be opened when there is room, not before.
    Closed(Instant),
    Opening,
    Open(Feed),
}

impl Reading {
    pub(crate) fn new(next: u64, now: Instant) -> Self {
        Self {
            feed: FeedState::Closed(now),
            next,
            held: None,
            instance: 0,
            unread_since: None,
            failures: 0,
            stuck: 0,
        }
    }

    /// When to open again after what failed: at once the first time, then later and later.
    pub(crate) fn back_off(&mut self, now: Instant) {
        let pause = match self.failures {
            0 => Duration::ZERO,
            failures => Duration::from_millis(25) * 2u32.pow(failures.min(6)),
        };
        self.failures += 1;
        self.feed = FeedState::Closed(now + pause);
    }
}

impl Part {
    pub(crate) fn seeking(id: PartitionId, stream: Arc<TopicStream>, now: Instant) -> Self {
        let seeking = Seeking { looking: false, watch: None, next_look: now, busy: false };
        Self { id, stream, wanted: true, share: Share::default(), state: PartState::Seeking(seeking) }
    }

    /// Owned, and not about to be given up.
    pub(crate) fn is_kept(&self) -> bool {
        matches!(&self.state, PartState::Holding(holding) if holding.leaving.is_none())
    }

    pub(crate) fn holding(&mut self) -> Option<&mut Holding> {
        match &mut self.state {
            PartState::Holding(holding) => Some(holding),
            PartState::Seeking(_) => None,
        }
    }

    pub(crate) fn seek(&mut self) -> Option<&mut Seeking> {
        match &mut self.state {
            PartState::Seeking(seeking) => Some(seeking),
            PartState::Holding(_) => None,
        }
    }
}
