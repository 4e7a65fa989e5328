//! The network of one connection, as a case breaks it; what it does is in the history, so that the oracle knows what it excuses.

use std::fmt;
use std::sync::Arc;

use crate::history::{Event, History, Kind, Name, name};
use crate::proxy::Line;

/// The network between one connection and its broker.
pub trait Link: Send + Sync + fmt::Debug {
    /// Breaks all connections, and every new one, until [`heal`](Self::heal).
    fn cut(&self);

    /// Lets nothing pass, and breaks nothing, until [`heal`](Self::heal).
    fn stall(&self);

    /// Ends the trouble.
    fn heal(&self);
}

impl Link for Line {
    fn cut(&self) {
        Self::cut(self);
    }

    fn stall(&self) {
        Self::stall(self);
    }

    fn heal(&self) {
        Self::heal(self);
    }
}

/// How a network fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Break {
    /// [`Link::cut`].
    Cut,
    /// [`Link::stall`].
    Stalled,
}

/// The link of a member or a publisher, whose faults are recorded under its name.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    link: Arc<dyn Link>,
    history: History,
    name: Name,
}

impl Wire {
    pub(super) fn new(link: Arc<dyn Link>, history: &History, owner: &str) -> Self {
        Self { link, history: history.clone(), name: name(owner) }
    }

    pub(super) fn link(&self) -> &Arc<dyn Link> {
        &self.link
    }

    pub(super) fn fail(&self, how: Break) {
        // Before it is so: what the fault brings about comes after it.
        self.record(Kind::Cut);
        match how {
            Break::Cut => self.link.cut(),
            Break::Stalled => self.link.stall(),
        }
    }

    pub(super) fn heal(&self) {
        self.link.heal();
        self.record(Kind::Healed);
    }

    fn record(&self, kind: Kind) {
        let mut event = Event::new(kind);
        event.member = Some(self.name.clone());
        self.history.record(event);
    }
}
