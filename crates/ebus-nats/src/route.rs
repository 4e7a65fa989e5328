//! What the publishing task knows of a topic: where its messages go (G2), and who waits to learn it (G7).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subject;
use ebus_core::{Error, ErrorKind, LogMark};

use crate::batch::{Alone, Batch};
use crate::flight::{Flight, Queued, Route};
use crate::hash;
use crate::pump::Uncertainty;
use crate::stream::TopicStream;

/// What is known of a topic that is published to.
pub(crate) struct RouteState {
    pub(crate) route: Arc<Route>,
    pub(crate) known: Option<Known>,
    /// A lookup is under way, and these wait for it.
    pub(crate) looking: bool,
    pub(crate) waiting: VecDeque<Queued>,
    /// Nobody took these; a lookup will say why.
    pub(crate) autopsy: Vec<(u64, Box<Flight>)>,
    /// The batch that takes the next message.
    pub(crate) open: Option<Batch>,
    pub(crate) alone: Alone,
    /// What a connection that ended has left; the others wait for it.
    pub(crate) uncertain: Uncertainty,
}

pub(crate) struct Known {
    partitions: u32,
    /// Which stream it is, of all that had or will have this name.
    pub(crate) mark: LogMark,
    pub(crate) subjects: Vec<Subject>,
    /// Whether the stream takes batches.
    pub(crate) takes_batches: bool,
    /// Whether its batches can be fenced.
    pub(crate) has_fences: bool,
    /// Where ids are spent.
    pub(crate) void: Option<Subject>,
    /// How long the server knows an id.
    pub(crate) id_window: Duration,
    /// Where the next message without a key goes.
    next: u32,
}

impl RouteState {
    pub(crate) fn new(route: Arc<Route>) -> Self {
        Self {
            route,
            known: None,
            looking: false,
            waiting: VecDeque::new(),
            autopsy: Vec::new(),
            open: None,
            alone: Alone::default(),
            uncertain: Uncertainty::default(),
        }
    }

    /// What was known of the stream holds no more.
    pub(crate) fn forget(&mut self) {
        self.known = None;
        self.alone = Alone::default();
    }
}

impl Known {
    /// # Errors
    /// `Unsupported` for a stream that only somebody else's publishers know how to publish to.
    pub(crate) fn read(found: &TopicStream) -> Result<Self, Error> {
        let Some(subjects) = &found.subjects else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the stream was made by somebody else and has not one plain subject; publish with his publisher",
            )
            .with_operation("publish")
            .with_context("stream", &found.name));
        };
        let subjects = subjects.iter().map(|subject| Subject::from(subject.as_str())).collect();
        let (takes_batches, has_fences) = (found.takes_batches, found.has_fences);
        let void = found.void.as_deref().map(Subject::from);
        let (partitions, mark, id_window) = (found.partitions, found.mark, found.id_window);
        Ok(Self { partitions, mark, subjects, takes_batches, has_fences, void, id_window, next: 0 })
    }

    /// Where a message goes: by its key, or in turn.
    pub(crate) fn partition(&mut self, hash: Option<u32>) -> u32 {
        match hash {
            Some(hash) => hash::partition(hash, self.partitions),
            None => {
                self.next = (self.next + 1) % self.partitions;
                self.next
            }
        }
    }
}
