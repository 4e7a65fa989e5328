//! Parked keys under random schedules, against the plainest model: a message starts only when all before it of its key have
//! succeeded, and in the end all have (G1, G2).

mod common;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::letters::Letters;
use common::*;
use ebus_core::{ErrorKind, Outcome, Owned};
use ebus_pool::{Pool, RetryPolicy};
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);
const KEYS: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone, Copy)]
enum Step {
    Deliver(usize),
    /// So many milliseconds go by.
    Wait(u64),
    /// Handlers of a key fail, or do not any more.
    Break(usize, bool),
    Redrive(usize),
    /// Handed over with notice: what is settled was committed.
    HandOver,
    /// Lost without notice; up to so many messages that were settled were not committed.
    Lose(u64),
    StoreFails(bool),
    PublishFails(bool),
    ReadFails(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..KEYS.len();
    prop_oneof![
        8 => key.clone().prop_map(Step::Deliver),
        4 => (0u64..1_500).prop_map(Step::Wait),
        3 => (key.clone(), any::<bool>()).prop_map(|(key, broken)| Step::Break(key, broken)),
        3 => key.prop_map(Step::Redrive),
        1 => Just(Step::HandOver),
        1 => (0u64..6).prop_map(Step::Lose),
        1 => any::<bool>().prop_map(Step::StoreFails),
        1 => any::<bool>().prop_map(Step::PublishFails),
        1 => any::<bool>().prop_map(Step::ReadFails),
    ]
}

/// What handlers have seen.
#[derive(Default)]
struct Model {
    broken: BTreeSet<usize>,
    /// By key, the offsets that were published.
    lanes: [Vec<u64>; KEYS.len()],
    succeeded: BTreeSet<u64>,
    /// Nothing has happened that excuses a second success.
    once: bool,
    wrong: Option<String>,
}

impl Model {
    fn start(&mut self, key: usize, offset: u64) {
        let before = self.lanes[key].iter().take_while(|other| **other < offset);
        if let Some(open) = before.copied().find(|other| !self.succeeded.contains(other)) {
            self.wrong
                .get_or_insert(format!("{offset} of {} started before {open} had succeeded", KEYS[key]));
        }
    }

    fn all_succeeded(&self) -> bool {
        self.lanes.iter().flatten().all(|offset| self.succeeded.contains(offset))
    }
}

struct World {
    script: Script,
    pool: Pool,
    letters: Letters,
    model: Arc<Mutex<Model>>,
    owned: Owned,
    keys: Vec<usize>,
}

impl World {
    fn new() -> Self {
        let (script, source) = script();
        let letters = Letters::default();
        let config = letters.config(2).with_retry(RetryPolicy::fixed(20 * MS).max_attempts(2));
        let pool = Pool::start(source, config).expect("valid");
        let model = Arc::new(Mutex::new(Model { once: true, ..Model::default() }));
        let seen = model.clone();
        pool.subscribe(
            topic(),
            handler(move |delivery| {
                let seen = seen.clone();
                let key =
                    KEYS.iter().position(|key| delivery.key() == Some(&(*key).into())).expect("one of them");
                seen.lock().expect("whole").start(key, delivery.offset());
                async move {
                    tokio::time::sleep(2 * MS).await;
                    let mut model = seen.lock().expect("whole");
                    if model.broken.contains(&key) {
                        return retry(5 * MS);
                    }
                    if !model.succeeded.insert(delivery.offset()) && model.once {
                        model.wrong.get_or_insert(format!("{} was handled twice", delivery.offset()));
                    }
                    Outcome::Ack
                }
            }),
        )
        .expect("open");
        let owned = script.assign(0);
        Self { script, pool, letters, model, owned, keys: Vec::new() }
    }

    fn deliver(&mut self, key: usize) {
        let offset = self.script.deliver(self.owned, Some(KEYS[key]));
        let mut model = self.model.lock().expect("whole");
        assert_eq!(offset, self.keys.len() as u64);
        model.lanes[key].push(offset);
        self.keys.push(key);
    }

    /// The next owner reads from `from` on, but for what a position says is finished.
    fn assign(&mut self, from: u64, finished: &BTreeSet<u64>) {
        self.owned = self.script.assign(0);
        for offset in from..self.keys.len() as u64 {
            self.script.rewind(self.owned, offset);
            if !finished.contains(&offset) {
                self.script.deliver(self.owned, Some(KEYS[self.keys[offset as usize]]));
            }
        }
        self.script.rewind(self.owned, self.keys.len() as u64);
    }

    async fn step(&mut self, step: Step) {
        if matches!(step, Step::Lose(_) | Step::StoreFails(_)) {
            self.model.lock().expect("whole").once = false;
        }
        match step {
            Step::Deliver(key) => self.deliver(key),
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
            Step::Break(key, broken) => {
                let model = &mut self.model.lock().expect("whole").broken;
                if broken {
                    model.insert(key)
                } else {
                    model.remove(&key)
                };
            }
            Step::Redrive(key) => drop(self.letters.redrive(KEYS[key]).await),
            Step::HandOver => {
                self.script.revoke(self.owned, 300 * MS);
                let epoch = self.owned.epoch.0;
                until("it is released", || {
                    self.script.said().contains(&Said::Released { partition: 0, epoch })
                })
                .await;
                self.assign(0, &self.script.finished().into_iter().collect());
            }
            Step::Lose(uncommitted) => {
                let finished = self.script.finished();
                let kept = finished.len().saturating_sub(uncommitted as usize);
                self.script.lose(self.owned);
                self.assign(0, &finished[..kept].iter().copied().collect());
            }
            Step::StoreFails(fails) => {
                self.letters.state().store_fails = fails.then_some(ErrorKind::Unavailable);
            }
            Step::PublishFails(fails) => self.letters.state().publish_fails = fails,
            Step::ReadFails(fails) => self.letters.state().read_fails = fails,
        }
    }

    async fn end(mut self) -> Result<(), TestCaseError> {
        for step in [Step::StoreFails(false), Step::PublishFails(false), Step::ReadFails(false)] {
            self.step(step).await;
        }
        self.model.lock().expect("whole").broken.clear();
        for _ in 0..400 {
            tokio::time::sleep(200 * MS).await;
            for parked in self.letters.parked().await {
                let _ = self.letters.redrive(parked.key.as_str().expect("text")).await;
            }
            let finished: BTreeSet<u64> = self.script.finished().into_iter().collect();
            let settled = (0..self.keys.len() as u64).all(|offset| finished.contains(&offset));
            let wrong = self.model.lock().expect("whole").wrong.clone();
            prop_assert_eq!(wrong, None);
            let state = self.pool.state().await;
            let parked = self.letters.parked().await.len();
            // Paused: its list is not read yet.
            let begun = state.partitions.iter().all(|partition| !partition.paused);
            if !begun || state.lanes > 0 || !settled || !self.model.lock().expect("whole").all_succeeded() {
                continue;
            }
            prop_assert_eq!(state.partitions[0].parked_keys, parked);
            if parked == 0 {
                return Ok(());
            }
        }
        let state = self.pool.state().await;
        Err(TestCaseError::fail(format!(
            "it does not come to an end: {state:#?}, {:?}",
            self.letters.parked().await
        )))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn p2_parked_keys_do_what_the_plainest_model_says(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("can be built").block_on(async {
            let mut world = World::new();
            for step in steps {
                world.step(step).await;
            }
            world.end().await
        })?;
    }
}
