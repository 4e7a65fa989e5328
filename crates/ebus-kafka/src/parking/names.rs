//! Keys of records: no slash is legal in a group or topic, so none can be taken for another.

use bytes::Bytes;
use ebus_core::{Epoch, Group, LogMark, PartitionId};

/// A partition of a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place(String);

/// Where a group was opened.
pub(super) fn group(group: &Group) -> Bytes {
    format!("g/{group}").into()
}

/// What the keys of all values of a group begin with.
pub(super) fn values_of(group: &Group) -> String {
    format!("v/{group}/")
}

impl Place {
    pub(super) fn new(group: &Group, partition: &PartitionId) -> Self {
        Self(format!("{group}/{partition}"))
    }

    pub(super) fn value(&self, mark: LogMark, epoch: Epoch) -> Bytes {
        format!("{}{:032x}/{:020}", self.values(), mark.0, epoch.0).into()
    }

    /// What the keys of its values begin with.
    pub(super) fn values(&self) -> String {
        format!("v/{}/", self.0)
    }

    pub(super) fn request(&self, request: &[u8]) -> Bytes {
        [self.requests().as_bytes(), request].concat().into()
    }

    /// What the keys of its requests begin with.
    pub(super) fn requests(&self) -> String {
        format!("r/{}/", self.0)
    }
}

/// What the rest of a value's key says.
pub(super) fn mark_and_epoch(rest: &[u8]) -> Option<(LogMark, Epoch)> {
    let (mark, epoch) = std::str::from_utf8(rest).ok()?.split_once('/')?;
    Some((LogMark(u128::from_str_radix(mark, 16).ok()?), Epoch(epoch.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use ebus_core::Topic;

    use super::*;

    fn place(group: &str, topic: &str, partition: u32) -> Place {
        let partition = PartitionId::new(Topic::new(topic).expect("legal"), partition);
        Place::new(&Group::new(group).expect("legal"), &partition)
    }

    #[test]
    fn a_key_says_whose_it_is_and_nothing_of_another() {
        let one = place("billing", "orders", 1);
        let key = one.value(LogMark(0xfeed), Epoch(7));
        let rest = key.strip_prefix(one.values().as_bytes()).expect("begins so");
        assert_eq!(mark_and_epoch(rest), Some((LogMark(0xfeed), Epoch(7))));
        for other in
            [place("billing", "orders", 11), place("billing", "orders.1", 1), place("bill", "ing", 1)]
        {
            assert!(!other.value(LogMark(0), Epoch(0)).starts_with(one.values().as_bytes()), "{other:?}");
            assert!(!other.request(b"x").starts_with(one.requests().as_bytes()), "{other:?}");
        }
        assert_eq!(mark_and_epoch(b"nonsense"), None);
    }
}
