//! A publisher that records what it was given and what the broker said.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use ebus_core::{BoxError, Message, Publish, Receipt};
use ebus_pool::dead_letter;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{VersionOf, version_from_header};
use crate::history::{Event, History, Kind, Name, key_text, name};

/// Locks that keep the recorded order of calls the true one: by key, so that keys do not wait for each other.
const LOCKS: usize = 64;

/// A publisher that records `call`, `stored`, `failed` and `dead_letter`. Its clones count as one publisher: what they are
/// given of one key has one order, that of their calls (G7).
#[derive(Clone)]
pub struct RecordedPublisher<P> {
    inner: P,
    shared: Arc<Shared>,
    version: VersionOf,
}

struct Shared {
    history: History,
    member: Name,
    calls: AtomicU64,
    locks: [Mutex<()>; LOCKS],
}

impl<P> RecordedPublisher<P> {
    /// Records into `history`; `member` names this publisher and no other.
    pub fn new(inner: P, history: History, member: impl AsRef<str>) -> Self {
        let shared = Shared {
            history,
            member: name(member.as_ref()),
            calls: AtomicU64::new(0),
            locks: [const { Mutex::new(()) }; LOCKS],
        };
        Self { inner, shared: Arc::new(shared), version: version_from_header }
    }

    /// Takes versions from messages by this function instead of from the header.
    #[must_use]
    pub fn with_version(mut self, version: VersionOf) -> Self {
        self.version = version;
        self
    }

    /// `inner` as another clone of this publisher.
    pub(super) fn beside<Q>(&self, inner: Q) -> RecordedPublisher<Q> {
        RecordedPublisher { inner, shared: self.shared.clone(), version: self.version }
    }
}

impl<P> Service<Publish> for RecordedPublisher<P>
where
    P: Service<Publish, Response = Receipt, Error: Into<BoxError>>,
{
    type Response = Receipt;
    type Error = BoxError;
    type Future = RecordedPublish<P::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, publish: Publish) -> Self::Future {
        let dead_letter = Origin::of(&publish.message);
        let mut event = Event::new(Kind::Call);
        event.topic = Some(name(publish.topic.as_str()));
        event.key = publish.message.key.as_ref().map(key_text);
        event.version = (self.version)(&publish.message);
        event.member = Some(self.shared.member.clone());

        let mut hasher = DefaultHasher::new();
        (&publish.topic, &publish.message.key).hash(&mut hasher);
        let order = self.shared.locks[hasher.finish() as usize % LOCKS].lock();
        event.call = Some(self.shared.calls.fetch_add(1, Ordering::Relaxed));
        self.shared.history.record(event.clone());
        let future = self.inner.call(publish);
        drop(order);

        RecordedPublish { future, call: Some((event, dead_letter)), shared: self.shared.clone() }
    }
}

pin_project! {
    /// What [`RecordedPublisher`] gives.
    ///
    /// # Cancel safety
    /// As the publisher's own: dropping it does not un-publish. Its answer is then not recorded.
    pub struct RecordedPublish<F> {
        #[pin]
        future: F,
        call: Option<(Event, Option<Origin>)>,
        shared: Arc<Shared>,
    }
}

impl<F, E> Future for RecordedPublish<F>
where
    F: Future<Output = Result<Receipt, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Receipt, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.future.poll(cx)).map_err(Into::into);
        if let Some((mut event, dead_letter)) = this.call.take() {
            match &result {
                Ok(receipt) => {
                    event.kind = Kind::Stored;
                    event.partition = Some(receipt.partition);
                    event.offset = Some(receipt.offset);
                }
                Err(error) => {
                    event.kind = Kind::Failed;
                    event.error = Some(error.to_string());
                }
            }
            let key = event.key.clone();
            this.shared.history.record(event);
            if let (Ok(_), Some(origin)) = (&result, dead_letter) {
                let mut event = origin.into_event();
                event.key = key;
                event.member = Some(this.shared.member.clone());
                this.shared.history.record(event);
            }
        }
        Poll::Ready(result)
    }
}

/// Which message a dead letter is of, as its headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin {
    /// The group that could not handle it.
    pub group: String,
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// Its place in the partition.
    pub offset: u64,
    /// Under which ownership it was given up.
    pub epoch: u64,
    /// How often it was tried.
    pub attempts: Option<u32>,
    /// Why it was given up.
    pub reason: Option<String>,
}

impl Origin {
    /// Reads the headers of a dead letter; `None` when the message is none.
    pub fn of(message: &Message) -> Option<Self> {
        let text = |header: &str| message.headers.first_str(header);
        Some(Self {
            group: text(dead_letter::GROUP)?.to_owned(),
            topic: text(dead_letter::TOPIC)?.to_owned(),
            partition: text(dead_letter::PARTITION)?.parse().ok()?,
            offset: text(dead_letter::OFFSET)?.parse().ok()?,
            epoch: text(dead_letter::EPOCH)?.parse().ok()?,
            attempts: text(dead_letter::ATTEMPTS).and_then(|attempts| attempts.parse().ok()),
            reason: text(dead_letter::REASON).map(str::to_owned),
        })
    }

    fn into_event(self) -> Event {
        let mut event = Event::new(Kind::DeadLetter);
        event.group = Some(self.group.into());
        event.topic = Some(self.topic.into());
        event.partition = Some(self.partition);
        event.offset = Some(self.offset);
        event.epoch = Some(self.epoch);
        event.attempt = self.attempts;
        event.error = self.reason;
        event
    }
}

impl<P> fmt::Debug for RecordedPublisher<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedPublisher").field("member", &self.shared.member).finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for RecordedPublish<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedPublish").field("call", &self.call).finish_non_exhaustive()
    }
}
