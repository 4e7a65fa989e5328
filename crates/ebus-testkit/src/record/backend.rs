//! A backend whose publishers and sources record.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{
    Backend, Capability, Committed, Error, Group, Parking, Publisher, ReadRange, Reader, Source,
    SourceOptions, Topic, TopicInfo, TopicSpec,
};

use super::parking::RecordedParking;
use super::{RecordedPublisher, RecordedSource, VersionOf, version_from_header};
use crate::history::{Event, History, Kind, Name, name};

/// A backend that records what its publishers and sources do, under the name of one member.
///
/// - Publishers record `call`, `stored` and `failed`; a publish that has the headers of a dead letter records `dead_letter`
///   when its receipt has arrived.
/// - Sources record `assigned`, `revoking`, `released`, `lost` and `settle`. A source that is dropped without `close` records
///   `lost` for all it owned: that is what a crash is to the others.
/// - Stores of [parked keys](Backend::parking) record `kept`.
/// - [`committed`](Backend::committed) records what it answers, so that the oracle can hold commits against runs.
///
/// ```
/// use std::sync::Arc;
///
/// use ebus_core::Backend;
/// use ebus_testkit::{history::History, record::Recorded};
///
/// fn recorded(backend: Arc<dyn Backend>, history: &History) -> Arc<dyn Backend> {
///     Arc::new(Recorded::new(backend, history.clone(), "member-1"))
/// }
/// ```
pub struct Recorded<B: ?Sized> {
    history: History,
    member: Name,
    version: VersionOf,
    publisher: RecordedPublisher<Publisher>,
    inner: Arc<B>,
}

impl<B: Backend + ?Sized> Recorded<B> {
    fn recorded(&self, inner: Arc<dyn Parking>, group: &Group) -> Arc<dyn Parking> {
        let (history, member) = (self.history.clone(), self.member.clone());
        Arc::new(RecordedParking { inner, history, group: name(group.as_str()), member })
    }

    /// Records into `history` under the name `member`, which nobody else has. Versions come from the header
    /// [`VERSION_HEADER`](super::VERSION_HEADER).
    pub fn new(inner: Arc<B>, history: History, member: impl AsRef<str>) -> Self {
        let publisher = RecordedPublisher::new(inner.publisher(), history.clone(), member.as_ref());
        Self { history, member: name(member.as_ref()), version: version_from_header, publisher, inner }
    }

    /// Takes versions from messages by this function instead, such as from the payload.
    #[must_use]
    pub fn with_version(mut self, version: VersionOf) -> Self {
        self.version = version;
        self.publisher = self.publisher.with_version(version);
        self
    }

    /// The backend itself.
    pub fn inner(&self) -> &Arc<B> {
        &self.inner
    }
}

#[async_trait]
impl<B: Backend + ?Sized> Backend for Recorded<B> {
    fn capability(&self) -> Capability {
        self.inner.capability()
    }

    fn publisher(&self) -> Publisher {
        // A new one of the backend's, which numbers its calls together with all others of this member.
        Publisher::new(self.publisher.beside(self.inner.publisher()))
    }

    async fn source(&self, options: SourceOptions) -> Result<Box<dyn Source>, Error> {
        let group = options.group.clone();
        let source = self.inner.source(options).await?;
        Ok(Box::new(RecordedSource::new(source, self.history.clone(), &group, &self.member)))
    }

    async fn create_topic(&self, spec: &TopicSpec) -> Result<TopicInfo, Error> {
        self.inner.create_topic(spec).await
    }

    async fn describe_topic(&self, topic: &Topic) -> Result<TopicInfo, Error> {
        self.inner.describe_topic(topic).await
    }

    async fn read(&self, range: ReadRange) -> Result<Box<dyn Reader>, Error> {
        self.inner.read(range).await
    }

    async fn committed(&self, group: &Group, topic: &Topic) -> Result<Vec<Committed>, Error> {
        let committed = self.inner.committed(group, topic).await?;
        let (group, topic) = (name(group.as_str()), name(topic.as_str()));
        for one in &committed {
            let Some(position) = &one.position else { continue };
            let mut event = Event::new(Kind::Committed);
            event.group = Some(group.clone());
            event.topic = Some(topic.clone());
            event.partition = Some(one.partition);
            event.epoch = Some(one.epoch.0);
            event.offset = Some(position.watermark.0);
            event.finished = Some(position.finished.runs().to_vec());
            self.history.record(event);
        }
        Ok(committed)
    }

    async fn parking(&self, group: &Group) -> Result<Arc<dyn Parking>, Error> {
        Ok(self.recorded(self.inner.parking(group).await?, group))
    }

    async fn existing_parking(&self, group: &Group) -> Result<Arc<dyn Parking>, Error> {
        Ok(self.recorded(self.inner.existing_parking(group).await?, group))
    }

    async fn close(&self, within: Duration) -> Result<(), Error> {
        self.inner.close(within).await
    }
}

impl<B: ?Sized> fmt::Debug for Recorded<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorded").field("member", &self.member).finish_non_exhaustive()
    }
}
