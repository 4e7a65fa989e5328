//! At most once: what a lane is to run is settled and committed before it starts. Then it runs, or is lost (G2, G3, G5).
//!
//! A lane whose turn it is waits in its tenure's queue, and gives the tokens of its first messages away: the driver settles them and
//! has them committed. When that is accepted the lane stands in line for a slot, as any other. What is behind in the lane keeps its
//! tokens, and is left to the next owner at a hand-over. So what a crash can lose is bounded by what may be in flight, and not by
//! what is held.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ebus_core::{Owned, Settlement, Token};

use super::Shard;
use crate::jobs::{FromShard, Job};
use crate::lane::{Ahead, Head, Lane, Phase};

/// Messages of one lane that one commit covers at most.
const MOST_OF_A_LANE: usize = 64;
/// A lane whose last commit was worked off within this time takes twice as many into the next, otherwise half: a key with quick runs
/// does not wait for a commit for each, and one with slow runs leaves little to be finished at a hand-over.
const QUICK: Duration = Duration::from_millis(50);

/// The lanes of a tenure that are committed before they run.
#[derive(Default)]
pub(super) struct AheadOf {
    /// Those whose turn it is, and whose commit is not asked for yet.
    pub(super) waiting: VecDeque<usize>,
    /// Messages that are settled and not over.
    pub(super) open: usize,
}

impl Lane {
    /// Gives away the tokens of the first messages, at most so many, all of one ownership; how many. What stays of a token is the
    /// place in the partition: nobody settles it again.
    fn give_tokens(&mut self, most: usize, now: Instant, batch: &mut Vec<(Token, Settlement)>) -> usize {
        let ahead = self.ahead.get_or_insert_with(|| Box::new(Ahead { messages: 0, window: 1, since: now }));
        let owned = self.head.job.token.owned();
        let queued = self.queue.iter_mut().take_while(|job| job.token.owned() == owned);
        let jobs = std::iter::once(&mut self.head.job).chain(queued).take(ahead.window.min(most));
        for job in jobs {
            let place = Token::new(owned, job.token.offset());
            batch.push((std::mem::replace(&mut job.token, place), Settlement::Finished));
            ahead.messages += 1;
        }
        self.phase = Phase::Committing { since: now };
        ahead.messages
    }

    /// One of those that were committed is over.
    fn one_over(&mut self, now: Instant) {
        let Some(ahead) = &mut self.ahead else { return };
        ahead.messages -= 1;
        if ahead.messages == 0 {
            let quick = now.saturating_duration_since(ahead.since) < QUICK;
            ahead.window = if quick { ahead.window * 2 } else { ahead.window / 2 }.clamp(1, MOST_OF_A_LANE);
        }
    }
}

impl Shard {
    /// Asks for the commit of what is to run next, of each partition as much as may be in flight twice: so slots that get free find
    /// something to start.
    pub(super) fn commit_ahead(&mut self) {
        let config = &self.shared.config;
        let most = (config.max_in_flight / config.shards).max(1).saturating_mul(2);
        for tenure in self.tenures.iter_mut().flatten() {
            // What nobody handles yet is not committed.
            let handled = self.routes[tenure.route].runner.is_some();
            let Some(ahead) = tenure.ahead.as_mut().filter(|ahead| handled && !ahead.waiting.is_empty())
            else {
                continue;
            };
            let (mut lanes, mut batch) = (Vec::new(), Vec::new());
            while ahead.open < most
                && let Some(id) = ahead.waiting.pop_front()
            {
                ahead.open += self.lanes[id].give_tokens(most - ahead.open, self.now, &mut batch);
                lanes.push(id);
            }
            if !lanes.is_empty() {
                let (shard, owned) = (self.index, tenure.owned);
                // A driver that is gone has nothing run any more.
                let _ = self.tx.send(FromShard::CommitAhead { shard, owned, lanes, batch });
            }
        }
    }

    /// What these lanes wait for is committed.
    pub(super) fn committed(&mut self, owned: Owned, lanes: &[usize]) {
        for &id in lanes {
            // An ownership that was given up has left them, and others may have their places.
            let now = self.now;
            let waits = |lane: &&mut Lane| {
                matches!(lane.phase, Phase::Committing { .. }) && lane.head.job.token.owned() == owned
            };
            let Some(lane) = self.lanes.get_mut(id).filter(waits) else { continue };
            if let Some(ahead) = &mut lane.ahead {
                ahead.since = now;
            }
            self.make_ready(id);
        }
    }

    /// The head of a lane is over, which was settled before it ran.
    pub(super) fn advance_ahead(&mut self, id: usize) {
        let now = self.now;
        let lane = &mut self.lanes[id];
        lane.one_over(now);
        let done = match lane.queue.pop_front() {
            Some(next) => {
                let done = std::mem::replace(&mut lane.head, Head::new(next, now));
                self.make_ready(id);
                done
            }
            None => {
                let lane = self.lanes.remove(id);
                self.spare_queues.keep(lane.queue);
                if let Some(key) = lane.key {
                    self.by_key.remove(&key);
                }
                lane.head
            }
        };
        let owned = done.job.token.owned();
        self.over(&done.job);
        self.end_if_over(owned);
    }

    fn over(&mut self, job: &Job) {
        let owned = job.token.owned();
        self.over.push((owned.slot, job.message.byte_len()));
        if let Some(ahead) = self.tenure(owned).and_then(|tenure| tenure.ahead.as_mut()) {
            ahead.open -= 1;
        }
    }

    /// Gives up what of these was settled and has not started: there is no time for it any more. Runs in progress are not its
    /// concern.
    pub(super) fn forfeit(&mut self, owned: &[Owned]) {
        let is_theirs = |lane: &Lane| lane.is_ahead() && owned.contains(&lane.head.job.token.owned());
        let ids: Vec<usize> =
            self.lanes.iter().filter(|(_, lane)| is_theirs(lane)).map(|(id, _)| id).collect();
        let idle: HashSet<usize> = ids
            .iter()
            .copied()
            .filter(|id| !matches!(self.lanes[*id].phase, Phase::Running { .. }))
            .collect();
        for route in &mut self.routes {
            route.ready.retain(|lane| !idle.contains(lane));
        }
        for id in ids {
            let lane = &mut self.lanes[id];
            if let Phase::Waiting { timer, .. } = &lane.phase {
                self.timers.remove(timer);
            }
            let owned = lane.head.job.token.owned();
            let behind = lane.ahead.as_mut().map_or(0, |ahead| std::mem::replace(&mut ahead.messages, 1) - 1);
            let behind: Vec<Job> = lane.queue.drain(..behind).collect();
            let lost = behind.len() + usize::from(idle.contains(&id));
            self.shared.counters.lost.fetch_add(lost as u64, Relaxed);
            if let Some(tenure) = self.tenure(owned) {
                tenure.left.lost += lost;
            }
            behind.iter().for_each(|job| self.over(job));
            if idle.contains(&id) {
                self.advance_ahead(id);
            }
        }
    }
}
