//! Sources without a broker: who hands out what is each benchmark's own, what every source keeps is here.

use async_trait::async_trait;
use ebus_core::{
    Epoch, Error, Inbound, Lease, LedgerLimits, Message, Owned, Ownership, PartitionId, Position, Settlement,
    Source, SourceEvent, Token, Topic,
};
use tokio::sync::oneshot;

use crate::work::PARTITIONS;

/// Hands messages out.
pub(crate) trait HandsOut: Send + 'static {
    /// Gives `room` messages at most, and says how many; waits for ever when there are no more.
    fn hand_out(
        &mut self,
        room: usize,
        kept: &mut Kept,
        out: &mut Vec<SourceEvent>,
    ) -> impl Future<Output = usize> + Send;
}

/// What is owned, from the first read on, and what of it is finished.
pub(crate) struct Kept {
    ownership: Ownership,
    owned: Vec<Owned>,
    next: [u64; PARTITIONS as usize],
    unsettled: usize,
    done: Option<oneshot::Sender<()>>,
}

impl Kept {
    /// The next message of a partition.
    #[inline]
    pub(crate) fn give(&mut self, partition: usize, message: Message, out: &mut Vec<SourceEvent>) {
        let offset = self.next[partition];
        self.next[partition] += 1;
        let Ok(Some(token)) = self.ownership.track(self.owned[partition], offset) else {
            unreachable!("ascending")
        };
        out.push(SourceEvent::Message(Inbound { token, message }));
    }
}

struct Lone<H> {
    kept: Kept,
    hands_out: H,
}

/// A source of `n` messages, and what is told when the last one is settled.
pub(crate) fn source(
    n: usize,
    limits: LedgerLimits,
    hands_out: impl HandsOut,
) -> (impl Source, oneshot::Receiver<()>) {
    let (done, all_done) = oneshot::channel();
    let kept = Kept {
        ownership: Ownership::new(limits),
        owned: Vec::new(),
        next: [0; PARTITIONS as usize],
        unsettled: n,
        done: Some(done),
    };
    (Lone { kept, hands_out }, all_done)
}

#[async_trait]
impl<H: HandsOut> Source for Lone<H> {
    async fn recv(&mut self, room: usize, out: &mut Vec<SourceEvent>) -> Result<usize, Error> {
        let kept = &mut self.kept;
        if !kept.owned.is_empty() {
            return Ok(self.hands_out.hand_out(room, kept, out).await);
        }
        let mut assigned = Vec::new();
        for partition in 0..PARTITIONS {
            let id = PartitionId::new(Topic::new("bench")?, partition);
            assigned.push(kept.ownership.assign(id, Epoch(1), &Position::default(), Lease::unlimited()));
        }
        kept.owned = assigned.iter().map(|one| one.owned).collect();
        out.push(SourceEvent::Assigned { owned: assigned });
        Ok(1)
    }

    fn settle(&mut self, batch: &mut Vec<(Token, Settlement)>) {
        let kept = &mut self.kept;
        kept.unsettled -= kept.ownership.settle(batch).finished;
        if kept.unsettled == 0 {
            kept.done.take().map(|done| done.send(()));
        }
    }

    fn release(&mut self, _owned: &[Owned]) {}
    fn pause(&mut self, _owned: &[Owned]) {}
    fn resume(&mut self, _owned: &[Owned]) {}
    fn commit_now(&mut self, _owned: &[Owned]) {}
    fn subscribe(&mut self, _topics: &[Topic]) {}

    fn stale(&self) -> u64 {
        self.kept.ownership.stale()
    }

    async fn close(self: Box<Self>, _within: std::time::Duration) -> Result<(), Error> {
        Ok(())
    }
}
