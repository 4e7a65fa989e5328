//! Reads back what the broker has: the topic, the dead letters, and what the group committed.

use std::time::Duration;

use ebus::{Backend, Error, ErrorKind, Message, ReadRange, Topic};
use ebus_testkit::record::Origin;

use super::event;
use super::plan::{Place, Plan};
use super::run::Run;

/// How long the broker may take for the next messages of a range.
const READ_WITHIN: Duration = Duration::from_secs(30);

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
        let earliest = read(backend, &run.topic, |partition, offset, message| {
            all.stored.push((partition, offset, event::place(&message, plan)));
        })
        .await?;
        all.earliest = earliest;
        read(backend, &run.dead_letters, |_, _, message| {
            let origin = Origin::of(&message)
                .map(|origin| (origin.group, origin.topic, origin.partition, origin.offset));
            all.dead_letters.push(DeadLetter { place: event::place(&message, plan), origin });
        })
        .await?;
        let committed = backend.committed(&run.group, &run.topic).await?;
        all.committed = committed
            .into_iter()
            .map(|committed| {
                (committed.partition, committed.position.map_or(0, |position| position.watermark.0))
            })
            .collect();
        Ok(all)
    }
}

/// Hands on all messages of a topic, and says where its partitions begin.
async fn read(
    backend: &dyn Backend,
    topic: &Topic,
    mut each: impl FnMut(u32, u64, Message),
) -> Result<Vec<(u32, u64)>, Error> {
    let info = backend.describe_topic(topic).await?;
    let (mut messages, mut earliest) = (Vec::new(), Vec::new());
    for (partition, info) in (0..).zip(info.partitions) {
        earliest.push((partition, info.earliest));
        let range = ReadRange::new(topic.clone(), partition, info.earliest, info.end);
        let mut reader = backend.read(range).await?;
        loop {
            let read = tokio::time::timeout(READ_WITHIN, reader.next(1_000, &mut messages)).await;
            let read = read.map_err(|_| {
                Error::new(ErrorKind::Timeout, "the broker stopped giving messages of a range that it has")
                    .with_operation("read")
                    .with_context("topic", topic)
                    .with_context("partition", partition)
            })??;
            if read == 0 {
                break;
            }
            messages.drain(..).for_each(|(offset, message)| each(partition, offset, message));
        }
    }
    Ok(earliest)
}
