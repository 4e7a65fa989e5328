//! Reads back what the broker has: the topic, the dead letters, and what the group committed.

use ebus::Error;
use ebus_testkit::read_back;
use ebus_testkit::record::Origin;

use super::event;
use super::plan::{Place, Plan};
use super::run::Run;

/// What the broker has at the end of a run.
#[derive(Debug, Default, Clone)]
pub(crate) struct ReadBack {
    /// The topic, by partition and ascending offset. `None` is a message that is no event of the plan.
    pub(crate) stored: Vec<(u32, u64, Option<Place>)>,
    /// Partitions, and where they begin: what is below was given up by the retention that the user chose.
    pub(crate) earliest: Vec<(u32, u64)>,
    pub(crate) dead_letters: Vec<DeadLetter>,
    /// Partitions, and up to where they are committed.
    pub(crate) committed: Vec<(u32, u64)>,
}

/// A dead letter: which event it is, and where its headers say it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeadLetter {
    pub(crate) place: Option<Place>,
    /// Group, topic, partition, offset.
    pub(crate) origin: Option<(String, String, u32, u64)>,
}

impl ReadBack {
    pub(crate) async fn of(run: &Run) -> Result<Self, Error> {
        let backend = run.reader.backend().as_ref();
        let plan: &Plan = &run.plan;
        let mut all = Self::default();
        all.earliest = read_back::read_topic(backend, &run.topic, |partition, offset, message| {
            all.stored.push((partition, offset, event::place(&message, plan)));
        })
        .await?;
        read_back::read_topic(backend, &run.dead_letters, |_, _, message| {
            let origin = Origin::of(&message)
                .map(|origin| (origin.group, origin.topic, origin.partition, origin.offset));
            all.dead_letters.push(DeadLetter { place: event::place(&message, plan), origin });
        })
        .await?;
        all.committed = read_back::committed(backend, &run.group, &run.topic).await?;
        Ok(all)
    }
}
