//! The key-value bucket of the groups: reads from its leader, writes by compare-and-set (G3).
//!
//! A read by a replica can be stale, so every read goes to the leader of the bucket's stream. A write whose reply is
//! lost is repeated as it is: if the first one was applied, the repetition conflicts, and reading tells.

use std::time::Duration;

use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Info, PurgeRequest, PurgeResponse, RetentionPolicy, StorageType,
};
use async_nats::{HeaderMap, Request, Subscriber};
use bytes::Bytes;
use ebus_core::{Error, ErrorKind, Timestamp};
use tokio::time::{Instant, timeout};

use crate::ack::Ack;
use crate::connection::Connection;
use crate::error;
use crate::raw::{self, Raw, Which};

/// What is stored under a key.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) revision: u64,
    /// `None` when it was deleted.
    pub(crate) value: Option<Bytes>,
}

/// What became of a write.
#[derive(Debug)]
pub(crate) enum Written {
    /// `sent` is when the attempt that was answered was sent.
    Accepted { revision: u64, sent: Instant },
    /// Somebody, perhaps an earlier attempt of this very write, has written meanwhile.
    Conflict,
    /// Not known, or refused for another reason.
    Failed(Error),
}

impl From<Raw> for Stored {
    fn from(message: Raw) -> Self {
        let headers = message.headers();
        let operation = headers.get("KV-Operation");
        let deleted = operation.is_some_and(|operation| matches!(operation.as_str(), "DEL" | "PURGE"));
        Self { revision: message.offset, value: (!deleted).then_some(message.payload) }
    }
}

/// The bucket.
#[derive(Clone)]
pub(crate) struct Store {
    connection: Connection,
    bucket: String,
}

/// No clocks differ by more.
const YOUNG: Duration = Duration::from_secs(300);

/// The error code of a compare-and-set that did not meet what it expected.
const WRONG_LAST_SEQUENCE: u64 = 10_071;

impl Store {
    /// Finds the bucket, or creates it.
    ///
    /// # Errors
    /// What the server says, `Unavailable` or `Timeout`.
    pub(crate) async fn open(connection: Connection) -> Result<Self, Error> {
        let store = Self::bind(connection);
        let name = format!("KV_{}", store.bucket);
        let found = store.connection.api::<Info>(format!("STREAM.INFO.{name}"), &(), "source").await?;
        match found {
            Ok(_) => Ok(store),
            Err(why) if error::is_no_stream(why.error_code()) => {
                store.create(&name).await?;
                Ok(store)
            }
            Err(why) => Err(error::api(&why, "source").with_context("bucket", &store.bucket)),
        }
    }

    /// Whether the bucket was made a moment ago, as far as clocks that differ by minutes can tell.
    ///
    /// # Errors
    /// `NotFound` when it is gone; `Unavailable` or `Timeout`.
    pub(crate) async fn is_young(&self) -> Result<bool, Error> {
        let request = format!("STREAM.INFO.KV_{}", self.bucket);
        let found = self.connection.api::<Info>(request, &(), "source").await?;
        let created = found.map_err(|why| self.refused(&why, "source"))?.created;
        let created = Timestamp::from_millis((created.unix_timestamp_nanos() / 1_000_000) as i64);
        Ok(Timestamp::now().as_millis() < created.as_millis() + YOUNG.as_millis() as i64)
    }

    /// Without looking whether the bucket exists.
    pub(crate) fn bind(connection: Connection) -> Self {
        let bucket = connection.config.bucket.clone();
        Self { connection, bucket }
    }

    async fn create(&self, name: &str) -> Result<(), Error> {
        let asked = self.connection.config.bucket_replicas;
        let replicas = asked.unwrap_or(if self.connection.is_clustered() { 3 } else { 1 });
        match self.create_with(name, replicas).await? {
            // A small cluster, and nobody asked for three.
            Err(why) if asked.is_none() && replicas > 1 && why.error_code().0 == 10_005 => {
                tracing::warn!(
                    bucket = self.bucket,
                    "the cluster has fewer than three nodes for JetStream: the groups' state is kept on one of them"
                );
                let second = self.create_with(name, 1).await?;
                second.or_else(|why| self.unless_somebody_did(why))
            }
            created => created.or_else(|why| self.unless_somebody_did(why)),
        }
    }

    fn unless_somebody_did(&self, why: async_nats::jetstream::Error) -> Result<(), Error> {
        if why.error_code().0 == 10_058 {
            return Ok(());
        }
        Err(error::api(&why, "source").with_context("bucket", &self.bucket))
    }

    async fn create_with(
        &self,
        name: &str,
        replicas: u16,
    ) -> Result<Result<(), async_nats::jetstream::Error>, Error> {
        // The shape of a key-value bucket, so that its tools can show it.
        let config = Config {
            name: name.to_owned(),
            description: Some("ebus: ownership and positions of consumer groups".into()),
            subjects: vec![format!("$KV.{}.>", self.bucket)],
            max_messages_per_subject: 1,
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            num_replicas: usize::from(replicas),
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            ..Config::default()
        };
        let created = self.connection.api::<Info>(format!("STREAM.CREATE.{name}"), &config, "source").await?;
        Ok(created.map(|_| ()))
    }

    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.bucket)
    }

    /// What the leader has under a key.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; `NotFound` when the bucket does not exist.
    pub(crate) async fn read(&self, key: &str) -> Result<Option<Stored>, Error> {
        const OPERATION: &str = "read the group's state";
        let found = self.get(&Which::last(self.subject(key)), OPERATION).await?;
        Ok(found.map(Stored::from))
    }

    /// What cannot be read of its headers says nothing: see [`crate::raw`].
    async fn get(&self, which: &Which, operation: &'static str) -> Result<Option<Raw>, Error> {
        let name = format!("KV_{}", self.bucket);
        raw::get(&self.connection, &name, which, operation)
            .await?
            .map_err(|why| self.refused(&why, operation))
    }

    /// The first of the keys that match `filter` by revision, from this one on: what the leader has.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub(crate) async fn next(&self, filter: &str, from: u64) -> Result<Option<(String, Stored)>, Error> {
        const OPERATION: &str = "list the group's members";
        let found = self.get(&Which::next(self.subject(filter), from), OPERATION).await?;
        Ok(found.map(|found| {
            let key = found.subject.strip_prefix(&self.subject("")).unwrap_or(&found.subject).to_owned();
            (key, Stored::from(found))
        }))
    }

    /// Removes the marker of a key that was deleted at `revision`; what was written later stays.
    ///
    /// # Errors
    /// What the server says, such as `Denied`.
    pub(crate) async fn sweep(&self, key: &str, revision: u64) -> Result<(), Error> {
        const OPERATION: &str = "remove a deleted key";
        let request =
            PurgeRequest { sequence: Some(revision + 1), filter: Some(self.subject(key)), keep: None };
        let api = format!("STREAM.PURGE.KV_{}", self.bucket);
        let purged = self.connection.api::<PurgeResponse>(api, &request, OPERATION).await?;
        purged.map(drop).map_err(|why| error::api(&why, OPERATION))
    }

    /// Everything that is published to the keys that match `filter`, stored or not: only a reason to look.
    ///
    /// # Errors
    /// `Unavailable` when the client is closed.
    pub(crate) async fn hints(&self, filter: &str) -> Result<Subscriber, Error> {
        let subscribed = self.connection.client.subscribe(self.subject(filter)).await;
        subscribed.map_err(|why| error::unavailable("source", "no subscription").with_source(why))
    }

    fn refused(&self, why: &async_nats::jetstream::Error, operation: &'static str) -> Error {
        if error::is_no_stream(why.error_code()) {
            return Error::new(
                ErrorKind::NotFound,
                "the bucket with the state of the groups is gone; restore it from a backup, or close all members of its \
                 groups before they begin anew",
            )
            .with_operation(operation)
            .with_context("bucket", &self.bucket);
        }
        error::api(why, operation).with_context("bucket", &self.bucket)
    }

    /// Writes if the key still has this revision (0: if it has none). An attempt takes `attempt` at most, all together
    /// `within`. Nothing is sent while the connection is down.
    pub(crate) async fn write(
        &self,
        key: &str,
        value: Bytes,
        revision: u64,
        attempt: Duration,
        within: Duration,
    ) -> Written {
        self.send(key, value, HeaderMap::new(), revision, attempt, within).await
    }

    /// Deletes if the key still has this revision. As in any bucket, a marker stays: see [`sweep`](Self::sweep).
    pub(crate) async fn delete(
        &self,
        key: &str,
        revision: u64,
        attempt: Duration,
        within: Duration,
    ) -> Written {
        let mut headers = HeaderMap::new();
        headers.insert("KV-Operation", "DEL");
        self.send(key, Bytes::new(), headers, revision, attempt, within).await
    }

    async fn send(
        &self,
        key: &str,
        value: Bytes,
        mut headers: HeaderMap,
        revision: u64,
        attempt: Duration,
        within: Duration,
    ) -> Written {
        const OPERATION: &str = "write the group's state";
        headers.insert("Nats-Expected-Last-Subject-Sequence", revision.to_string());
        let deadline = Instant::now() + within;
        let mut failed = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Written::Failed(failed.unwrap_or_else(|| error::timeout(OPERATION)));
            }
            if let Err(error) = self.connection.up(left, OPERATION).await {
                return Written::Failed(failed.unwrap_or(error));
            }
            let sent = Instant::now();
            let attempt = attempt.min(left);
            let request =
                Request::new().headers(headers.clone()).payload(value.clone()).timeout(Some(attempt));
            // The outer time-out also covers a client whose queue is full.
            let subject = self.subject(key);
            let asking = timeout(attempt, self.connection.client.send_request(subject.clone(), request));
            let answer = match self.connection.allowed(|denied| denied == subject, OPERATION, asking).await {
                Ok(answer) => answer,
                Err(denied) => return Written::Failed(denied),
            };
            let error = match answer {
                Ok(Ok(message)) => match Ack::read(&message) {
                    Ack::Stored { sequence, .. } => return Written::Accepted { revision: sequence, sent },
                    Ack::Refused { code: WRONG_LAST_SEQUENCE, .. } => return Written::Conflict,
                    Ack::Refused { code, status, description } => {
                        error::refused(code, status, &description, OPERATION)
                    }
                    Ack::NobodyListens => error::unavailable(OPERATION, "the bucket has no leader now"),
                    Ack::Unreadable(why) => Error::new(ErrorKind::Unexpected, why).with_operation(OPERATION),
                },
                Ok(Err(why)) => error::unavailable(OPERATION, "no answer").with_source(why),
                Err(_) => error::timeout(OPERATION),
            };
            if !matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable) {
                return Written::Failed(error);
            }
            failed = Some(error);
            // A refusal may come at once: leave the server time to elect a leader.
            let pause = attempt.saturating_sub(sent.elapsed()).min(RETRY_PAUSE);
            tokio::time::sleep(pause.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
    }
}

/// Between a write that failed at once and its repetition.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
