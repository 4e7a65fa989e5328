//! Batches of messages that the server acknowledges together (G1, G7): fast ingest, nats-server 2.14 and later.
//!
//! A message is a member of a batch by its reply subject, `<inbox>.<batch>.<flow>.fail.<number>.<operation>.$FI`. The server
//! stores each when it comes, and answers the end of the batch with the offset of the last one and how many it stored: with
//! `fail`, these are the first so many, and nothing behind a gap or a refused message. It does **not** say the offset of
//! each. So a batch follows an *anchor*, a plain message with an acknowledgement of its own: where the offset of the last
//! is as many above the anchor's as messages were stored, no other fits between, and each offset is known. Where somebody
//! else's messages came in between, the offsets are read (see `place`), and batches stop until this connection has seen for a
//! while that it is alone ([`Alone`]).

use serde::Deserialize;

use crate::digits;

/// How often the server says that it is alive within a batch: every so many messages. Its own limit.
const FLOW: u32 = 500;
/// What ends every reply subject of a member.
const SUFFIX: &str = ".$FI";

const START: char = '0';
const APPEND: char = '1';
/// Ends a batch by a message that is not stored.
const END: char = '3';

/// Messages on their way as one batch.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) id: u64,
    /// The route they take.
    pub(crate) route: usize,
    /// The number of the message in front of it.
    pub(crate) anchor: u64,
    /// Where that was stored.
    pub(crate) anchored: Option<u64>,
    /// An offset in front of the batch, whatever becomes of its anchor.
    pub(crate) floor: u64,
    /// Its members have no ids: it can be fenced.
    pub(crate) is_fenced: bool,
    /// The numbers of its messages, in order.
    pub(crate) members: Vec<u64>,
    /// Positions from 1 of what the server refused.
    refused: Vec<u64>,
    /// What reply subjects of this batch begin with.
    head: String,
}

/// Where the messages of a batch are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Numbers of what is stored, with its offset if that is certain.
    pub(crate) stored: Vec<(u64, Option<u64>)>,
    /// Numbers of what the server does not account for.
    pub(crate) missing: Vec<u64>,
    /// Why: because it refused one in front of them, and took no more. Otherwise one was lost on the way, and in a cluster
    /// that changes its leader what is behind it may be stored yet.
    pub(crate) was_refused: bool,
}

impl Batch {
    /// `prefix` is unique among all publishers of the stream.
    pub(crate) fn new(inbox: &str, prefix: &str, id: u64, route: usize, anchor: u64, floor: u64) -> Self {
        let head = format!("{inbox}.{prefix}{id}.{FLOW}.fail.");
        Self {
            id,
            route,
            anchor,
            anchored: None,
            floor,
            is_fenced: false,
            members: Vec::new(),
            refused: Vec::new(),
            head,
        }
    }

    /// Takes the message of this number in, and says its reply subject.
    pub(crate) fn add(&mut self, number: u64) -> String {
        self.members.push(number);
        let position = self.members.len();
        self.reply(position, if position == 1 { START } else { APPEND })
    }

    /// The reply subject of the message that ends the batch and is not stored.
    pub(crate) fn end(&self) -> String {
        self.reply(self.members.len() + 1, END)
    }

    fn reply(&self, position: usize, operation: char) -> String {
        let position = position as u64;
        // Exactly: what has room left is allocated again on its way to the client.
        let len = self.head.len() + digits::count(position) + ".0".len() + SUFFIX.len();
        let mut reply = String::with_capacity(len);
        reply.push_str(&self.head);
        digits::push(&mut reply, position);
        reply.push('.');
        reply.push(operation);
        reply.push_str(SUFFIX);
        reply
    }

    /// The number of the member at this position from 1.
    pub(crate) fn member(&self, position: u64) -> Option<u64> {
        self.members.get(usize::try_from(position.checked_sub(1)?).ok()?).copied()
    }

    /// The server did not store this one; what is behind it may be stored.
    pub(crate) fn refuse(&mut self, position: u64) {
        if let Err(at) = self.refused.binary_search(&position) {
            self.refused.insert(at, position);
        }
    }

    /// What the end of the batch says: the first `count` were dealt with, and the last of them stands at `last`.
    pub(crate) fn outcome(&self, last: u64, count: u64) -> Outcome {
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(self.members.len());
        let (dealt, missing) = self.members.split_at(count);
        let is_refused = |position: usize| self.refused.binary_search(&(position as u64)).is_ok();
        let stored =
            (1..).zip(dealt).filter(|(position, _)| !is_refused(*position)).map(|(_, number)| *number);
        let stored: Vec<u64> = stored.collect();
        // As many places as messages: nobody else's fits between.
        let anchor = self.anchored.filter(|anchor| last.checked_sub(*anchor) == Some(stored.len() as u64));
        let offsets = (1..).map(|above| anchor.map(|anchor| anchor + above));
        let missing =
            (count as u64 + 1..).zip(missing).filter(|(position, _)| !is_refused(*position as usize));
        Outcome {
            stored: stored.iter().copied().zip(offsets).collect(),
            missing: missing.map(|(_, number)| *number).collect(),
            was_refused: !self.refused.is_empty(),
        }
    }
}

/// The reply subject, behind `head`, of a message that ends this batch wherever it is, and is not stored.
pub(crate) fn end_reply(head: &str, prefix: &str, id: u64) -> String {
    // Behind the last message of any batch: the server ends it where it is, because of the gap.
    const BEYOND: u64 = 1_000_000;
    format!("{head}.{prefix}{id}.{FLOW}.fail.{BEYOND}.{END}{SUFFIX}")
}

/// What a reply subject says: the batch and the position in it. `None` for one of a single message.
pub(crate) fn read_reply(tail: &str, prefix: &str) -> Option<(u64, u64)> {
    let mut tokens = tail.strip_suffix(SUFFIX)?.split('.');
    let id = tokens.next()?.strip_prefix(prefix)?.parse().ok()?;
    let position = tokens.nth(2)?.parse().ok()?;
    Some((id, position))
}

/// What the server says of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// It goes on.
    Alive,
    /// It ends here; the end itself is still to come.
    Broken,
    /// This one was refused, and with it what is behind it.
    Refused { position: u64, code: u64, status: u64, description: String },
    /// The end: so many were dealt with, the last of them stands at `last`.
    Ended { stream: String, last: u64, count: u64 },
    /// An answer to a message by itself.
    Single,
}

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    stream: String,
    #[serde(default)]
    batch: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    count: u64,
    error: Option<WireError>,
}

#[derive(Deserialize)]
struct WireError {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl Said {
    /// What is not of a batch is [`Single`](Self::Single), also what cannot be read.
    pub(crate) fn read(payload: &[u8]) -> Self {
        let Ok(wire) = serde_json::from_slice::<Wire>(payload) else { return Self::Single };
        match (wire.r#type.as_str(), wire.error) {
            ("ack", _) => Self::Alive,
            ("gap", _) => Self::Broken,
            ("err", Some(error)) => Self::Refused {
                position: wire.seq,
                code: error.err_code,
                status: error.code,
                description: error.description,
            },
            ("", None) if !wire.batch.is_empty() => {
                Self::Ended { stream: wire.stream, last: wire.seq, count: wire.count }
            }
            _ => Self::Single,
        }
    }
}

/// Whether this connection seems to be the only publisher of a stream: its offsets follow each other.
#[derive(Debug)]
pub(crate) struct Alone {
    last: u64,
    run: u64,
    needed: u64,
}

impl Default for Alone {
    fn default() -> Self {
        Self { last: 0, run: 0, needed: Self::FIRST }
    }
}

impl Alone {
    /// So many offsets in a row before the first batch.
    const FIRST: u64 = 256;
    /// So many at most after batches that were not alone.
    const MOST: u64 = 1 << 20;

    /// Something of ours was stored there.
    pub(crate) fn stored(&mut self, offset: u64) {
        self.run = if offset == self.last + 1 { self.run + 1 } else { 0 };
        self.last = offset;
    }

    /// A batch of ours, of which nobody else was in between.
    pub(crate) fn stored_batch(&mut self, last: u64, count: u64) {
        self.last = last;
        self.run += count;
        if self.run >= Self::MOST {
            self.needed = Self::FIRST;
        }
    }

    /// Somebody else was in between, or something was refused.
    pub(crate) fn disturbed(&mut self, last: u64) {
        self.last = last;
        self.run = 0;
        self.needed = (self.needed * 4).min(Self::MOST);
    }

    pub(crate) fn is_likely(&self) -> bool {
        self.run >= self.needed
    }

    /// The last offset that is known to be taken.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
