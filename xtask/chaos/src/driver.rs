//! From the first member to the verdict.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ebus::{Backend, Group, Topic};
use ebus_testkit::record::Recorded;
use tokio::time::Instant;

use crate::blocked;
use crate::judge;
use crate::options::Options;
use crate::plan::{Act, Terms, plan};
use crate::read_back::ReadBack;
use crate::redrive;
use crate::report::{Done, RunFile};
use crate::setting::Names;
use crate::verdict;
use crate::world::{Nature, PUBLISHERS, World, chained};

/// How often it is seen whether anybody ended who should not have.
const TEND_EVERY: Duration = Duration::from_millis(100);
/// How often the driver asks what is committed: each answer is one more thing to judge by.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the broker may take to answer that.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long members may take to handle all that is left, beside the time for which a key is blocked.
const FINISH_WITHIN: Duration = Duration::from_secs(90);
/// For how long a key is blocked in a long run; in a short one for less.
const BLOCK: Duration = Duration::from_secs(60);

pub(crate) async fn run(options: Options) -> Result<bool> {
    let time = options.time()?;
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let nature = Nature::of(options.ground);
    // With one key that is blocked, no other is.
    let block = if options.blocked.is_some() { Duration::ZERO } else { BLOCK.min(time / 6) };
    let members = if options.blocked.is_some() { blocked::MEMBERS } else { options.members };
    let terms = Terms {
        seed,
        time,
        members,
        publishers: PUBLISHERS,
        nodes: options.ground.nodes,
        lease: nature.lease,
        cards: nature.cards.clone(),
    };
    if options.plan {
        plan(&terms).iter().for_each(|step| println!("{:>8.1} s  {}", step.at.as_secs_f64(), step.act));
        return Ok(true);
    }
    let dir = directory(&options.dir, &format!("{}-{seed}", options.ground.backend.name()))?;
    println!(
        "{}, {members} members, {:.2} min, {} events/s, seed {seed}; histories in {}",
        options.ground,
        time.as_secs_f64() / 60.0,
        options.events_per_second,
        dir.display()
    );
    let mut world = World::prepare(&options, members, seed, &dir, block).await?;
    let mut course = Course { done: Vec::new(), trouble: Vec::new(), began: Instant::now() };
    let back = course.run(&mut world, &terms, block, &options).await?;
    let names = world.parts().into_iter().map(|part| {
        let name = part.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name, part.killed)
    });
    let mut run = RunFile {
        ground: options.ground,
        members,
        minutes: time.as_secs_f64() / 60.0,
        blocked: options.blocked.is_some(),
        mode: options.mode,
        events_per_second: options.events_per_second,
        seed,
        parts: names.collect(),
        done: course.done,
        trouble: course.trouble,
        back: None,
    };
    // The broker has had its time; judging wants the memory.
    drop(world);
    let (events, torn) = judge::events(&dir, &run)?;
    run.back = back.map(|back| verdict::judge(&events, &back, run.mode));
    run.write(&dir)?;
    let (report, _) = judge::judge(&run, &events, torn);
    println!("{report}");
    if let Some(file) = &options.json {
        report.write(file)?;
    }
    if report.kept() && !options.keep {
        std::fs::remove_dir_all(&dir).with_context(|| format!("could not remove {}", dir.display()))?;
    } else {
        let dir = dir.display();
        println!(
            "histories and logs are in {dir}; `cargo xtask chaos judge {dir}` judges them again, with `--show 1` the first finding"
        );
    }
    Ok(report.kept())
}

/// A new directory; that of an earlier run of the same seed is removed.
fn directory(of: &Path, name: &str) -> Result<PathBuf> {
    let dir = std::path::absolute(of.join(name))?;
    if dir.exists() {
        if !dir.join("driver.history").exists() {
            bail!("{} exists, and is none of ours; remove it, or give another --dir", dir.display());
        }
        std::fs::remove_dir_all(&dir).with_context(|| format!("could not remove {}", dir.display()))?;
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("could not create {}", dir.display()))?;
    Ok(dir)
}

/// What was done so far, and what went wrong.
#[derive(Debug)]
pub(crate) struct Course {
    done: Vec<Done>,
    trouble: Vec<String>,
    pub(crate) began: Instant,
}

impl Course {
    async fn run(
        &mut self,
        world: &mut World,
        terms: &Terms,
        block: Duration,
        options: &Options,
    ) -> Result<Option<ReadBack>> {
        let history = world.marks().0.clone();
        let direct = world.connect().await.map_err(chained)?;
        let backend: Arc<dyn Backend> = Arc::new(Recorded::new(direct, history.clone(), "driver"));
        let observer = tokio::spawn(observe(Arc::clone(&backend)));
        let redriver = options.mode.parks.then(|| tokio::spawn(redrive::always(Arc::clone(&backend))));
        self.began = Instant::now();
        for member in 1..=terms.members {
            self.act(world, Act::Join(member))?;
        }
        for publisher in 1..=PUBLISHERS {
            world.publisher(publisher)?;
        }
        if options.blocked.is_some() {
            self.blocked(world, &backend, terms).await?;
        } else {
            for step in plan(terms) {
                self.wait(world, step.at).await;
                self.act(world, step.act)?;
            }
            self.wait(world, terms.time).await;
        }
        self.say("everything is healed, publishers stop");
        let healed = world.heal().await;
        self.note(healed);
        let stopped = world.stop_publishers().await;
        self.note(stopped);
        self.say("publishers have all their answers");
        observer.abort();
        let finished = self.finished(world, &backend, block + FINISH_WITHIN, options.mode.parks).await?;
        redriver.iter().for_each(tokio::task::JoinHandle::abort);
        self.say(if finished { "everything is committed as finished" } else { "it takes too long" });
        let left = world.leave_all().await;
        self.note(left);
        self.say("members have left");
        let back = match ReadBack::of(backend.as_ref()).await {
            Ok(back) => Some(back),
            Err(error) => {
                self.note([format!("could not read back: {error:#}")]);
                None
            }
        };
        // It has nothing to lose any more.
        let _ = backend.close(ANSWER_WITHIN).await;
        history.flush().context("the history of the driver is not whole")?;
        Ok(back)
    }

    pub(crate) fn say(&self, text: &str) {
        println!("{:>8.1} s  {text}", self.began.elapsed().as_secs_f64());
    }

    pub(crate) fn note(&mut self, trouble: impl IntoIterator<Item = String>) {
        for trouble in trouble {
            self.say(&format!("TROUBLE: {trouble}"));
            self.trouble.push(trouble);
        }
    }

    pub(crate) fn act(&mut self, world: &mut World, act: Act) -> Result<()> {
        self.say(&act.to_string());
        let at_ns = world.marks().0.now_ns();
        world.act(act).with_context(|| format!("could not do it: {act}"))?;
        self.done.push(Done {
            at_ns,
            kind: act.kind().map(str::to_owned),
            member: act.member().map(|number| format!("member-{number}")),
            text: act.to_string(),
        });
        Ok(())
    }

    /// Waits for a time of the run, and sees to what ends meanwhile.
    pub(crate) async fn wait(&mut self, world: &mut World, until: Duration) {
        let until = self.began + until;
        loop {
            let trouble = world.tend();
            self.note(trouble);
            let now = Instant::now();
            if now >= until {
                return;
            }
            tokio::time::sleep_until(until.min(now + TEND_EVERY)).await;
        }
    }

    /// Whether the group has finished all that there is.
    async fn finished(
        &mut self,
        world: &mut World,
        backend: &Arc<dyn Backend>,
        within: Duration,
        parks: bool,
    ) -> Result<bool> {
        let until = Instant::now() + within;
        let mut told = Instant::now();
        loop {
            let trouble = world.tend();
            self.note(trouble);
            let left = unfinished(backend.as_ref()).await?;
            let parked = if parks { redrive::parked(backend).await.map(|keys| keys.len()) } else { Some(0) };
            if (left, parked) == (Some(0), Some(0)) {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                self.say(&format!("not finished yet: {left:?} offsets, {parked:?} parked keys"));
            }
            tokio::time::sleep(TEND_EVERY).await;
        }
    }
}

/// Offsets that are not committed as finished yet; `None` when the broker does not say.
async fn unfinished(backend: &dyn Backend) -> Result<Option<u64>> {
    let names = Names::default();
    let (topic, group) = (Topic::new(&names.topic)?, Group::new(&names.group)?);
    let asked = tokio::time::timeout(ANSWER_WITHIN, async {
        let info = backend.describe_topic(&topic).await?;
        let committed = backend.committed(&group, &topic).await?;
        let left = info.partitions.iter().zip(&committed).map(|(there, one)| {
            let up_to = one.position.as_ref().map_or(there.earliest, |position| position.watermark.0);
            there.end.0.saturating_sub(up_to)
        });
        Ok::<u64, ebus::Error>(left.sum())
    });
    Ok(asked.await.ok().and_then(Result::ok))
}

/// Asks again and again what is committed: the answers are recorded, and judged.
async fn observe(backend: Arc<dyn Backend>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let _ = unfinished(backend.as_ref()).await;
    }
}
