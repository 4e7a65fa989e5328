//! Which topics a connection publishes to, and what they take (G7, G8).
//!
//! A message that its topic does not take is refused by what is known, and makes it be asked again in the background: nobody who
//! publishes to the topic waits because somebody else's message was too large (G4).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ebus_core::{Message, Topic};
use parking_lot::RwLock;

use crate::flight::Flight;
use crate::takes::Takes;

/// How often at most it is asked again what a topic takes, because of messages that it does not take.
pub(crate) const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Which topics exist, as far as is known.
#[derive(Default)]
pub(crate) struct Topics {
    /// Grows when a topic turns out to be gone, or to take something else.
    pub(crate) generation: AtomicU64,
    pub(crate) list: RwLock<HashMap<Topic, Seen>>,
}

pub(crate) enum Seen {
    /// What it takes, and when that was last asked.
    Known(Takes, Instant),
    /// It is being looked up; these wait, in the order of `call`.
    LookedUp(Vec<(Message, Arc<Flight>)>),
}

impl Topics {
    /// It is gone, or takes something else: the next message waits for a look-up.
    pub(crate) fn forget(&self, topic: &str) {
        let mut list = self.list.write();
        if matches!(list.get(topic), Some(Seen::Known(..))) {
            list.remove(topic);
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Whether to ask now what the topic takes; then it is taken for asked.
    pub(crate) fn asks_again(&self, topic: &Topic, now: Instant) -> bool {
        let mut list = self.list.write();
        let Some(Seen::Known(_, asked)) = list.get_mut(topic) else { return false };
        let asks = now.saturating_duration_since(*asked) >= ASK_AGAIN;
        if asks {
            *asked = now;
        }
        asks
    }

    /// What a topic takes that is still known.
    pub(crate) fn told(&self, topic: &Topic, now: Takes) {
        let mut list = self.list.write();
        if let Some(Seen::Known(takes, _)) = list.get_mut(topic)
            && *takes != now
        {
            *takes = now;
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
    }
}
