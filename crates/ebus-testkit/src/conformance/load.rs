//! Publishing that goes on while a case makes trouble, and what became of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use ebus_core::{Backend, Receipt, Topic};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::ctx::{Ctx, keys, send};
use super::failure::{Checked, Failure};

/// How many keys it has, each of which gets a version every [`PAUSE`].
pub(super) const KEYS: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// A task that publishes versions of [`KEYS`] keys, one version of all of them after the other. What fails is not sent again.
pub(super) struct Load {
    shared: Arc<Shared>,
    topic: Topic,
    stop: watch::Sender<bool>,
    task: JoinHandle<Checked>,
}

#[derive(Default)]
struct Shared {
    /// The version that is being published.
    version: AtomicU64,
    calls: AtomicUsize,
    failed: AtomicUsize,
    /// With the key and version that each is for.
    receipts: Mutex<Vec<(String, u64, Receipt)>>,
}

impl Load {
    pub(super) fn start(backend: &dyn Backend, topic: &Topic) -> Self {
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared::default());
        let (mut publisher, to, noted) = (backend.publisher(), topic.clone(), shared.clone());
        let task = tokio::spawn(async move {
            let mut answers = JoinSet::new();
            for version in 1.. {
                noted.version.store(version, Relaxed);
                for key in keys("load", KEYS) {
                    noted.calls.fetch_add(1, Relaxed);
                    let sent = match send(&mut publisher, &to, &key, version).await {
                        Ok(sent) => sent,
                        Err(_) => {
                            noted.failed.fetch_add(1, Relaxed);
                            continue;
                        }
                    };
                    let noted = noted.clone();
                    answers.spawn(async move {
                        match sent.await {
                            Ok(receipt) => noted.receipts.lock().push((key, version, receipt)),
                            Err(_) => {
                                noted.failed.fetch_add(1, Relaxed);
                            }
                        }
                    });
                }
                while answers.try_join_next().is_some() {}
                if *stopped.borrow() {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
            while answers.join_next().await.is_some() {}
            Ok(())
        });
        Self { shared, topic: topic.clone(), stop, task }
    }

    /// Waits until something of each key was published, acknowledged and handled that was not yet called when this was.
    pub(super) async fn until_it_goes_on(&self, ctx: &Ctx, when: &str) -> Checked {
        let now = self.shared.version.load(Relaxed);
        let acknowledged = || {
            let receipts = self.shared.receipts.lock();
            let later = receipts.iter().filter(|(_, version, _)| *version > now);
            later.map(|(key, ..)| key).collect::<std::collections::BTreeSet<_>>().len()
        };
        let told = |handled: usize| {
            let (calls, failed) = (self.shared.calls.load(Relaxed), self.shared.failed.load(Relaxed));
            let (version, stored) = (self.shared.version.load(Relaxed), self.shared.receipts.lock().len());
            format!(
                "{when}: of {KEYS} keys {} are acknowledged and {handled} handled past version {now}; {version} is being \
                 published, {calls} called, {stored} acknowledged, {failed} failed",
                acknowledged()
            )
        };
        let deadline = Instant::now() + ctx.patience();
        // Not as often as other conditions: it is a look at all that ran.
        while acknowledged() < KEYS || ctx.log.keys_past(now) < KEYS {
            if Instant::now() >= deadline {
                let told = told(ctx.log.keys_past(now));
                return Err(Failure::new(format!(
                    "not within {:?}: both sides go on: {told}",
                    ctx.patience()
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Ends it, and checks that what was acknowledged is stored, where its receipt says, and nothing twice (h05). How many
    /// messages are stored.
    pub(super) async fn finish(self, ctx: &Ctx) -> Checked<usize> {
        self.stop.send_replace(true);
        let ended = tokio::time::timeout(ctx.harness.publish_deadline() + ctx.patience(), self.task).await;
        ended.map_err(|_| Failure::new("publishes are neither stored nor failed in time"))???;
        let mut times: BTreeMap<(String, u64), u32> = BTreeMap::new();
        let mut there = HashMap::new();
        for (partition, offset, message) in ctx.read_all(&self.topic).await? {
            let key = message.key.as_ref().map(ToString::to_string).unwrap_or_default();
            let version = crate::record::version_from_header(&message).unwrap_or_default();
            *times.entry((key.clone(), version)).or_default() += 1;
            there.insert((partition, offset), (key, version));
        }
        let receipts = self.shared.receipts.lock();
        for (key, version, receipt) in receipts.iter() {
            let found = there.get(&(receipt.partition, receipt.offset));
            assert!(
                found.is_some_and(|(k, v)| (k, v) == (key, version)),
                "{key}#{version} was acknowledged at {}/{}, where {found:?} is",
                receipt.partition,
                receipt.offset
            );
        }
        // No retry layer, no fault that stores twice: a publisher of ours sends a message once, or so that the broker knows it.
        let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "stored more than once: {twice:?}");
        let (calls, failed) = (self.shared.calls.load(Relaxed), self.shared.failed.load(Relaxed));
        assert_eq!(calls, receipts.len() + failed, "a call was never answered");
        assert!(there.len() <= calls, "{} are stored and {calls} were called", there.len());
        Ok(there.len())
    }
}
