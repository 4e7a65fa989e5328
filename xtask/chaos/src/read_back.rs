//! What the broker has at the end: the topic, the dead letters, and what the group has committed.

use anyhow::{Context, Result};
use ebus::{Backend, Group, Message, Topic};
use ebus_testkit::read_back;
use ebus_testkit::record::{Origin, VERSION_HEADER};

use crate::setting::Names;
use crate::work::Work;
use crate::world::chained;

/// Which event a message is: its key, and the version of it.
pub(crate) type Id = (String, u64);

/// A message of the topic.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    /// Which event it is, and what it asks for; `None` when nobody of this run published it.
    pub(crate) event: Option<(Id, Work)>,
}

/// A message of the dead-letter topic.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) id: Option<Id>,
    /// Partition and offset that it says it is from.
    pub(crate) from: Option<(u32, u64)>,
}

/// What the broker has.
#[derive(Debug, Default)]
pub(crate) struct ReadBack {
    /// By partition and ascending offset.
    pub(crate) stored: Vec<Stored>,
    pub(crate) dead_letters: Vec<Letter>,
    /// Up to where each partition is committed.
    pub(crate) committed: Vec<(u32, u64)>,
}

impl ReadBack {
    pub(crate) async fn of(backend: &dyn Backend) -> Result<Self> {
        let names = Names::default();
        let (topic, group) = (Topic::new(&names.topic)?, Group::new(&names.group)?);
        let mut all = Self::default();
        read_back::read_topic(backend, &topic, |partition, offset, message| {
            let event = id(&message).zip(Work::of(&message.payload)).map(|(id, (work, _))| (id, work));
            all.stored.push(Stored { partition, offset, event });
        })
        .await
        .map_err(chained)
        .context("could not read the topic back")?;
        read_back::read_topic(backend, &Topic::new(&names.dead_letters)?, |_, _, message| {
            let origin = Origin::of(&message)
                .filter(|origin| origin.group == names.group && origin.topic == names.topic);
            let from = origin.map(|origin| (origin.partition, origin.offset));
            all.dead_letters.push(Letter { id: id(&message), from });
        })
        .await
        .map_err(chained)
        .context("could not read the dead letters back")?;
        all.committed = read_back::committed(backend, &group, &topic).await.map_err(chained)?;
        Ok(all)
    }
}

fn id(message: &Message) -> Option<Id> {
    let version = message.headers.first_str(VERSION_HEADER)?.parse().ok()?;
    Some((message.key.as_ref()?.as_str()?.to_owned(), version))
}
