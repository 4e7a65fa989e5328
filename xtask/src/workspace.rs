//! Where things are, and how cargo is called.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use cargo_metadata::{Metadata, MetadataCommand, Package};
use ebus_testkit::brokers::Home;

/// The project as cargo sees it.
#[derive(Debug)]
pub(crate) struct Workspace {
    metadata: Metadata,
}

impl Workspace {
    /// Finds the project that this program was built from, wherever it is called.
    pub(crate) fn load() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec();
        Ok(Self { metadata: metadata.context("could not read the workspace")? })
    }

    pub(crate) fn root(&self) -> &Path {
        self.metadata.workspace_root.as_std_path()
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.metadata.target_directory.clone().into_std_path_buf()
    }

    /// Where brokers are installed and run.
    pub(crate) fn brokers(&self) -> Home {
        Home::at(self.target().join("brokers"))
    }

    /// The crates of the workspace, by name.
    pub(crate) fn packages(&self) -> Vec<&Package> {
        let mut packages = self.metadata.workspace_packages();
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        packages
    }

    /// The features of a crate that every machine can build: `default` and the build switches of librdkafka apart, which
    /// `package.metadata.ebus.build-switches` names.
    pub(crate) fn features(package: &Package) -> Vec<&str> {
        let switches = package.metadata["ebus"]["build-switches"].as_array();
        let is_switch = |name: &str| switches.is_some_and(|list| list.iter().any(|switch| switch == name));
        let names = package.features.keys().map(String::as_str);
        names.filter(|name| *name != "default" && !is_switch(name)).collect()
    }

    /// All of these of all crates, or of those named, as cargo takes them.
    pub(crate) fn all_features(&self, of: &[String]) -> String {
        let packages = self
            .packages()
            .into_iter()
            .filter(|package| of.is_empty() || of.contains(&package.name.to_string()));
        let features = packages.flat_map(|package| {
            Self::features(package).into_iter().map(move |feature| format!("{}/{feature}", package.name))
        });
        features.collect::<Vec<_>>().join(",")
    }

    /// Cargo, in the root of the project.
    pub(crate) fn cargo<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
        cargo.current_dir(self.root()).args(args);
        cargo
    }
}
