//! Names of streams, subjects, records and consumers: injective, so that no topic's or group's name can mean another's
//! (a04).
//!
//! Topics and groups may have dots; names of streams and consumers may not, and in keys a dot separates. `=` is legal in
//! all of these and in no topic or group, so it stands for the dot.

use ebus_core::{Epoch, Group, PartitionId, Topic};

/// What stands for the dot.
const DOT: &str = "=";

/// Streams of buckets begin like this; a topic must not take such a name.
const RESERVED: [&str; 2] = ["KV_", "OBJ_"];

fn escaped(name: &str) -> String {
    name.replace('.', DOT)
}

/// The stream of a topic.
pub(crate) fn stream(topic: &Topic) -> String {
    escaped(topic.as_str())
}

/// Whether the stream of this topic would look like one of a bucket.
pub(crate) fn is_reserved(topic: &Topic) -> bool {
    RESERVED.iter().any(|prefix| topic.as_str().starts_with(prefix))
}

/// The subject of one partition.
pub(crate) fn subject(topic: &Topic, partition: u32) -> String {
    format!("{topic}.{partition}")
}

/// The subject of what nobody reads.
pub(crate) fn void(topic: &Topic) -> String {
    format!("{topic}.void")
}

/// The subject of a fence, which nobody reads: there it is said that a batch must not begin any more. No topic's own subjects
/// are like it, because none has a `=`.
pub(crate) fn fence(topic: &Topic, batch: impl std::fmt::Display) -> String {
    format!("{topic}.void=.{batch}")
}

/// The key of a group's record of one partition.
pub(crate) fn record_key(group: &Group, topic: &Topic, partition: u32) -> String {
    format!("p.{}.{}.{partition}", escaped(group.as_str()), escaped(topic.as_str()))
}

/// The key of a group's manifest.
pub(crate) fn manifest_key(group: &Group) -> String {
    format!("g.{}", escaped(group.as_str()))
}

/// The key that says that somebody has opened the group's parked keys.
pub(crate) fn parking_key(group: &Group) -> String {
    format!("k.{}", escaped(group.as_str()))
}

/// The key of the parked keys of one partition.
pub(crate) fn parked_key(group: &Group, partition: &PartitionId) -> String {
    let topic = escaped(partition.topic.as_str());
    format!("k.{}.{topic}.{}", escaped(group.as_str()), partition.partition)
}

/// The keys of the parked keys of all partitions.
pub(crate) fn parked_keys(group: &Group) -> String {
    format!("k.{}.>", escaped(group.as_str()))
}

/// The key of a request to the owner of one partition; `None` is all of them. A request can be any bytes: its key has their hash.
pub(crate) fn request_key(group: &Group, partition: &PartitionId, request: Option<&[u8]>) -> String {
    let topic = escaped(partition.topic.as_str());
    let which = request.map_or_else(|| "*".to_owned(), |request| format!("{:032x}", fnv1a(request)));
    format!("r.{}.{topic}.{}.{which}", escaped(group.as_str()), partition.partition)
}

/// FNV-1a of 128 bits (RFC 9923): the same in every process and version.
fn fnv1a(bytes: &[u8]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = (1 << 88) + 0x13b;
    bytes.iter().fold(BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

/// The heartbeat key of a member; `*` for those of all members.
pub(crate) fn heartbeat_key(group: &Group, member: &str) -> String {
    format!("h.{}.{member}", escaped(group.as_str()))
}

/// The consumer of one ownership; `instance` counts how often it was made anew within it.
///
/// Three numbers always stand at the end, so the name can be read from there: injective although `_` is legal in groups.
pub(crate) fn consumer(group: &Group, partition: u32, epoch: Epoch, instance: u32) -> String {
    format!("{}_{partition}_{epoch}_{instance}", escaped(group.as_str()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn topic(name: &str) -> Topic {
        Topic::new(name).expect("legal")
    }

    fn group(name: &str) -> Group {
        Group::new(name).expect("legal")
    }

    #[test]
    fn a_dot_never_moves_between_group_and_topic() {
        let one = record_key(&group("a.b"), &topic("c"), 0);
        let two = record_key(&group("a"), &topic("b.c"), 0);
        assert_ne!(one, two);
        assert_eq!(one, "p.a=b.c.0");
        assert_ne!(consumer(&group("a"), 1, Epoch(2), 3), consumer(&group("a_1"), 2, Epoch(3), 0));
    }

    /// The vectors of RFC 9923 for the empty string, "a" and "foobar".
    #[test]
    fn requests_hash_as_everywhere() {
        for (text, hash) in [
            ("", 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d),
            ("a", 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964),
            ("foobar", 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18),
        ] {
            assert_eq!(fnv1a(text.as_bytes()), hash, "{text}");
        }
    }

    #[test]
    fn names_are_what_the_server_takes() {
        let longest = "x".repeat(200);
        assert_eq!(stream(&topic("orders.dlq")), "orders=dlq");
        assert!(consumer(&group(&longest), u32::MAX, Epoch(u64::MAX), u32::MAX).len() <= 255);
        assert!(is_reserved(&topic("KV_ebus")) && !is_reserved(&topic("kv_ebus")));
    }

    proptest! {
        #[test]
        fn different_topics_have_different_streams_and_subjects(
            names in prop::collection::hash_set("[ab_-]([.]?[ab0_-]){0,5}", 2..20),
        ) {
            let topics: Vec<_> = names.iter().map(|name| topic(name)).collect();
            let streams: HashSet<_> = topics.iter().map(stream).collect();
            prop_assert_eq!(streams.len(), topics.len());
            let subjects: HashSet<_> =
                topics.iter().flat_map(|topic| (0..12).map(|p| subject(topic, p))).collect();
            prop_assert_eq!(subjects.len(), topics.len() * 12);
        }
    }
}
