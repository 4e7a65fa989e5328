//! The directory that holds installed brokers and the data of running ones.

use std::{
    env,
    fs::{self, File},
    path::{self, Path, PathBuf},
};

use super::{BrokerError, KAFKA_VERSION, NATS_VERSION};

/// The directory of brokers, `target/brokers` of the project.
///
/// ```text
/// kafka-<version>/   installed once, made complete elsewhere and then renamed into place
/// nats-<version>/
/// run/<name>/        data and log of a running private server; removed with it
/// dev/<broker>/      data and log of a developer's long-running server
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The variable that names the directory for tests.
    pub const VARIABLE: &'static str = "EBUS_BROKERS";

    /// Uses `root`, which need not exist yet. A relative path is one from the current directory of now.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self { root: path::absolute(&root).unwrap_or(root) }
    }

    /// Uses the directory that `EBUS_BROKERS` names; `None` when it is not set.
    pub fn from_env() -> Option<Self> {
        env::var_os(Self::VARIABLE).filter(|v| !v.is_empty()).map(Self::at)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Where a developer's long-running server of this name lives.
    pub fn dev(&self, broker: &str) -> PathBuf {
        self.root.join("dev").join(broker)
    }

    /// Whether Kafka is installed here. An installation that exists is complete.
    pub fn has_kafka(&self) -> bool {
        self.kafka().is_dir()
    }

    /// Whether nats-server is installed here.
    pub fn has_nats(&self) -> bool {
        self.nats().is_dir()
    }

    pub(crate) fn kafka(&self) -> PathBuf {
        self.root.join(format!("kafka-{KAFKA_VERSION}"))
    }

    pub(crate) fn nats(&self) -> PathBuf {
        self.root.join(format!("nats-{NATS_VERSION}"))
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Takes an exclusive lock between processes, freed when the file is dropped or its process ends.
    pub(crate) fn lock(&self, name: &str) -> Result<File, BrokerError> {
        fs::create_dir_all(&self.root).map_err(BrokerError::io("create", &self.root))?;
        let path = self.root.join(name);
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(BrokerError::io("open", &path))?;
        file.lock().map_err(BrokerError::io("lock", &path))?;
        Ok(file)
    }
}
