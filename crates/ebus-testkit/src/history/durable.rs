//! A history whose events reach the kernel before what they announce happens.
//!
//! A process that is killed by SIGKILL loses what it has in memory, and with it the runs that were open: the very thing that
//! G3 and G6 are judged by. So each event is one `write` to the file, made while its lock is held: no later event of the
//! process can be in the file without it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use parking_lot::Mutex;

use super::Event;

pub(super) struct Durable(Mutex<Open>);

struct Open {
    file: File,
    /// Kept for its memory.
    line: Vec<u8>,
    failed: Option<(io::ErrorKind, String)>,
}

impl Durable {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        // The clock is there or nothing is: found out now, not at the first event.
        clock::now_ns()?;
        let file = File::create_new(path)?;
        Ok(Self(Mutex::new(Open { file, line: Vec::with_capacity(512), failed: None })))
    }

    pub(super) fn record(&self, mut event: Event) {
        let mut open = self.0.lock();
        let Open { file, line, failed } = &mut *open;
        if failed.is_some() {
            return;
        }
        event.at_ns = clock::now_ns().unwrap_or_default();
        line.clear();
        let written = serde_json::to_writer(&mut *line, &event).map_err(io::Error::from).and_then(|()| {
            line.push(b'\n');
            file.write_all(line)
        });
        *failed = written.err().map(|error| (error.kind(), error.to_string()));
    }

    pub(super) fn now_ns(&self) -> u64 {
        clock::now_ns().unwrap_or_default()
    }

    /// The first failure to write; nothing was written after it.
    pub(super) fn failed(&self) -> Option<io::Error> {
        self.0.lock().failed.as_ref().map(|(kind, text)| io::Error::new(*kind, text.clone()))
    }
}

mod clock {
    use std::io;

    use nix::time::{ClockId, clock_gettime};

    /// `CLOCK_MONOTONIC` of the machine: the same in all processes, and it never goes back.
    pub(super) fn now_ns() -> io::Result<u64> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let ns = i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec());
        u64::try_from(ns).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{History, Kind, read};

    #[test]
    fn what_is_recorded_is_in_the_file_at_once() {
        let dir = tempfile::tempdir().expect("there is room");
        let path = dir.path().join("history");
        let history = History::durable(&path).expect("can be created");
        let mut last = 0;
        for call in 0..100 {
            let mut event = Event::new(Kind::Call);
            event.call = Some(call);
            history.record(event);
            let events = read(&std::fs::read(&path).expect("is there")[..]).expect("is a history");
            assert_eq!(events.len() as u64, call + 1);
            let event = events.last().expect("is not empty");
            assert_eq!(event.call, Some(call));
            assert!((last..=history.now_ns()).contains(&event.at_ns), "the clock goes on");
            last = event.at_ns;
        }
        assert!(History::durable(&path).is_err(), "a history is not written over");
        history.flush().expect("was written");
    }
}
