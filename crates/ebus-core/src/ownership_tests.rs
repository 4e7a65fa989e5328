//! The ownership beside a naive model: a list of what was tracked, and of what was settled under which epoch.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{NextOffset, Topic};

#[derive(Debug, Clone)]
enum Step {
    Assign {
        partition: usize,
        epoch: u64,
    },
    End {
        pick: usize,
    },
    Track {
        partition: usize,
    },
    /// Tokens of any ownership that there was, some of them for the second time.
    Settle {
        picks: Vec<(usize, bool)>,
    },
    BeginCommit {
        partition: usize,
    },
    CommitDone {
        partition: usize,
        accepted: bool,
    },
}

#[derive(Debug, Default)]
struct Naive {
    owned: Option<Owned>,
    epoch: u64,
    open: BTreeSet<u64>,
    read_to: u64,
    dirty: bool,
    committing: bool,
}

impl Naive {
    fn watermark(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.read_to)
    }
}

const PARTITIONS: usize = 3;
const SPAN: usize = 4;

fn partition(number: usize) -> PartitionId {
    PartitionId::new(Topic::new("orders").expect("legal"), number as u32)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = 0..PARTITIONS;
    let step = prop_oneof![
        2 => (at.clone(), 0u64..6).prop_map(|(partition, epoch)| Step::Assign { partition, epoch }),
        1 => (0usize..64).prop_map(|pick| Step::End { pick }),
        6 => at.clone().prop_map(|partition| Step::Track { partition }),
        4 => prop::collection::vec((0usize..64, prop::bool::weighted(0.8)), 1..6).prop_map(|picks| Step::Settle { picks }),
        2 => at.clone().prop_map(|partition| Step::BeginCommit { partition }),
        2 => (at, any::<bool>()).prop_map(|(partition, accepted)| Step::CommitDone { partition, accepted }),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    /// Whatever is assigned, ended, settled late or twice, and committed: what is void is counted and moves nothing, no more is
    /// read than there is room for, and a commit says the watermark of this ownership, one at a time.
    #[test]
    fn p3_agrees_with_the_naive_model(steps in steps()) {
        let mut ownership = Ownership::new(LedgerLimits::default().with_max_span(SPAN));
        let mut naive: BTreeMap<usize, Naive> = (0..PARTITIONS).map(|number| (number, Naive::default())).collect();
        let (mut ever, mut tokens, mut stale) = (Vec::<Owned>::new(), Vec::<(Owned, u64)>::new(), 0);
        for step in steps {
            match step {
                Step::Assign { partition: number, epoch } => {
                    let start = naive[&number].watermark();
                    let at = Position::at(NextOffset(start));
                    let assigned = ownership.assign(partition(number), Epoch(epoch), &at, Lease::unlimited());
                    let model = naive.get_mut(&number).expect("all are there");
                    prop_assert_eq!(assigned.partition, partition(number));
                    prop_assert_eq!(assigned.owned.epoch.0, epoch.max(model.epoch + 1));
                    ever.push(assigned.owned);
                    let (owned, epoch) = (Some(assigned.owned), assigned.owned.epoch.0);
                    *model = Naive { owned, epoch, read_to: start, ..Naive::default() };
                }
                Step::End { pick } => {
                    let Some(owned) = ever.get(pick % ever.len().max(1)).copied() else { continue };
                    let current = naive.values_mut().find(|model| model.owned == Some(owned));
                    prop_assert_eq!(ownership.end(owned), current.is_some());
                    match current {
                        Some(model) => model.owned = None,
                        None => stale += 1,
                    }
                }
                Step::Track { partition: number } => {
                    let model = naive.get_mut(&number).expect("all are there");
                    let Some(owned) = model.owned else { continue };
                    let offset = model.read_to;
                    let span = offset - model.watermark();
                    let full = (span >= SPAN as u64).then_some(Full::Span);
                    prop_assert_eq!(ownership.full(owned, offset), full);
                    prop_assert_eq!(ownership.has_room(owned, offset), full.is_none());
                    if full.is_none() {
                        prop_assert_eq!(ownership.track(owned, offset), Ok(Some(Token::new(owned, offset))));
                        model.open.insert(offset);
                        model.read_to += 1;
                        tokens.push((owned, offset));
                    }
                    prop_assert_eq!(ownership.track(owned, model.read_to - 1), Err(Refused { offset: model.read_to - 1 }));
                }
                Step::Settle { picks } => {
                    let mut expected = Settled::default();
                    let mut batch = Vec::new();
                    for (pick, finished) in picks {
                        let Some((owned, offset)) = tokens.get(pick % tokens.len().max(1)).copied() else { continue };
                        let settlement = if finished { Settlement::Finished } else { Settlement::Dropped };
                        batch.push((Token::new(owned, offset), settlement));
                        let current = naive.values_mut().find(|model| model.owned == Some(owned));
                        let Some(model) = current else {
                            expected.stale += 1;
                            continue;
                        };
                        if !finished {
                            expected.dropped += 1;
                        } else if model.open.remove(&offset) {
                            model.dirty = true;
                            expected.finished += 1;
                        } else {
                            expected.stale += 1;
                        }
                    }
                    stale += expected.stale as u64;
                    prop_assert_eq!(ownership.settle(&mut batch), expected);
                    prop_assert!(batch.is_empty());
                }
                Step::BeginCommit { partition: number } => {
                    let model = naive.get_mut(&number).expect("all are there");
                    let Some(owned) = model.owned else { continue };
                    let position = ownership.begin_commit(owned);
                    prop_assert_eq!(position.is_some(), model.dirty && !model.committing);
                    if let Some(position) = position {
                        (model.dirty, model.committing) = (false, true);
                        prop_assert_eq!(position.watermark.0, model.watermark());
                        for offset in model.watermark()..model.read_to {
                            prop_assert_eq!(position.finished.contains(offset), !model.open.contains(&offset));
                        }
                    }
                }
                Step::CommitDone { partition: number, accepted } => {
                    let model = naive.get_mut(&number).expect("all are there");
                    let Some(owned) = model.owned else { continue };
                    prop_assert!(!ownership.commit_done(owned, accepted), "nobody has asked for it");
                    (model.dirty, model.committing) = (model.dirty || !accepted, false);
                }
            }
            prop_assert_eq!(ownership.stale(), stale);
            let current: BTreeSet<Owned> = naive.values().filter_map(|model| model.owned).collect();
            prop_assert_eq!(&ownership.iter().map(|(owned, _)| owned).collect::<BTreeSet<_>>(), &current);
            for (number, model) in &naive {
                prop_assert_eq!(ownership.find(&partition(*number)), model.owned);
                let Some(owned) = model.owned else { continue };
                prop_assert_eq!(ownership.partition(owned.slot), Some(&partition(*number)));
                prop_assert!(ownership.iter().any(|one| one == (owned, &partition(*number))));
                prop_assert_eq!(ownership.has_uncommitted(owned), model.dirty || model.committing);
                let ledger = ownership.ledger(owned).expect("owned");
                prop_assert_eq!((ledger.watermark().0, ledger.unfinished()), (model.watermark(), model.open.len()));
            }
            for former in ever.iter().filter(|owned| !current.contains(owned)) {
                prop_assert!(!ownership.is_current(*former) && !ownership.has_room(*former, u64::MAX - 1));
                prop_assert!(ownership.ledger(*former).is_none() && ownership.begin_commit(*former).is_none());
                prop_assert_eq!(ownership.full(*former, 0), None);
                prop_assert_eq!(ownership.track(*former, u64::MAX - 1), Err(Refused { offset: u64::MAX - 1 }));
            }
        }
    }
}

/// What a former owner finished is skipped, and a commit says so.
#[test]
fn p6_what_is_skipped_is_committed() {
    let mut ownership = Ownership::new(LedgerLimits::default());
    let mut finished = crate::OffsetSet::new();
    finished.push(1, 2);
    let position = Position { watermark: NextOffset(0), finished };
    let owned = ownership.assign(partition(0), Epoch(1), &position, Lease::unlimited()).owned;
    let token = ownership.track(owned, 0).expect("ascending").expect("not finished");
    ownership.settle(&mut vec![(token, Settlement::Finished)]);
    assert_eq!(ownership.begin_commit(owned).map(|position| position.watermark), Some(NextOffset(1)));
    assert!(!ownership.commit_done(owned, true), "nobody has asked for it");
    assert_eq!(ownership.track(owned, 1), Ok(None));
    assert_eq!(ownership.begin_commit(owned).map(|position| position.watermark), Some(NextOffset(2)));
}
