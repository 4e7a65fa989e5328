//! What a case has seen its handlers do.

use std::collections::BTreeSet;
use std::sync::Arc;

use ebus_core::{Delivery, Message, Outcome};
use parking_lot::Mutex;

use crate::record::version_from_header;

/// One run that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ran {
    pub(super) member: String,
    pub(super) topic: String,
    pub(super) partition: u32,
    pub(super) offset: u64,
    pub(super) key: String,
    pub(super) version: u64,
    pub(super) attempt: u32,
    pub(super) acked: bool,
    pub(super) message: Message,
}

/// The runs of a case, in the order in which they ended. Those that were cancelled are not there.
#[derive(Debug, Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<Ran>>>);

impl Log {
    pub(super) fn ended(&self, member: &str, delivery: &Delivery, outcome: &Outcome) {
        self.0.lock().push(Ran {
            member: member.to_owned(),
            topic: delivery.topic().to_string(),
            partition: delivery.partition().partition,
            offset: delivery.offset(),
            key: delivery.key().map(ToString::to_string).unwrap_or_default(),
            version: version_from_header(delivery.message()).unwrap_or_default(),
            attempt: delivery.attempt(),
            acked: matches!(outcome, Outcome::Ack),
            message: delivery.message().clone(),
        });
    }

    pub(super) fn all(&self) -> Vec<Ran> {
        self.0.lock().clone()
    }

    /// How many runs ended well.
    pub(super) fn acked(&self) -> usize {
        self.count(|ran| ran.acked)
    }

    pub(super) fn count(&self, is: impl Fn(&Ran) -> bool) -> usize {
        self.0.lock().iter().filter(|ran| is(ran)).count()
    }

    /// How many different messages were handled.
    pub(super) fn handled(&self) -> usize {
        let runs = self.0.lock();
        let acked = runs.iter().filter(|ran| ran.acked);
        acked.map(|ran| (ran.topic.as_str(), ran.partition, ran.offset)).collect::<BTreeSet<_>>().len()
    }

    /// How many keys have handled a version above this one.
    pub(super) fn keys_past(&self, version: u64) -> usize {
        let runs = self.0.lock();
        let later = runs.iter().filter(|ran| ran.acked && ran.version > version);
        later.map(|ran| ran.key.as_str()).collect::<BTreeSet<_>>().len()
    }

    /// Versions of a key, in the order in which their runs ended.
    pub(super) fn versions(&self, key: &str) -> Vec<u64> {
        self.0.lock().iter().filter(|ran| ran.key == key).map(|ran| ran.version).collect()
    }

    /// The members that handled something.
    pub(super) fn members(&self) -> BTreeSet<String> {
        self.0.lock().iter().map(|ran| ran.member.clone()).collect()
    }
}
