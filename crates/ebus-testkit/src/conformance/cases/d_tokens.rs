//! D. Ownership: what a source says and takes, without a pool.

use std::time::Duration;

use ebus_core::{
    Assigned, Committed, Inbound, Owned, PartitionId, Settlement, Source, SourceEvent, SourceOptions,
};

use super::super::ctx::{Ctx, keys};
use super::super::failure::{Checked, Failure};

/// A member without a pool: it keeps what it is told.
struct Raw {
    source: Box<dyn Source>,
    assigned: Vec<Assigned>,
    inbound: Vec<Inbound>,
    revoking: Vec<Owned>,
    released: Vec<Owned>,
}

impl Raw {
    fn new(source: Box<dyn Source>) -> Self {
        Self { source, assigned: Vec::new(), inbound: Vec::new(), revoking: Vec::new(), released: Vec::new() }
    }

    /// Takes in what there is, and waits a moment for more.
    async fn look(&mut self) -> Checked {
        let mut events = Vec::new();
        // `recv` may be dropped at any await.
        let moment = Duration::from_millis(10);
        if let Ok(received) = tokio::time::timeout(moment, self.source.recv(1_000, &mut events)).await {
            received?;
        }
        for event in events {
            match event {
                SourceEvent::Assigned { owned } => self.assigned.extend(owned),
                SourceEvent::Message(inbound) => self.inbound.push(inbound),
                SourceEvent::Revoking { owned, .. } => self.revoking.extend(owned),
                SourceEvent::Released { owned, .. } => self.released.extend(owned),
                SourceEvent::Lost { owned } => return Err(Failure::new(format!("{owned:?} was lost"))),
                _ => {}
            }
        }
        Ok(())
    }

    /// Goes on until something else is done: a member whose `recv` rests proves to nobody that it is there.
    async fn goes_on_until<T>(&mut self, done: impl Future<Output = T>) -> Checked<T> {
        let mut done = std::pin::pin!(done);
        loop {
            tokio::select! {
                result = &mut done => return Ok(result),
                looked = self.look() => looked?,
            }
        }
    }

    fn of(&self, owned: Owned) -> usize {
        self.inbound.iter().filter(|inbound| inbound.token.owned() == owned).count()
    }

    /// Settles as finished all that came under this ownership.
    fn finish(&mut self, owned: Owned) -> usize {
        let (of, other): (Vec<_>, Vec<_>) =
            self.inbound.drain(..).partition(|inbound| inbound.token.owned() == owned);
        self.inbound = other;
        let mut batch: Vec<_> = of.into_iter().map(|one| (one.token, Settlement::Finished)).collect();
        let count = batch.len();
        self.source.settle(&mut batch);
        count
    }
}

/// d05: the settlement of an old epoch arrives after regain: void, counted, the watermark does not move.
pub(super) async fn d05_the_settlement_of_an_old_epoch_is_void(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("regained", 2).await?;
    let group = ctx.group("g");
    let count = ctx.publish(&topic, &keys("k", 20), 1..=5).await?.len();
    // Not recorded: there are no runs that the oracle could see.
    let (one, other) = (ctx.harness.connect().await?, ctx.harness.connect().await?);
    let options = SourceOptions::new(group.clone(), vec![topic.clone()])
        .with_commit_interval(Duration::from_millis(20));
    let deadline = tokio::time::Instant::now() + ctx.patience();
    let in_time = |what: &str| match tokio::time::Instant::now() < deadline {
        true => Ok(()),
        false => Err(Failure::new(format!("not in time: {what}"))),
    };
    let mut first = Raw::new(one.source(options.clone()).await?);
    while first.inbound.len() < count {
        in_time("the first member has every message")?;
        first.look().await?;
    }
    let mut second = Raw::new(first.goes_on_until(other.source(options)).await??);
    while first.revoking.is_empty() {
        in_time("a partition is revoked")?;
        first.look().await?;
        second.look().await?;
    }
    // Answered without a settlement: the tokens stay in hand.
    let old = first.revoking[0];
    let revoked = std::mem::take(&mut first.revoking);
    first.source.release(&revoked);
    while first.released.len() < revoked.len() || second.assigned.is_empty() {
        in_time("it is handed over")?;
        first.look().await?;
        second.look().await?;
    }
    first.goes_on_until(second.source.close(ctx.patience())).await??;
    let partition = partition_of(&first.assigned, old);
    let regained = loop {
        in_time("it is handed back, and read again")?;
        first.look().await?;
        let again = first.assigned.iter().filter(|assigned| assigned.partition == partition);
        let owned = again.map(|assigned| assigned.owned).find(|owned| *owned != old);
        if let Some(owned) = owned.filter(|owned| first.of(*owned) >= first.of(old)) {
            break owned;
        }
    };
    assert!(regained.epoch > old.epoch, "{regained:?} after {old:?}");
    let before = first.source.stale();
    let void = first.finish(old);
    assert!(void > 0);
    // Something else finishes and is committed, so that a commit there was.
    let kept = first.assigned.iter().find(|assigned| assigned.partition != partition);
    let kept = kept.ok_or_else(|| Failure::new("it owned one partition only"))?.owned;
    let kept_partition = partition_of(&first.assigned, kept);
    let kept = first
        .assigned
        .iter()
        .rfind(|assigned| assigned.partition == kept_partition)
        .map_or(kept, |a| a.owned);
    let start = first.goes_on_until(one.committed(&group, &topic)).await??;
    let finished = ctx.finished_in(&topic, &start) + first.finish(kept);
    loop {
        in_time("the other partition is committed")?;
        first.look().await?;
        let committed = first.goes_on_until(one.committed(&group, &topic)).await??;
        let of = |committed: &[Committed]| {
            committed
                .iter()
                .find(|one| one.partition == partition.partition)
                .and_then(|one| one.position.clone())
        };
        assert_eq!(of(&committed), of(&start), "an old token counted");
        if ctx.finished_in(&topic, &committed) >= finished {
            break;
        }
    }
    assert_eq!(first.source.stale() - before, void as u64, "void settlements are not counted");
    assert_eq!(first.finish(regained), void);
    first.source.close(ctx.patience()).await?;
    let committed = one.committed(&group, &topic).await?;
    assert_eq!(ctx.finished_in(&topic, &committed), count);
    one.close(ctx.patience()).await?;
    other.close(ctx.patience()).await?;
    Ok(())
}

fn partition_of(assigned: &[Assigned], owned: Owned) -> PartitionId {
    let found = assigned.iter().find(|assigned| assigned.owned == owned);
    found.expect("what is owned was assigned").partition.clone()
}
