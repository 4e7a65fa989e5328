//! The heartbeat keys of a group: written, listed, and cleaned up (G3, G5).

use std::time::Duration;

use bytes::Bytes;
use ebus_core::{Error, ErrorKind};
use tokio::time::Instant;

use crate::beat::Beat;
use crate::group::Member;
use crate::names;
use crate::roster::{Change, Leftover, Listing, Said};
use crate::store::{Stored, Written};

/// More heartbeat keys than this are no group.
const MOST_MEMBERS: usize = 10_000;

/// What became of a heartbeat.
#[derive(Debug)]
pub(crate) enum Beaten {
    Accepted {
        revision: u64,
    },
    /// Something else stands there: somebody took this member for dead, or damaged the key.
    Other {
        revision: u64,
    },
    /// Nothing stands there: it was cleaned up, or the bucket was made anew.
    Missing,
}

impl Member {
    /// The name of this member's heartbeat key.
    pub(crate) fn name(&self) -> &str {
        self.owner.rsplit('-').next().unwrap_or_default()
    }

    fn heartbeat_key(&self, member: &str) -> String {
        names::heartbeat_key(&self.group, member)
    }

    /// Which keys are heartbeats of this group.
    pub(crate) fn heartbeats(&self) -> String {
        self.heartbeat_key("*")
    }

    /// Writes this member's heartbeat.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`, or what else the server says.
    pub(crate) async fn beat(&self, value: Vec<u8>, revision: u64) -> Result<Beaten, Error> {
        let key = self.heartbeat_key(self.name());
        let value = Bytes::from(value);
        match self.store.write(&key, value.clone(), revision, self.attempt(), self.lease / 3).await {
            Written::Accepted { revision, .. } => Ok(Beaten::Accepted { revision }),
            Written::Failed(error) => Err(error.with_context("group", &self.group)),
            Written::Conflict => Ok(match self.store.read(&key).await? {
                // The reply to this very write was lost.
                Some(stored) if stored.value == Some(value) => Beaten::Accepted { revision: stored.revision },
                Some(stored) => Beaten::Other { revision: stored.revision },
                None => Beaten::Missing,
            }),
        }
    }

    /// Deletes this member's heartbeat key: it has left. Best effort; others see it dead after a lease.
    pub(crate) async fn leave(&self, mut revision: u64) {
        let key = self.heartbeat_key(self.name());
        let deadline = Instant::now() + self.lease / 3;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.store.delete(&key, revision, self.attempt(), left).await {
                Written::Accepted { .. } => return,
                Written::Conflict => match self.store.read(&key).await {
                    Ok(Some(Stored { revision: now, value: Some(_) })) => revision = now,
                    _ => return,
                },
                Written::Failed(error) => {
                    tracing::debug!(group = %self.group, %error, "leaving without notice");
                    return;
                }
            }
        }
    }

    /// The heartbeats that changed from a revision on.
    ///
    /// # Errors
    /// `NotFound` when the bucket is gone; `Unavailable` or `Timeout`.
    pub(crate) async fn list(&self, from: u64) -> Result<Listing, Error> {
        let asked = Instant::now();
        let filter = self.heartbeats();
        let mut changes = Vec::new();
        let mut next = from;
        let listing = async {
            while let Some((key, stored)) = self.store.next(&filter, next).await? {
                next = stored.revision + 1;
                changes.push(change(&key, &stored));
                if changes.len() > MOST_MEMBERS {
                    return Err(Error::new(
                        ErrorKind::Unexpected,
                        format!(
                            "the group has more than {MOST_MEMBERS} heartbeats; delete those that are old"
                        ),
                    ));
                }
            }
            Ok(())
        };
        let within = self.connection.request_timeout.min(self.lease);
        let listed = tokio::time::timeout(within, listing).await;
        listed
            .unwrap_or_else(|_| Err(crate::error::timeout("list the group's members")))
            .map_err(|error| error.with_context("group", &self.group))?;
        Ok(Listing { from, changes, asked, answered: Instant::now() })
    }

    /// Deletes the key of a member that is dead, or the marker of one that was deleted. Whether it is done with.
    pub(crate) async fn clean_up(&self, leftover: &Leftover) -> bool {
        let key = self.heartbeat_key(&leftover.member);
        if !leftover.marker {
            let deleted = self.store.delete(&key, leftover.revision, self.attempt(), self.lease / 3).await;
            // A conflict: it lives, or somebody was faster.
            return !matches!(deleted, Written::Failed(_));
        }
        match self.store.sweep(&key, leftover.revision).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(group = %self.group, %error, "the marker of a member that left stays");
                // Without the permission it is left to others for good.
                !matches!(error.kind(), ErrorKind::Unavailable)
            }
        }
    }
}

fn change(key: &str, stored: &Stored) -> Change {
    let (said, lease) = said(stored.value.as_deref());
    Change { member: name_of(key).to_owned(), revision: stored.revision, said, lease }
}

/// The member of a heartbeat key or its subject.
pub(crate) fn name_of(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or_default()
}

/// What bytes under a heartbeat key say; none when it was deleted.
pub(crate) fn said(value: Option<&[u8]>) -> (Said, Duration) {
    match value.map(Beat::decode) {
        None => (Said::Left, Duration::ZERO),
        Some(None) => (Said::Unknown, Duration::ZERO),
        Some(Some(beat)) => (Said::Here(beat.standing()), Duration::from_millis(beat.lease_ms)),
    }
}
