//! The members of a group as one of them sees them (G3): who lives, what they say, and what to clean up behind the dead.
//!
//! It reads the heartbeat keys by revision, so a look brings what changed since the last one. A member lives as long as its
//! key changes, on the clock of whoever looks; one that missed two heartbeats is a **suspect**: its records are watched
//! from then on, so that the clocks of records and heartbeat run side by side.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::beat::Standing;
use crate::watch::Watch;

/// No pause is suspect that a busy machine makes.
const SHORTEST_SUSPICION: Duration = Duration::from_secs(1);

/// What stands under a heartbeat key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// A member.
    Here(Standing),
    /// Somebody of whom nothing is known: it is damaged, or of a newer version.
    Unknown,
    /// The member has left.
    Left,
}

/// A heartbeat key that changed.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) member: String,
    pub(crate) revision: u64,
    pub(crate) said: Said,
    /// How long that member may be silent.
    pub(crate) lease: Duration,
}

/// What changed from a revision on.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    pub(crate) from: u64,
    pub(crate) changes: Vec<Change>,
    pub(crate) asked: Instant,
    pub(crate) answered: Instant,
}

/// A key that somebody should clean up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leftover {
    pub(crate) member: String,
    pub(crate) revision: u64,
    /// It is only the marker of a key that was deleted.
    pub(crate) marker: bool,
}

#[derive(Debug)]
struct Peer {
    revision: u64,
    said: Said,
    lease: Duration,
    watch: Watch,
}

/// All members but this one.
#[derive(Debug)]
pub(crate) struct Roster {
    me: String,
    lease: Duration,
    peers: BTreeMap<String, Peer>,
    /// The revision to list from.
    from: u64,
    /// This member's own key, as it was listed.
    own: u64,
    /// When the last listing was asked for; `None` until there is one that counts.
    asked: Option<Instant>,
}

/// Another member.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Other<'a> {
    pub(crate) name: &'a str,
    pub(crate) standing: &'a Standing,
    /// It missed heartbeats.
    pub(crate) suspect: bool,
}

impl Roster {
    pub(crate) fn new(me: String, lease: Duration) -> Self {
        Self { me, lease, peers: BTreeMap::new(), from: 1, own: 0, asked: None }
    }

    /// Where the next listing begins.
    pub(crate) fn from(&self) -> u64 {
        self.from
    }

    /// Whether it is known who the members are.
    pub(crate) fn is_known(&self) -> bool {
        self.asked.is_some()
    }

    /// Takes a listing in that was asked for when this member's own key had the revision `own`. False if it cannot be
    /// believed because it does not show that: then everything is read again.
    pub(crate) fn listed(&mut self, listing: Listing, own: u64) -> bool {
        if listing.from != self.from {
            return false; // of before a reset
        }
        for peer in self.peers.values_mut() {
            peer.watch.saw(peer.revision, listing.answered, self.lease.max(peer.lease));
        }
        for change in listing.changes {
            self.from = self.from.max(change.revision + 1);
            if change.member == self.me {
                self.own = change.revision;
                continue;
            }
            let Change { member, revision, said, lease } = change;
            let watch = Watch::new(revision, listing.answered);
            self.peers.insert(member, Peer { revision, said, lease, watch });
        }
        if self.own < own {
            self.reset();
            return false;
        }
        self.asked = Some(listing.asked);
        true
    }

    /// Reads everything again: the bucket is not the one that it was.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(std::mem::take(&mut self.me), self.lease);
    }

    /// Whether a member says something else than what is known of it.
    pub(crate) fn is_news(&self, member: &str, said: &Said) -> bool {
        member != self.me
            && match self.peers.get(member) {
                Some(peer) => peer.said != *said,
                None => *said != Said::Left,
            }
    }

    /// The other members that live, by name.
    pub(crate) fn others(&self) -> impl Iterator<Item = Other<'_>> {
        self.living().filter_map(|(name, peer, still)| match &peer.said {
            Said::Here(standing) => {
                let suspect = still >= (self.lease.max(peer.lease) / 5).max(SHORTEST_SUSPICION);
                Some(Other { name, standing, suspect })
            }
            Said::Unknown | Said::Left => None,
        })
    }

    fn living(&self) -> impl Iterator<Item = (&str, &Peer, Duration)> {
        self.peers.iter().filter_map(|(name, peer)| {
            let still = self.still(peer);
            let lives = peer.said != Said::Left && still < self.lease.max(peer.lease);
            lives.then_some((name.as_str(), peer, still))
        })
    }

    fn still(&self, peer: &Peer) -> Duration {
        self.asked.map_or(Duration::ZERO, |asked| peer.watch.still(asked))
    }

    /// What this member should clean up: it is the first of those who live.
    pub(crate) fn leftovers(&self, most: usize) -> Vec<Leftover> {
        if self.living().next().is_some_and(|(first, ..)| first < self.me.as_str()) {
            return Vec::new();
        }
        let leftovers = self.peers.iter().filter_map(|(name, peer)| {
            let marker = peer.said == Said::Left;
            // A marker stays as long as others may not have seen it, a key for twice as long as its member may be silent.
            let after = self.lease.max(peer.lease) * if marker { 1 } else { 2 };
            let leftover = Leftover { member: name.clone(), revision: peer.revision, marker };
            (self.still(peer) >= after).then_some(leftover)
        });
        leftovers.take(most).collect()
    }

    /// A leftover was cleaned up, or was none. If its key changed, the next listing says so.
    pub(crate) fn forget(&mut self, leftover: &Leftover) {
        if self.peers.get(&leftover.member).is_some_and(|peer| peer.revision == leftover.revision) {
            self.peers.remove(&leftover.member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(6);
    const STEP: Duration = Duration::from_millis(500);

    fn change(member: &str, revision: u64, said: Said) -> Change {
        Change { member: member.into(), revision, said, lease: LEASE }
    }

    fn here() -> Said {
        Said::Here(Standing::default())
    }

    struct Looks {
        roster: Roster,
        now: Instant,
        revision: u64,
    }

    impl Looks {
        fn new(me: &str) -> Self {
            Self { roster: Roster::new(me.into(), LEASE), now: Instant::now(), revision: 0 }
        }

        fn look(&mut self, said: &[(&str, Said)]) {
            self.now += STEP;
            let mut changes = Vec::new();
            for (member, said) in said {
                self.revision += 1;
                changes.push(change(member, self.revision, said.clone()));
            }
            let listing = Listing { from: self.roster.from(), changes, asked: self.now, answered: self.now };
            assert!(self.roster.listed(listing, 0));
        }

        fn names(&self) -> Vec<(&str, bool)> {
            self.roster.others().map(|other| (other.name, other.suspect)).collect()
        }
    }

    #[test]
    fn p3_a_member_is_a_suspect_then_dead_then_cleaned_up() {
        let mut looks = Looks::new("b");
        looks.look(&[("a", here()), ("c", here())]);
        assert_eq!(looks.names(), [("a", false), ("c", false)]);
        for _ in 0..2 {
            looks.look(&[("a", here())]);
        }
        assert_eq!(looks.names(), [("a", false), ("c", false)]);
        looks.look(&[("a", here())]);
        assert_eq!(looks.names(), [("a", false), ("c", true)]);
        for _ in 0..9 {
            looks.look(&[("a", here())]);
        }
        assert_eq!(looks.names(), [("a", false)]);
        for _ in 0..12 {
            looks.look(&[("a", here())]);
            assert_eq!(looks.roster.leftovers(9), [], "that is for the first one to do");
        }
        looks.look(&[("a", Said::Left)]);
        let leftovers = looks.roster.leftovers(9);
        assert_eq!(leftovers, [Leftover { member: "c".into(), revision: 2, marker: false }]);
        looks.roster.forget(&leftovers[0]);
        for _ in 0..12 {
            assert_eq!(looks.roster.leftovers(9), [], "others have to see that it left");
            looks.look(&[]);
        }
        assert!(looks.roster.leftovers(9)[0].marker);
        assert!(looks.names().is_empty());
    }

    #[test]
    fn p3_who_slept_or_could_not_look_starts_all_clocks_again() {
        let mut looks = Looks::new("b");
        looks.look(&[("a", here())]);
        looks.now += LEASE * 3;
        looks.look(&[]);
        assert_eq!(looks.names(), [("a", false)]);
        for _ in 0..11 {
            looks.look(&[]);
        }
        assert_eq!(looks.names(), [("a", true)]);
        // It could not look for long.
        looks.now += LEASE / 2;
        for _ in 0..12 {
            looks.look(&[]);
        }
        assert_eq!(looks.names(), [("a", true)]);
        looks.look(&[]);
        assert!(looks.names().is_empty());
    }

    #[test]
    fn a_list_that_does_not_show_its_reader_is_not_believed() {
        let mut roster = Roster::new("b".into(), LEASE);
        let now = Instant::now();
        let listing = |from, changes| Listing { from, changes, asked: now, answered: now };
        assert!(roster.listed(listing(1, vec![change("b", 5, here()), change("a", 6, here())]), 5));
        assert!(roster.is_known());
        assert!(!roster.listed(listing(7, vec![]), 8), "stale, or another bucket");
        assert!(!roster.is_known());
        assert!(!roster.listed(listing(7, vec![]), 0), "asked before that");
        assert!(roster.listed(listing(1, vec![change("b", 1, here())]), 1));
        assert_eq!(roster.others().count(), 0);
    }

    #[test]
    fn only_what_is_new_is_a_reason_to_look() {
        let mut looks = Looks::new("b");
        looks.look(&[("a", here())]);
        assert!(!looks.roster.is_news("a", &here()));
        assert!(looks.roster.is_news("a", &Said::Left));
        assert!(looks.roster.is_news("c", &here()));
        assert!(!looks.roster.is_news("b", &Said::Left), "oneself");
    }
}
