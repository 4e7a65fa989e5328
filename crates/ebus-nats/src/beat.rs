//! What a member says of itself under its heartbeat key: that it lives, what it reads, and what it owns.
//!
//! It is for computing shares and for operators; it decides no ownership. That a partition is owned only its record says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::share::{Claim, Claims};

/// The form that this version writes and reads.
const VERSION: u32 = 1;

/// A heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Beat {
    v: u32,
    /// As in the records.
    pub(crate) owner: String,
    /// How long the member may be silent.
    pub(crate) lease_ms: u64,
    /// Grows with every heartbeat.
    pub(crate) beat: u64,
    /// What it reads, by topic.
    topics: BTreeMap<String, TopicBeat>,
}

/// Runs of partitions, both ends included.
type Runs = Vec<(u32, u32)>;

/// What a member says of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TopicBeat {
    partitions: u32,
    held: Runs,
    /// Owned, and about to be given up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    leaving: Runs,
}

/// What a member has and wants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Standing {
    pub(crate) claims: Claims,
    /// What it owns and is about to give up, ascending, by topic.
    pub(crate) leaving: BTreeMap<String, Vec<u32>>,
}

impl Standing {
    /// Whether the member owns this partition, for good or until it has given it up.
    pub(crate) fn owns(&self, topic: &str, partition: u32) -> bool {
        self.claims.get(topic).is_some_and(|claim| claim.held.binary_search(&partition).is_ok())
            || self.leaving.get(topic).is_some_and(|leaving| leaving.binary_search(&partition).is_ok())
    }
}

impl Beat {
    pub(crate) fn new(owner: &str, lease_ms: u64, beat: u64, standing: &Standing) -> Self {
        let mut topics: BTreeMap<String, TopicBeat> = BTreeMap::new();
        for (topic, claim) in &standing.claims {
            let held = runs(&claim.held);
            let entry = TopicBeat { partitions: claim.partitions, held, leaving: Vec::new() };
            topics.insert(topic.clone(), entry);
        }
        for (topic, leaving) in &standing.leaving {
            // Without partitions it is no reader of the topic, only somebody who still has to leave it.
            let entry = TopicBeat { partitions: 0, held: Vec::new(), leaving: Vec::new() };
            topics.entry(topic.clone()).or_insert(entry).leaving = runs(leaving);
        }
        Self { v: VERSION, owner: owner.to_owned(), lease_ms, beat, topics }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default() // maps with keys of text always are JSON
    }

    /// `None` for what is damaged or of a newer form: somebody lives there, and nothing else is known of him.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(bytes).ok().filter(|beat| beat.v <= VERSION)
    }

    pub(crate) fn standing(&self) -> Standing {
        let readers = self.topics.iter().filter(|(_, topic)| topic.partitions > 0);
        let claims = readers.map(|(name, topic)| {
            let held = numbers(&topic.held, topic.partitions);
            (name.clone(), Claim { partitions: topic.partitions, held })
        });
        let leaving = self.topics.iter().filter(|(_, topic)| !topic.leaving.is_empty());
        let leaving = leaving.map(|(name, topic)| (name.clone(), numbers(&topic.leaving, MAX_PARTITION)));
        Standing { claims: claims.collect(), leaving: leaving.collect() }
    }
}

/// No stream of ours has as many: a bound for what somebody else may have written.
const MAX_PARTITION: u32 = 65_536;

fn runs(ascending: &[u32]) -> Runs {
    let mut runs: Runs = Vec::new();
    for number in ascending {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == *number => *end = *number,
            _ => runs.push((*number, *number)),
        }
    }
    runs
}

fn numbers(runs: &Runs, below: u32) -> Vec<u32> {
    let below = below.min(MAX_PARTITION);
    let mut numbers: Vec<u32> = Vec::new();
    for (first, last) in runs {
        // Ascending, so that what somebody wrote a thousand times is a thousand numbers at most.
        let first = numbers.last().map_or(*first, |before| (before + 1).max(*first));
        numbers.extend(first..=(*last).min(below.saturating_sub(1)));
    }
    numbers
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_heartbeat_comes_back() {
        let standing = Standing {
            claims: BTreeMap::from([("a".into(), Claim { partitions: 9, held: vec![0, 1, 2, 5, 8] })]),
            leaving: BTreeMap::from([("a".into(), vec![3]), ("b".into(), vec![0, 1])]),
        };
        let beat = Beat::new("me", 3_000, 7, &standing);
        let back = Beat::decode(&beat.encode()).expect("own");
        assert_eq!((&back, back.standing()), (&beat, standing.clone()));
        assert!(standing.owns("a", 3) && standing.owns("b", 1) && !standing.owns("a", 4));
    }

    #[test]
    fn what_a_newer_version_wrote_is_somebody_unknown() {
        let text = String::from_utf8(Beat::new("me", 1, 1, &Standing::default()).encode()).expect("json");
        assert_eq!(Beat::decode(text.replace("\"v\":1", "\"v\":2").as_bytes()), None);
    }

    #[test]
    fn absurd_runs_are_bounded() {
        let text = format!(
            r#"{{"v":1,"owner":"x","lease_ms":1,"beat":1,"topics":{{"a":{{"partitions":4294967295,"held":[{}[0,4294967295]],"leaving":[[9,4294967295]]}}}}}}"#,
            "[0,4294967295],".repeat(50)
        );
        let standing = Beat::decode(text.as_bytes()).expect("legal").standing();
        assert_eq!(standing.claims["a"].held.len(), MAX_PARTITION as usize);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_heartbeat_or_none(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(Beat::decode(&bytes), None);
        }
    }
}
