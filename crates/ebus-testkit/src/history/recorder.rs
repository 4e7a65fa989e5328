//! Records events from many threads without slowing them.
//!
//! Each thread appends to one of a few lists. The clock is read and the event numbered while its list is locked, so whoever
//! holds all lists has everything up to one moment, and nothing that comes later belongs before it.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::durable::Durable;
use super::{Event, write};

const SHARDS: usize = 16;

/// How long an event may stay unwritten in a history that is written as it goes.
const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// A history that is being recorded. Clones record into the same one.
///
/// Keeps all events in memory; a run of 200,000 messages takes some 200 MB.
#[derive(Clone)]
pub struct History(Arc<Inner>);

struct Inner {
    clock: fn() -> Instant,
    origin: Instant,
    sequence: AtomicU64,
    shards: [Mutex<Shard>; SHARDS],
    sink: Option<Mutex<Sink>>,
    durable: Option<Durable>,
}

#[derive(Default)]
struct Shard {
    events: Vec<(u64, Event)>,
    written: usize,
}

struct Sink {
    to: Box<dyn Write + Send>,
    failed: Option<io::Error>,
}

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}

impl History {
    /// An empty one, kept in memory.
    pub fn new() -> Self {
        Self::with_sink(Instant::now, None)
    }

    /// An empty one, kept in memory, whose time is that of `clock`, such as of a runtime that pauses it.
    pub fn with_clock(clock: fn() -> Instant) -> Self {
        Self::with_sink(clock, None)
    }

    /// An empty one that is also written to this file as it goes, at most 100 ms late, so that a crash leaves it behind.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn to_file(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self::to_writer(BufWriter::new(File::create(path)?)))
    }

    /// An empty one that is also written to `to` as it goes. A failure to write is told by [`flush`](Self::flush).
    pub fn to_writer(to: impl Write + Send + 'static) -> Self {
        let history =
            Self::with_sink(Instant::now, Some(Mutex::new(Sink { to: Box::new(to), failed: None })));
        let weak = Arc::downgrade(&history.0);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(FLUSH_EVERY);
                let Some(inner) = weak.upgrade() else { return };
                inner.write_new();
            }
        });
        history
    }

    /// An empty one that gives every event to this new file before [`record`](Self::record) returns, on a clock that all
    /// processes of the machine share: what was recorded survives a SIGKILL, and the files of several processes can be
    /// [merged](super::merge). It keeps nothing in memory: [`events`](Self::events) has none.
    ///
    /// # Errors
    /// When the file exists or cannot be created.
    #[cfg(all(feature = "durable", unix))]
    pub fn durable(path: impl AsRef<Path>) -> io::Result<Self> {
        let durable = Durable::create(path.as_ref())?;
        Ok(Self(Arc::new(Inner {
            clock: Instant::now,
            origin: Instant::now(),
            sequence: AtomicU64::new(0),
            shards: Default::default(),
            sink: None,
            durable: Some(durable),
        })))
    }

    fn with_sink(clock: fn() -> Instant, sink: Option<Mutex<Sink>>) -> Self {
        Self(Arc::new(Inner {
            clock,
            origin: clock(),
            sequence: AtomicU64::new(0),
            shards: Default::default(),
            sink,
            durable: None,
        }))
    }

    /// Records `event` as happening now.
    pub fn record(&self, mut event: Event) {
        if let Some(durable) = &self.0.durable {
            return durable.record(event);
        }
        let mut shard = self.0.shards[shard_of_thread()].lock();
        event.at_ns = self.now_ns();
        let number = self.0.sequence.fetch_add(1, Ordering::Relaxed);
        shard.events.push((number, event));
    }

    /// Now, on the clock of this history.
    pub fn now_ns(&self) -> u64 {
        if let Some(durable) = &self.0.durable {
            return durable.now_ns();
        }
        let since = (self.0.clock)().saturating_duration_since(self.0.origin);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.0.lock_all().iter().map(|shard| shard.events.len()).sum()
    }

    /// Whether nothing happened yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All events so far, in the order in which they happened.
    pub fn events(&self) -> Vec<Event> {
        let shards = self.0.lock_all();
        let mut all: Vec<(u64, Event)> =
            Vec::with_capacity(shards.iter().map(|shard| shard.events.len()).sum());
        for shard in &shards {
            all.extend(shard.events.iter().cloned());
        }
        drop(shards);
        in_order(all)
    }

    /// Writes what was not written yet, where it is written as it goes.
    ///
    /// # Errors
    /// The first failure to write since the history began; nothing is written after it.
    pub fn flush(&self) -> io::Result<()> {
        let told = |error: &io::Error| {
            Err(io::Error::new(error.kind(), format!("the history was not written: {error}")))
        };
        if let Some(durable) = &self.0.durable {
            return durable.failed().as_ref().map_or(Ok(()), told);
        }
        self.0.write_new();
        let Some(sink) = &self.0.sink else { return Ok(()) };
        sink.lock().failed.as_ref().map_or(Ok(()), told)
    }
}

impl Inner {
    fn lock_all(&self) -> Vec<MutexGuard<'_, Shard>> {
        self.shards.iter().map(|shard| shard.lock()).collect()
    }

    fn write_new(&self) {
        let Some(sink) = &self.sink else { return };
        // Before the lists: two that write at once must not swap their batches.
        let mut sink = sink.lock();
        let mut new = Vec::new();
        for mut shard in self.lock_all() {
            new.extend_from_slice(&shard.events[shard.written..]);
            shard.written = shard.events.len();
        }
        if sink.failed.is_none() {
            sink.failed = write(&mut sink.to, &in_order(new)).err();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.write_new();
    }
}

fn in_order(mut events: Vec<(u64, Event)>) -> Vec<Event> {
    // By clock first, so that a reader may sort by it; what happened after another has the higher number too.
    events.sort_unstable_by_key(|(number, event)| (event.at_ns, *number));
    events.into_iter().map(|(_, event)| event).collect()
}

fn shard_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static MINE: Cell<Option<usize>> = const { Cell::new(None) });
    MINE.with(|mine| {
        mine.get().unwrap_or_else(|| {
            let shard = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
            mine.set(Some(shard));
            shard
        })
    })
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").field("events", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Kind, read};

    #[test]
    fn events_of_all_threads_are_kept_in_order_of_cause() {
        let history = History::new();
        let (give, take) = std::sync::mpsc::sync_channel::<u64>(0);
        let other = history.clone();
        let second = std::thread::spawn(move || {
            for call in take {
                let mut event = Event::new(Kind::Stored);
                event.call = Some(call);
                other.record(event);
            }
        });
        for call in 0..1_000 {
            let mut event = Event::new(Kind::Call);
            event.call = Some(call);
            history.record(event);
            give.send(call).expect("the other thread lives");
        }
        drop(give);
        second.join().expect("did not panic");
        let events = history.events();
        assert_eq!(events.len(), 2_000);
        assert!(events.is_sorted_by_key(|event| event.at_ns));
        for call in 0..1_000 {
            let at = |kind| events.iter().position(|e| e.kind == kind && e.call == Some(call));
            assert!(at(Kind::Call) < at(Kind::Stored), "call {call}");
        }
    }

    #[test]
    fn is_written_as_it_goes_and_whole_at_the_end() {
        #[derive(Clone, Default)]
        struct Shared(Arc<Mutex<Vec<u8>>>);
        impl Write for Shared {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let file = Shared::default();
        let history = History::to_writer(file.clone());
        history.record(Event::new(Kind::Call));
        history.flush().expect("memory takes it");
        assert_eq!(read(&file.0.lock()[..]).expect("is a history"), history.events());
        history.record(Event::new(Kind::Stored));
        let events = history.events();
        drop(history);
        // The flusher may hold it for a moment longer; whoever is last writes.
        let deadline = Instant::now() + Duration::from_secs(10);
        while read(&file.0.lock()[..]).expect("is a history") != events {
            assert!(Instant::now() < deadline, "the last event was never written");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_failure_to_write_is_told() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::new(io::ErrorKind::StorageFull, "disk full"))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let history = History::to_writer(Full);
        history.record(Event::new(Kind::Call));
        let error = history.flush().expect_err("nothing could be written");
        assert!(error.to_string().contains("disk full"), "{error}");
    }
}
