//! What a publisher takes and gives.

use crate::{Error, Message, Topic};

/// A message on its way to a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Publish {
    /// Where it goes.
    pub topic: Topic,
    /// What goes there.
    pub message: Message,
    /// An id by which a backend that can (NATS) recognises the same message published twice.
    pub id: Option<String>,
}

impl Publish {
    /// `message` to `topic`.
    pub fn new(topic: Topic, message: Message) -> Self {
        Self { topic, message, id: None }
    }

    /// `message` to the topic of this name.
    ///
    /// # Errors
    /// `ConfigInvalid` when the name is illegal.
    pub fn to<T>(topic: T, message: Message) -> Result<Self, Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        Ok(Self::new(topic.try_into()?, message))
    }

    /// With this id for deduplication.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

/// The broker's acknowledgement: the message is stored here.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The topic.
    pub topic: Topic,
    /// The partition in it.
    pub partition: u32,
    /// The place in the partition.
    pub offset: u64,
    /// Whether the broker had the message already, by its id.
    pub duplicate: bool,
}

impl Receipt {
    /// Stored at `offset` of `partition`.
    pub fn new(topic: Topic, partition: u32, offset: u64) -> Self {
        Self { topic, partition, offset, duplicate: false }
    }

    /// Stored earlier, by its id.
    #[must_use]
    pub fn with_duplicate(mut self, duplicate: bool) -> Self {
        self.duplicate = duplicate;
        self
    }
}
