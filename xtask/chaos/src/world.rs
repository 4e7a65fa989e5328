//! What the schedule acts on: processes around a real broker, or tasks around the one in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ebus::{Backend, Error, ErrorKind, Topic, TopicSpec};
use ebus_testkit::history::{Event, History, Kind, Part};
use ebus_testkit::oracle::Rules;

use crate::member::BATCH;
use crate::memory::Memory;
use crate::options::{self, Ground, Mode, Options};
use crate::plan::{Act, Card};
use crate::processes::Processes;
use crate::publisher::Load;
use crate::setting::{Names, PARTITIONS};

/// Publishers of a run.
pub(crate) const PUBLISHERS: u32 = 2;

/// What is acted on.
#[derive(Debug)]
pub(crate) enum World {
    Processes(Box<Processes>),
    Memory(Box<Memory>),
}

/// What one kind of world is like.
#[derive(Debug, Clone)]
pub(crate) struct Nature {
    /// How long a member may be silent before its partitions go to others.
    pub(crate) lease: Duration,
    /// What can be done to it.
    pub(crate) cards: Vec<Card>,
    /// Whether owners stop by their own clocks: then no network explains an overlap.
    pub(crate) leases: bool,
    /// Whether nobody's commit is accepted while the group waits for a member that is dead.
    pub(crate) group_waits: bool,
    /// How long after a fault was ended it may have effects: the time to connect again and to learn what was missed.
    pub(crate) recovers_within: Duration,
    /// After a clean leave the partitions run again so soon; `None` where that takes a rebalance.
    pub(crate) left_within: Option<Duration>,
}

/// The commit interval, and a second for a round trip on a busy machine.
pub(crate) const COMMIT_WITHIN: Duration = Duration::from_millis(1_200);
/// How long a broker that has just started may take to have the topics.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// And how long until it is asked again.
const READY_AGAIN: Duration = Duration::from_millis(100);
/// Handler runs of a member at once: the default.
const MAX_IN_FLIGHT: usize = 1_024;
/// Findings that are explained.
const EXPLAINED: usize = 40;

impl Nature {
    pub(crate) fn of(ground: Ground) -> Self {
        let Ground { backend, nodes, consumer_protocol } = ground;
        let secs = Duration::from_secs;
        let broker = if nodes == 1 { &Card::BROKER[..] } else { &Card::CLUSTER };
        let cards = match backend {
            options::Backend::Memory => Card::MEMORY.to_vec(),
            _ => [&Card::PROCESSES[..], &Card::LINKS, broker].concat(),
        };
        let (lease, leases, recovers_within) = match backend {
            options::Backend::Memory => (secs(2), true, secs(2)),
            // The shortest that brokers are set up for in production is the same.
            options::Backend::Kafka => (secs(6), false, secs(10)),
            options::Backend::Nats if nodes == 1 => (secs(3), true, secs(10)),
            options::Backend::Nats => (secs(15), true, secs(15)),
        };
        let kafka = backend == options::Backend::Kafka;
        let group_waits = kafka && !consumer_protocol;
        let left_within = (!kafka).then_some(secs(1));
        Self { lease, cards, leases, group_waits, recovers_within, left_within }
    }

    /// What the oracle demands.
    pub(crate) fn rules(&self, mode: Mode) -> Rules {
        let names = Names::default();
        // A batch is one run of the member, and as many to the oracle as it has keys.
        let most = if mode.batches { MAX_IN_FLIGHT * BATCH } else { MAX_IN_FLIGHT };
        let rules = Rules::new()
            .findings(EXPLAINED)
            .reads(names.group.as_str(), names.topic)
            .commit_within(COMMIT_WITHIN)
            .max_in_flight(most)
            .only_faults_excuse(self.recovers_within);
        let rules = if self.leases { rules.leases() } else { rules };
        let rules = if mode.parks { rules.parks(names.group.as_str()) } else { rules };
        let rules = if mode.at_most_once { rules.at_most_once(names.group) } else { rules };
        if self.group_waits { rules.group_waits(self.lease + COMMIT_WITHIN) } else { rules }
    }
}

/// Where things of a run are.
#[derive(Debug, Clone)]
pub(crate) struct Files(pub(crate) PathBuf);

impl Files {
    pub(crate) fn history(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.history"))
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.log"))
    }
}

/// Writes into the driver's history what it does, for the oracle.
#[derive(Debug, Clone)]
pub(crate) struct Marks(pub(crate) History);

impl Marks {
    pub(crate) fn mark(&self, kind: Kind, whom: &str) {
        let mut event = Event::new(kind);
        event.member = Some(whom.into());
        self.0.record(event);
    }
}

impl World {
    /// Everything but members and publishers.
    pub(crate) async fn prepare(
        options: &Options,
        members: u32,
        seed: u64,
        dir: &Path,
        block: Duration,
    ) -> Result<Self> {
        let files = Files(dir.to_owned());
        let marks = Marks(History::durable(files.history("driver"))?);
        let load = Load {
            number: 0,
            seed,
            rate: (options.events_per_second / PUBLISHERS).max(1),
            block_ms: block.as_millis() as u64,
        };
        let world = match options.ground.backend {
            options::Backend::Memory => {
                Self::Memory(Box::new(Memory::new(marks, files, load, options.mode)?))
            }
            _ => Self::Processes(Box::new(Processes::launch(options, members, marks, files, load)?)),
        };
        let (names, backend) = (Names::default(), world.connect().await.map_err(chained)?);
        let replicas = options.ground.nodes as u16;
        for (topic, partitions) in [(names.topic, PARTITIONS), (names.dead_letters, 2)] {
            let spec = TopicSpec::new(Topic::new(&topic)?, partitions).with_replicas(replicas);
            let created = create(backend.as_ref(), &spec).await;
            created.map_err(chained).with_context(|| format!("could not create topic {topic}"))?;
        }
        backend.close(Duration::from_secs(10)).await.map_err(chained)?;
        Ok(world)
    }

    /// A connection of the driver, to which no fault is done but those of the broker itself.
    pub(crate) async fn connect(&self) -> Result<Arc<dyn Backend>, Error> {
        match self {
            Self::Processes(world) => ebus::connect(world.url()).await,
            Self::Memory(world) => Ok(world.connect()),
        }
    }

    pub(crate) fn marks(&self) -> &Marks {
        match self {
            Self::Processes(world) => world.marks(),
            Self::Memory(world) => world.marks(),
        }
    }

    /// Starts a publisher.
    pub(crate) fn publisher(&mut self, number: u32) -> Result<()> {
        match self {
            Self::Processes(world) => world.publisher(number),
            Self::Memory(world) => world.publisher(number),
        }
    }

    /// Does one thing. What is meant for a member that is gone is not done.
    pub(crate) fn act(&mut self, act: Act) -> Result<()> {
        match self {
            Self::Processes(world) => world.act(act),
            Self::Memory(world) => world.act(act),
        }
    }

    /// Sees to what has ended meanwhile; what should not have.
    pub(crate) fn tend(&mut self) -> Vec<String> {
        match self {
            Self::Processes(world) => world.tend(),
            Self::Memory(world) => world.tend(),
        }
    }

    /// Ends all faults that last.
    pub(crate) async fn heal(&mut self) -> Vec<String> {
        match self {
            Self::Processes(world) => world.heal().await,
            Self::Memory(world) => {
                world.heal();
                Vec::new()
            }
        }
    }

    /// Has the publishers stop, and waits until everything has its answer.
    pub(crate) async fn stop_publishers(&mut self) -> Vec<String> {
        match self {
            Self::Processes(world) => world.stop_publishers().await,
            Self::Memory(world) => world.stop_publishers().await,
        }
    }

    /// Has all members leave, and waits until they have.
    pub(crate) async fn leave_all(&mut self) -> Vec<String> {
        match self {
            Self::Processes(world) => world.leave_all().await,
            Self::Memory(world) => world.leave_all().await,
        }
    }

    /// The histories of all processes, the driver's first.
    pub(crate) fn parts(&self) -> Vec<Part> {
        match self {
            Self::Processes(world) => world.parts(),
            Self::Memory(world) => world.parts(),
        }
    }
}

/// A cluster of several nodes that has just started may need more than one request's time to agree on a new topic.
async fn create(backend: &dyn Backend, spec: &TopicSpec) -> Result<(), Error> {
    let end = Instant::now() + READY_WITHIN;
    loop {
        match backend.create_topic(spec).await {
            Err(error) if error.kind() == ErrorKind::Unavailable && Instant::now() < end => {
                // Most tries wait for their own time-out; one that is refused at once does not.
                tokio::time::sleep(READY_AGAIN).await;
            }
            created => return created.map(drop),
        }
    }
}

/// An error of ebus with all its causes, which `{:#}` of anyhow would show twice.
pub(crate) fn chained(error: Error) -> anyhow::Error {
    anyhow::anyhow!(error.chain())
}
