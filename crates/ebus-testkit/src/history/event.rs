//! One thing that happened.

use std::sync::Arc;

use ebus_core::Key;
use serde::{Deserialize, Serialize};

/// A name that many events share.
pub(crate) type Name = Arc<str>;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// A message was given to a publisher; `member` is the publisher, `call` numbers its calls.
    Call,
    /// The broker acknowledged it, at this partition and offset.
    Stored,
    /// The publisher said that it failed. After a time-out it may be stored all the same.
    Failed,
    /// A run of a handler began.
    Start,
    /// That run ended: its future is done or dropped.
    End,
    /// The source was told what became of a message.
    Settle,
    /// The dead letter of the message at this place has its receipt.
    DeadLetter,
    /// A member owns a partition from now on.
    Assigned,
    /// It is asked to give the partition up.
    Revoking,
    /// It has given it up; `outcome` says whether the last commit was accepted.
    Released,
    /// It lost it without notice, or crashed.
    Lost,
    /// What the broker said is committed: all below `offset` is finished, and the runs in `finished`. Not before this
    /// event, but no later either.
    Committed,
    /// An owner wrote which keys of its partition are parked, and how far they are redriven; `outcome` says whether that was
    /// accepted.
    Kept,
    /// `member` was killed, and is dead now: what it ran has ended, and what it owned is lost.
    Killed,
    /// `member` is stopped, as by SIGSTOP: it does and learns nothing until `continued`.
    Stopped,
    /// `member` goes on.
    Continued,
    /// `member` cannot reach the broker until `healed`, or not all of it.
    Cut,
    /// `member` can reach the broker again.
    Healed,
    /// The broker, or a node of it, cannot be used by anybody until `up`.
    Down,
    /// The broker can be used again.
    Up,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// A run: handled.
    Ack,
    /// A run: failed, to be tried again.
    Retry,
    /// A run: failed for good.
    Reject,
    /// A run: the handler panicked.
    Panic,
    /// A run: its future was dropped.
    Cancelled,
    /// A settlement: finished.
    Finished,
    /// A settlement: given up unfinished.
    Dropped,
    /// A release: its last commit was accepted. Of parked keys: they are kept.
    Accepted,
    /// A release: its last commit was not accepted. Of parked keys: it failed, or nobody waited for the answer.
    Refused,
}

/// One thing that happened. Fields that do not apply are left out of its line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// What happened.
    pub kind: Kind,
    /// The group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Arc<str>>,
    /// The topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<Arc<str>>,
    /// The partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// The place in the partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The key as text; bytes that are not UTF-8, and backslashes, are escaped, so that no two keys look the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Arc<str>>,
    /// The version of the key's aggregate, if the message says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Which run of this message under this ownership, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Of a run: it is of a dead letter that was redriven, not of a message that the source delivered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub redriven: bool,
    /// Who: the member of the group, or the publisher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<Arc<str>>,
    /// The ownership.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Which call of this publisher, in the order of `call`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<u64>,
    /// Of `committed`: finished runs above the watermark, half-open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Vec<(u64, u64)>>,
    /// What went wrong, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When, in nanoseconds on the history's monotonic clock.
    pub at_ns: u64,
}

impl Event {
    /// An event with nothing but its kind.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            group: None,
            topic: None,
            partition: None,
            offset: None,
            key: None,
            version: None,
            attempt: None,
            redriven: false,
            member: None,
            epoch: None,
            outcome: None,
            call: None,
            finished: None,
            error: None,
            at_ns: 0,
        }
    }

    /// Whether a run ended in success.
    pub(crate) fn is_success(&self) -> bool {
        self.kind == Kind::End && self.outcome == Some(Outcome::Ack)
    }
}

/// A name that is shared from here on.
pub(crate) fn name(text: &str) -> Name {
    Arc::from(text)
}

/// A key as text that no other key has.
pub(crate) fn key_text(key: &Key) -> Name {
    match key.as_str() {
        Some(text) if !text.contains('\\') => Arc::from(text),
        _ => Arc::from(key.as_bytes().escape_ascii().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_keys_look_different() {
        let keys = [&b"a"[..], b"\\xff", b"\xff", b"\\\\xff", "ü".as_bytes(), b"\\xc3\\xbc", b""];
        let mut texts: Vec<Name> = keys.iter().map(|key| key_text(&Key::new(key.to_vec()))).collect();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), keys.len());
    }
}
