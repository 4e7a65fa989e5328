//! One key is blocked, so that a watermark stands still while everything above it is finished (G4, G6).
//!
//! Its owner is killed, the successor within a second of its first run, and the one after that leaves cleanly while the key is
//! still blocked. Nothing that was finished above the watermark may run again, but for the last commit interval before each
//! kill; after the leave nothing at all. `figures.rs` counts it, from the history alone.

mod figures;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ebus::{Backend, Bus, Message, Publish, Topic};
use ebus_testkit::record::VERSION_HEADER;
use tokio::time::Instant;

use crate::driver::Course;
use crate::plan::{Act, Terms};
use crate::setting::Names;
use crate::work::Work;
use crate::world::{World, chained};
pub(crate) use figures::Figures;
use watch::Watch;

/// No publisher has it.
const KEY: &str = "blocked";
/// Three owners end, and one is left.
pub(crate) const MEMBERS: u32 = 4;
/// How long members that have all joined may take to share the partitions.
const SHARE_WITHIN: Duration = Duration::from_secs(60);
/// How long a take-over may take: longer than is allowed, which is for the figures to say.
const TAKE_OVER_WITHIN: Duration = Duration::from_secs(30);
/// The successor is killed so long after it has begun.
const SUCCESSOR_LIVES: std::ops::Range<u64> = 100..800;
/// How often the histories are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Beside three leases: for two take-overs, a drain, and what a busy machine adds.
const HOLD_LONGER: Duration = Duration::from_secs(12);
/// After the last take-over, so that runs after it are seen.
const AFTERWARDS: Duration = Duration::from_secs(3);

impl Course {
    /// Blocks a key, ends three of its owners, and returns when a fourth has it.
    pub(crate) async fn blocked(
        &mut self,
        world: &mut World,
        backend: &Arc<dyn Backend>,
        &Terms { lease, time, seed, .. }: &Terms,
    ) -> Result<()> {
        let mut watch = Watch::default();
        self.until(world, &mut watch, SHARE_WITHIN, |watch| watch.is_shared_by(MEMBERS).then_some(()))
            .await
            .context("the members do not share the partitions evenly")?;
        let hold = time + lease * 3 + HOLD_LONGER;
        self.say(&format!("a key is blocked for {hold:.0?}"));
        block(world, backend, hold).await?;
        self.next_holder(world, &mut watch, None).await?;
        let now = self.began.elapsed();
        self.wait(world, now + time).await;

        let first = self.holder(world, &mut watch)?;
        self.act(world, Act::Kill(first))?;
        self.next_holder(world, &mut watch, Some(first)).await?;
        let lives = Duration::from_millis(fastrand::Rng::with_seed(seed).u64(SUCCESSOR_LIVES));
        tokio::time::sleep(lives).await;
        let second = self.holder(world, &mut watch)?;
        self.act(world, Act::Kill(second))?;
        self.next_holder(world, &mut watch, Some(second)).await?;
        let now = self.began.elapsed();
        self.wait(world, now + AFTERWARDS).await;
        let third = self.holder(world, &mut watch)?;
        self.act(world, Act::Leave(third))?;
        self.next_holder(world, &mut watch, Some(third)).await?;
        let now = self.began.elapsed();
        self.wait(world, now + AFTERWARDS).await;
        Ok(())
    }

    /// Who runs the blocked key.
    fn holder(&self, world: &World, watch: &mut Watch) -> Result<u32> {
        watch.look(&world.parts())?;
        watch.holder().context("nobody runs the blocked key")
    }

    /// Waits until another member than `former` runs the blocked key.
    async fn next_holder(
        &mut self,
        world: &mut World,
        watch: &mut Watch,
        former: Option<u32>,
    ) -> Result<u32> {
        let next = |watch: &Watch| watch.holder().filter(|holder| Some(*holder) != former);
        let holder = self.until(world, watch, TAKE_OVER_WITHIN, next).await;
        let holder = holder.context("nobody else took the blocked key over")?;
        self.say(&format!("member-{holder} runs the blocked key"));
        Ok(holder)
    }

    /// What `seen` gives, as soon as it does.
    async fn until<T>(
        &mut self,
        world: &mut World,
        watch: &mut Watch,
        within: Duration,
        seen: impl Fn(&Watch) -> Option<T>,
    ) -> Result<T> {
        let until = Instant::now() + within;
        loop {
            let trouble = world.tend();
            self.note(trouble);
            watch.look(&world.parts())?;
            if let Some(seen) = seen(watch) {
                return Ok(seen);
            }
            if Instant::now() >= until {
                bail!("not within {within:?}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

async fn block(world: &World, backend: &Arc<dyn Backend>, hold: Duration) -> Result<()> {
    let work = Work::Hold(u64::try_from(hold.as_millis())?);
    let message =
        Message::new(work.payload(world.marks().0.now_ns())).with_key(KEY).with_header(VERSION_HEADER, "1");
    let publish = Publish::new(Topic::new(&Names::default().topic)?, message);
    Bus::new(Arc::clone(backend)).publish(publish).await.map_err(chained)?;
    Ok(())
}
