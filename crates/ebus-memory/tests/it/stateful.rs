//! Random histories against a naive oracle: whatever members, publishers and faults do, nothing is lost, nothing comes in
//! another order, nothing has two owners, and what an accepted commit says never comes again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ebus_core::{Backend, Owned};
use ebus_memory::MemoryBackend;
use proptest::prelude::*;

use crate::tools::*;

const PARTITIONS: u32 = 3;
const MEMBERS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Publish {
        key: u8,
        count: u8,
    },
    Join(usize),
    Leave(usize),
    Kill(usize),
    Recv {
        who: usize,
        room: usize,
    },
    /// Finishes some of what is open, by a mask.
    Finish {
        who: usize,
        mask: u16,
    },
    Release(usize),
    Revoke(u32),
    Lose(u32),
    CommitsFail(bool),
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..MEMBERS;
    prop_oneof![
        4 => (0u8..6, 1u8..8).prop_map(|(key, count)| Step::Publish { key, count }),
        2 => who.clone().prop_map(Step::Join),
        1 => who.clone().prop_map(Step::Leave),
        1 => who.clone().prop_map(Step::Kill),
        6 => (who.clone(), 0usize..12).prop_map(|(who, room)| Step::Recv { who, room }),
        5 => (who.clone(), any::<u16>()).prop_map(|(who, mask)| Step::Finish { who, mask }),
        3 => who.prop_map(Step::Release),
        1 => (0..PARTITIONS).prop_map(Step::Revoke),
        1 => (0..PARTITIONS).prop_map(Step::Lose),
        1 => any::<bool>().prop_map(Step::CommitsFail),
        2 => (1u16..400).prop_map(Step::Wait),
    ]
}

#[derive(Default)]
struct Oracle {
    published: BTreeSet<u64>,
    finished: BTreeSet<u64>,
    /// The highest offset that came, of each ownership of each member that ever was.
    came: BTreeMap<(u64, Owned), u64>,
}

struct World {
    backend: MemoryBackend,
    members: [Option<(u64, Member)>; MEMBERS],
    /// A number for each member that ever was.
    joined: u64,
    oracle: Oracle,
}

impl World {
    async fn recv(&mut self, who: usize, room: usize) {
        let Some((id, member)) = &mut self.members[who] else { return };
        let before = member.tokens.len();
        let _ = tokio::time::timeout(Duration::from_millis(1), member.recv(room)).await;
        assert!(member.tokens.len() - before <= room);
        let kept = self.backend.committed(&group(), &topic()).await.unwrap();
        for (token, _) in &member.tokens[before..] {
            let last = self.oracle.came.insert((*id, token.owned()), token.offset());
            assert!(last < Some(token.offset()), "ascending, each once an epoch");
            let partition = member.names[&token.owned()].partition as usize;
            let position = kept[partition].position.as_ref().expect("kept since the group began");
            let counts = kept[partition].epoch == token.owned().epoch;
            assert!(
                !counts
                    || position.watermark.0 <= token.offset() && !position.finished.contains(token.offset()),
                "what an accepted commit says is finished came again"
            );
        }
        // As a pool does: what was lost is cancelled.
        let lost = member.lost.clone();
        member.tokens.retain(|(token, _)| !lost.contains(&token.owned()));
    }

    async fn act(&mut self, step: Step) {
        let faults = self.backend.broker().faults();
        match step {
            Step::Publish { key, count } => {
                let from = self.oracle.published.len() as u64;
                publish(&self.backend, &key.to_string(), from..from + u64::from(count)).await;
                self.oracle.published.extend(from..from + u64::from(count));
            }
            Step::Join(who) if self.members[who].is_none() => {
                self.joined += 1;
                self.members[who] = Some((self.joined, Member::join(&self.backend).await));
            }
            Step::Join(_) => {}
            Step::Leave(who) => {
                if let Some((_, member)) = self.members[who].take() {
                    let _ = member.close().await;
                }
            }
            Step::Kill(who) => self.members[who] = None,
            Step::Recv { who, room } => self.recv(who, room).await,
            Step::Finish { who, mask } => {
                if let Some((_, member)) = &mut self.members[who] {
                    let done = member.finish(|n| mask & (1 << (n % 16)) != 0);
                    self.oracle.finished.extend(done);
                }
            }
            Step::Release(who) => {
                if let Some((_, member)) = &mut self.members[who] {
                    member.release();
                }
            }
            Step::Revoke(number) => drop(faults.revoke(&group(), &partition(number))),
            Step::Lose(number) => drop(faults.lose(&group(), &partition(number))),
            Step::CommitsFail(fail) => drop(faults.commits_fail(&group(), fail)),
            Step::Wait(millis) => tokio::time::advance(Duration::from_millis(u64::from(millis))).await,
        }
        self.one_owner_each();
    }

    /// Of what members believe to own, at most one belief of each partition is not stale.
    fn one_owner_each(&self) {
        let owners = self.backend.broker().faults().owners(&group());
        let distinct: BTreeSet<_> = owners.iter().map(|(partition, _)| partition.partition).collect();
        assert_eq!(distinct.len(), owners.len());
    }

    /// Everybody leaves, one comes: all that was published is handled in the end, and shares are even on the way.
    async fn settle_all(&mut self) {
        let _ = self.backend.broker().faults().commits_fail(&group(), false);
        for who in 0..MEMBERS {
            self.act(Step::Join(who)).await;
        }
        for _ in 0..12 {
            for who in 0..MEMBERS {
                self.recv(who, 1_000).await;
                self.act(Step::Release(who)).await;
                self.act(Step::Finish { who, mask: u16::MAX }).await;
            }
        }
        let shares: Vec<_> = self.members.iter().flatten().map(|(_, member)| member.owned.len()).collect();
        assert_eq!(shares, [1, 1, 1], "even in the end");
        assert_eq!(self.oracle.finished, self.oracle.published);
        for who in 0..MEMBERS {
            if let Some((_, member)) = self.members[who].take() {
                member.close().await.unwrap();
            }
        }
        let kept = self.backend.committed(&group(), &topic()).await.unwrap();
        let info = self.backend.describe_topic(&topic()).await.unwrap();
        for (kept, info) in kept.iter().zip(&info.partitions) {
            assert_eq!(kept.position.as_ref().unwrap().watermark, info.end);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p1_p2_p3_p6_whatever_happens(steps in prop::collection::vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let backend = broker(PARTITIONS).await;
            let mut world = World { backend, members: [const { None }; MEMBERS], joined: 0, oracle: Oracle::default() };
            for step in steps {
                world.act(step).await;
            }
            world.settle_all().await;
        });
    }
}
