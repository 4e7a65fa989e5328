//! A directory and ports for one private server, told apart from those of every other process.

use std::{
    collections::HashSet,
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{
    BrokerError, Home,
    install::{self, write},
};

/// Below the ports that Linux (32768 and up) and macOS (49152 and up) give to outgoing connections: while a server is down
/// for its restart, no client can take its port by accident.
const PORTS: RangeInclusive<u16> = 21_000..=30_999;

const PORTS_FILE: &str = "ports";
const LOCK_FILE: &str = "lock";

/// The directory of a running private server, removed when dropped.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    ports: Vec<u16>,
    _alive: File,
}

impl RunDir {
    /// Makes a new directory for a server of this name, with that many ports, and removes those whose process has died.
    pub(crate) fn create(home: &Home, name: &str, ports: usize) -> Result<Self, BrokerError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = home.run().join(format!("{name}-{}-{number}", process::id()));
        let _lock = home.lock("run.lock")?;
        sweep(&home.run())?;
        let ports = claim(home, &path, ports)?;
        let lock = path.join(LOCK_FILE);
        let alive = File::create(&lock).map_err(BrokerError::io("create", &lock))?;
        alive.lock().map_err(BrokerError::io("lock", &lock))?;
        Ok(Self { path, ports, _alive: alive })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn ports(&self) -> &[u16] {
        &self.ports
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // Nobody can be told; the next process that makes a directory removes this one.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Makes `dir` and writes down in it which ports it uses. Two processes at once must hold `run.lock`.
pub(crate) fn claim(home: &Home, dir: &Path, count: usize) -> Result<Vec<u16>, BrokerError> {
    let taken = taken_ports(home);
    let span = usize::from(PORTS.end() - PORTS.start()) + 1;
    // Each process begins elsewhere, so that also trees that do not know each other rarely want the same port.
    let ports: Vec<u16> = PORTS
        .cycle_from(process::id() as usize * 16 % span)
        .filter(|port| !taken.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .take(count)
        .collect();
    if ports.len() < count {
        return Err(BrokerError::failed("find a free port", format_args!("all of {PORTS:?} are in use")));
    }
    fs::create_dir_all(dir).map_err(BrokerError::io("create", dir))?;
    let lines: Vec<_> = ports.iter().map(u16::to_string).collect();
    write(dir.join(PORTS_FILE), &lines.join("\n"))?;
    Ok(ports)
}

trait CycleFrom {
    fn cycle_from(self, start: usize) -> impl Iterator<Item = u16>;
}

impl CycleFrom for RangeInclusive<u16> {
    fn cycle_from(self, start: usize) -> impl Iterator<Item = u16> {
        self.clone().skip(start).chain(self.take(start))
    }
}

/// Ports of servers that may be down at this moment and will want them back.
fn taken_ports(home: &Home) -> HashSet<u16> {
    let dirs = [home.run(), home.path().join("dev")];
    let files = dirs.iter().flat_map(|dir| entries(dir)).map(|dir| dir.join(PORTS_FILE));
    let text: Vec<_> = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
    text.iter().flat_map(|text| text.lines()).filter_map(|line| line.parse().ok()).collect()
}

/// Removes the directories whose owners are gone: their lock is free.
fn sweep(run: &Path) -> Result<(), BrokerError> {
    for dir in entries(run) {
        let lock = File::open(dir.join(LOCK_FILE));
        if lock.map_or(true, |lock| lock.try_lock().is_ok()) {
            install::remove(&dir)?;
        }
    }
    Ok(())
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_directories_share_no_port_and_leave_nothing() {
        let root = std::env::temp_dir().join(format!("ebus-run-dir-{}", process::id()));
        let home = Home::at(&root);
        let one = RunDir::create(&home, "a", 3).unwrap();
        let two = RunDir::create(&home, "a", 3).unwrap();
        assert!(one.ports().iter().all(|port| !two.ports().contains(port)), "{one:?} {two:?}");
        drop((one, two));
        assert_eq!(entries(&home.run()), Vec::<PathBuf>::new());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_directory_of_a_dead_process_is_removed_and_one_of_a_living_kept() {
        let root = std::env::temp_dir().join(format!("ebus-sweep-{}", process::id()));
        let home = Home::at(&root);
        let dead = home.run().join("dead-1-0");
        fs::create_dir_all(&dead).unwrap();
        File::create(dead.join(LOCK_FILE)).unwrap();
        let living = RunDir::create(&home, "a", 1).unwrap();
        let _other = RunDir::create(&home, "b", 1).unwrap();
        assert!(!dead.exists());
        assert!(living.path().exists());
        fs::remove_dir_all(root).unwrap();
    }
}
