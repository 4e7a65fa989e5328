//! What a topic's handler gets next: lanes gather until it is time (G4).

use std::pin::Pin;
use std::sync::atomic::Ordering::SeqCst;
use std::task::Context;
use std::time::{Duration, Instant};

use ebus_core::Owned;
use tokio::time::Sleep;

use crate::batch::Batch;
use crate::handlers::BatchRunner;
use crate::lane::{Lane, Phase, now};
use crate::runner::drop_guarded;
use crate::shard::tenure::Tenure;
use crate::shard::{LONGEST_WAIT, Shard};

/// How long what has gathered of a partition that is full still waits, if its batch does not say less: runs that end meanwhile make room
/// for more of it, so that a backlog goes in whole batches, and where nothing ends this is all that it waits in vain.
const FULL_AGE: Duration = Duration::from_millis(50);

/// A topic's handler of batches, and the batch that it gets next.
pub(in crate::shard) struct Batches {
    batch: Batch,
    max_bytes: usize,
    pub(in crate::shard) runner: BatchRunner,
    /// Those that are in the next batch, in the order in which they came.
    pub(in crate::shard) gathered: Vec<usize>,
    messages: usize,
    bytes: usize,
    /// One that came did not fit any more.
    full: bool,
    /// It waits for nothing: one waits that cannot come, because its key is in already.
    pressed: bool,
    /// When it has waited long enough.
    due: Instant,
    /// Wakes the shard then.
    alarm: Pin<Box<Sleep>>,
}

impl Batches {
    pub(in crate::shard) fn new(batch: Batch, runner: BatchRunner, budget_bytes: usize) -> Self {
        Self {
            batch,
            max_bytes: batch.bytes_within(budget_bytes),
            runner,
            gathered: Vec::new(),
            messages: 0,
            bytes: 0,
            full: false,
            pressed: false,
            due: now(),
            alarm: Box::pin(tokio::time::sleep_until(tokio::time::Instant::now())),
        }
    }

    /// Counts one message more, if there is room for it.
    fn take(&mut self, bytes: usize) -> bool {
        let fits = self.messages == 0 || self.bytes + bytes <= self.max_bytes;
        self.full |= !fits;
        if self.full {
            return false;
        }
        self.messages += 1;
        self.bytes += bytes;
        self.full = self.messages >= self.batch.max || self.bytes >= self.max_bytes;
        true
    }

    fn wait_from(&mut self, since: Instant) {
        self.wait_until(since + self.batch.max_age.min(LONGEST_WAIT));
    }

    fn wait_until(&mut self, due: Instant) {
        if self.gathered.is_empty() || due < self.due {
            self.due = due;
            self.alarm.as_mut().reset(due.into());
        }
    }

    /// Whether it is time; wakes the shard when it will be.
    fn is_due(&mut self, now: Instant, cx: &mut Context<'_>) -> bool {
        !self.gathered.is_empty()
            && (self.full || self.pressed || now >= self.due || self.alarm.as_mut().poll(cx).is_ready())
    }

    pub(super) fn clear(&mut self) -> Vec<usize> {
        (self.messages, self.bytes, self.full, self.pressed) = (0, 0, false, false);
        std::mem::take(&mut self.gathered)
    }
}

impl Shard {
    /// Starts a run of a topic that is handled in batches; false when none can start now. What is ready gathers first: that takes
    /// no slot, so it must not count as the topic's turn, or another topic would have every slot.
    pub(in crate::shard) fn batch_one(&mut self, route: usize, cx: &mut Context<'_>) -> bool {
        let alone = loop {
            let Some(lane) = self.routes[route].ready.front().copied() else { break None };
            // A dead letter that is redriven has failed before: it takes no others with it.
            if self.lanes[lane].alone > 0 || self.lanes[lane].redrive.is_some() {
                break Some(lane);
            }
            if !self.gather(route, lane) {
                break None;
            }
            self.routes[route].ready.pop_front();
        };
        let (at, press) = (self.now, self.shared.press.load(SeqCst));
        let Some(batches) = &mut self.routes[route].batches else { return false };
        if (press && !batches.gathered.is_empty()) || batches.is_due(at, cx) {
            return self.start_batch(route, cx);
        }
        alone.is_some_and(|lane| self.start_alone(route, lane, cx))
    }

    /// Takes a lane into the next batch, if its head still fits.
    fn gather(&mut self, route: usize, id: usize) -> bool {
        let Some(batches) = &mut self.routes[route].batches else { return false };
        let lane = &mut self.lanes[id];
        if !batches.take(lane.head.job.message.byte_len()) {
            return false;
        }
        // One that failed has waited before, and not for others.
        batches.wait_from(if lane.head.attempts == 0 { lane.head.since } else { self.now });
        batches.gathered.push(id);
        if is_full(&self.tenures, lane) {
            batches.wait_until(self.now + FULL_AGE);
        }
        lane.phase = Phase::Gathering { taken: 1 };
        self.gather_more(route, id);
        true
    }

    /// Nothing more of a partition comes before some of it is finished: what has gathered of it does not wait for its whole age.
    pub(in crate::shard) fn is_full(&mut self, owned: Owned, full: bool) {
        let Some(tenure) = self.tenure(owned) else { return };
        tenure.full = full;
        let route = tenure.route;
        let Some(batches) = self.routes[route].batches.as_mut().filter(|_| full) else { return };
        let lanes = &self.lanes;
        if batches.gathered.iter().any(|id| lanes[*id].head.job.token.owned() == owned) {
            batches.wait_until(now() + FULL_AGE);
        }
    }

    /// Takes what follows the head of a lane too, as far as there is room.
    pub(in crate::shard) fn gather_more(&mut self, route: usize, id: usize) {
        let Some(batches) = &mut self.routes[route].batches else { return };
        let lane = &mut self.lanes[id];
        if batches.batch.distinct_keys {
            batches.pressed |= !lane.queue.is_empty();
            return;
        }
        let Phase::Gathering { taken } = &mut lane.phase else { return };
        let (owned, key) = (lane.head.job.token.owned(), &lane.head.job.message.key);
        while let Some(job) = lane.queue.get(*taken - 1) {
            // An ownership ends by itself, and two keys may share a lane: what is in a batch of a lane is of one.
            let of_one = job.token.owned() == owned && job.message.key == *key;
            if !of_one || !batches.take(job.message.byte_len()) {
                return;
            }
            *taken += 1;
        }
    }

    /// Some that were gathered are not any more, or not with all that they had: counts again.
    pub(in crate::shard) fn gather_anew(&mut self, route: usize, stays: impl Fn(usize) -> bool) {
        let Some(batches) = &mut self.routes[route].batches else { return };
        let before = batches.clear();
        for id in before.into_iter().filter(|id| stays(*id)) {
            let lane = &self.lanes[id];
            let Phase::Gathering { taken } = lane.phase else { continue };
            let queued = lane.queue.iter().take(taken - 1);
            for job in std::iter::once(&lane.head.job).chain(queued) {
                batches.take(job.message.byte_len());
            }
            batches.gathered.push(id);
            batches.pressed |= batches.batch.distinct_keys && !lane.queue.is_empty();
        }
    }

    /// Another handler takes the topic over: what was gathered for this one waits for that one.
    pub(in crate::shard) fn disband(&mut self, route: usize) {
        let Some(mut batches) = self.routes[route].batches.take() else { return };
        for lane in batches.clear().into_iter().rev() {
            self.lanes[lane].phase = Phase::Ready;
            self.routes[route].ready.push_front(lane);
        }
        drop_guarded(batches.runner);
    }
}

/// Whether the partition of a lane's head is full.
fn is_full(tenures: &[Option<Tenure>], lane: &Lane) -> bool {
    let slot = lane.head.job.token.owned().slot;
    tenures.get(slot.index()).and_then(Option::as_ref).is_some_and(|tenure| tenure.full)
}
