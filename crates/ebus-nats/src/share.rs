//! Who of a group's members should own which partition (G3, G6): a pure function of what the members say.
//!
//! There is no leader: every member computes the same from the same list. Per topic the shares differ by one at most, and
//! so do the totals as far as the members read the same topics. It is sticky: who holds a partition keeps it unless he
//! has more than his share, and if the shares are even already nothing moves. So a computation that follows another one
//! ends where that one ended, and members that see the list a moment apart come to rest.

use std::collections::BTreeMap;

/// What a member says of one topic that it reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Claim {
    /// How many partitions it knows of.
    pub(crate) partitions: u32,
    /// Those that it owns and means to keep, ascending.
    pub(crate) held: Vec<u32>,
}

/// What a member says, by topic.
pub(crate) type Claims = BTreeMap<String, Claim>;

/// The member of each partition, by topic.
pub(crate) type Shares<'a> = BTreeMap<&'a str, Vec<usize>>;

/// One topic while its shares are computed.
struct Split {
    /// Who reads it, ascending.
    readers: Vec<usize>,
    /// Who holds each partition.
    holders: Vec<Option<usize>>,
    /// How many each reader holds.
    held: Vec<u32>,
    /// What every reader gets at least.
    base: u32,
    /// Which readers get one more.
    extra: Vec<bool>,
}

/// The shares of `members`, who are in the order that all of them agree on. Where two say that they hold the same
/// partition, `me` is believed, and otherwise the first.
pub(crate) fn shares<'a>(members: &[&'a Claims], me: usize) -> Shares<'a> {
    let mut splits: BTreeMap<&'a str, Split> = BTreeMap::new();
    for (member, claims) in members.iter().enumerate() {
        for (topic, claim) in *claims {
            let split = splits.entry(topic).or_insert_with(Split::new);
            split.readers.push(member);
            split.holders.resize(split.holders.len().max(claim.partitions as usize), None);
        }
    }
    let mut totals = vec![0u32; members.len()];
    for (topic, split) in &mut splits {
        split.count(members, topic, me);
        for reader in &split.readers {
            totals[*reader] += split.base;
        }
    }
    for split in splits.values_mut() {
        split.keep_extras(&mut totals);
    }
    for split in splits.values_mut() {
        split.fill_extras(&mut totals);
    }
    let mut splits: Vec<(&str, Split)> = splits.into_iter().collect();
    while even_out(&mut splits, &mut totals) {}
    splits.into_iter().map(|(topic, split)| (topic, split.assign())).collect()
}

impl Split {
    fn new() -> Self {
        Self { readers: Vec::new(), holders: Vec::new(), held: Vec::new(), base: 0, extra: Vec::new() }
    }

    fn count(&mut self, members: &[&Claims], topic: &str, me: usize) {
        let mine = self.readers.iter().copied().filter(|reader| *reader == me);
        let others = self.readers.iter().copied().filter(|reader| *reader != me);
        for reader in mine.chain(others) {
            for partition in &members[reader][topic].held {
                if let Some(holder) = self.holders.get_mut(*partition as usize) {
                    holder.get_or_insert(reader);
                }
            }
        }
        self.held = self
            .readers
            .iter()
            .map(|reader| self.holders.iter().filter(|holder| **holder == Some(*reader)).count() as u32)
            .collect();
        self.base = (self.holders.len() / self.readers.len()) as u32;
        self.extra = vec![false; self.readers.len()];
    }

    /// Extras that are not given yet.
    fn left(&self) -> usize {
        self.holders.len() % self.readers.len() - self.extra.iter().filter(|extra| **extra).count()
    }

    /// Whether this reader holds an extra one already.
    fn holds_extra(&self, at: usize) -> bool {
        self.held[at] > self.base
    }

    /// Extras stay where they are.
    fn keep_extras(&mut self, totals: &mut [u32]) {
        self.give_extras(totals, |split, at| split.holds_extra(at));
    }

    /// All others go to those who have the least.
    fn fill_extras(&mut self, totals: &mut [u32]) {
        self.give_extras(totals, |_, _| true);
    }

    fn give_extras(&mut self, totals: &mut [u32], may: impl Fn(&Self, usize) -> bool) {
        for _ in 0..self.left() {
            let free = (0..self.readers.len()).filter(|at| !self.extra[*at] && may(self, *at));
            let Some(at) = free.min_by_key(|at| (totals[self.readers[*at]], *at)) else { return };
            self.extra[at] = true;
            totals[self.readers[at]] += 1;
        }
    }

    /// What it costs in moves to give the extra of one reader to another one, if that can be done.
    fn cost(&self, from: usize, to: usize) -> Option<(i8, usize, usize)> {
        let from = self.readers.binary_search(&from).ok().filter(|at| self.extra[*at])?;
        let to = self.readers.binary_search(&to).ok().filter(|at| !self.extra[*at])?;
        Some((i8::from(self.holds_extra(from)) - i8::from(self.holds_extra(to)), from, to))
    }

    /// Everybody keeps what he holds up to his share; the rest goes to those who lack, in order.
    fn assign(self) -> Vec<usize> {
        let mut quota: Vec<u32> = self.extra.iter().map(|extra| self.base + u32::from(*extra)).collect();
        let mut owners = self.holders.clone();
        for owner in &mut owners {
            *owner = owner.filter(|holder| {
                let Ok(at) = self.readers.binary_search(holder) else { return false };
                let keeps = quota[at] > 0;
                quota[at] -= u32::from(keeps);
                keeps
            });
        }
        let lacking = std::iter::zip(&self.readers, quota)
            .flat_map(|(reader, lacks)| std::iter::repeat_n(*reader, lacks as usize));
        let mut lacking = lacking.collect::<Vec<_>>().into_iter();
        // The quotas add up to the partitions, so somebody lacks each that is left.
        owners.into_iter().filter_map(|owner| owner.or_else(|| lacking.next())).collect()
    }
}

/// Moves one extra from a member with more to one with less, if any two differ by more than one.
fn even_out(splits: &mut [(&str, Split)], totals: &mut [u32]) -> bool {
    let mut order: Vec<usize> = (0..totals.len()).collect();
    order.sort_by_key(|member| (totals[*member], *member));
    for from in order.iter().rev() {
        for to in &order {
            if totals[*from] < totals[*to] + 2 {
                break;
            }
            let costs = splits.iter().enumerate().filter_map(|(topic, (_, split))| {
                let (cost, from, to) = split.cost(*from, *to)?;
                Some((cost, topic, from, to))
            });
            if let Some((_, topic, from_at, to_at)) = costs.min() {
                splits[topic].1.extra[from_at] = false;
                splits[topic].1.extra[to_at] = true;
                totals[*from] -= 1;
                totals[*to] += 1;
                return true;
            }
        }
    }
    false
}

#[cfg(test)]
#[path = "share_tests.rs"]
mod tests;
