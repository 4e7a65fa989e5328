//! Batches against a naive model: whatever handlers do and whenever messages come, a batch is the next of its keys, no key is in
//! two, only those that failed wait, and nobody waits longer than the age of a batch (G1, G2, G3, G4).

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use ebus_core::{BatchOutcome, Delivery, Error, ErrorKind, Failures};
use ebus_pool::{Batch, Handlers, Pool, RetryPolicy};
use proptest::prelude::*;
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);
const RETRY: Duration = Duration::from_millis(30);
/// Timers count in milliseconds, and a message passes two tasks.
const SLACK: Duration = Duration::from_millis(6);
/// Where the offsets of the partition begin that stays; below are those of the one that is revoked.
const STAYS: u64 = 1_000;

/// What the handler says of one message.
#[derive(Debug, Clone, Copy)]
enum Behaviour {
    Ack,
    /// It is named so many times.
    Named(u32),
    /// So many times nobody is named; the handler panics, or fails.
    Nameless {
        times: u32,
        panics: bool,
    },
}

#[derive(Debug, Clone)]
struct Plan {
    /// Partition 0 or 1, key, time since the one before, what becomes of it.
    messages: Vec<(u8, u8, u64, Behaviour)>,
    batch: Batch,
    max: usize,
    age: Duration,
    distinct: bool,
    shards: usize,
    in_flight: usize,
    /// How long a batch runs.
    run: u64,
    /// Partition 0 is revoked after so many messages.
    revoked_after: usize,
}

fn plans() -> impl Strategy<Value = Plan> {
    let behaviour = prop_oneof![
        12 => Just(Behaviour::Ack),
        2 => (1u32..3).prop_map(Behaviour::Named),
        1 => (1u32..3, any::<bool>()).prop_map(|(times, panics)| Behaviour::Nameless { times, panics }),
    ];
    let gap = prop_oneof![6 => Just(0u64), 2 => 1u64..12];
    let messages = prop::collection::vec((0u8..2, 0u8..6, gap, behaviour), 1..120);
    let in_flight = prop_oneof![1usize..3, Just(1_000)];
    (messages, 1usize..12, 0u64..40, any::<bool>(), 1usize..3, in_flight, 0u64..5, 0usize..150).prop_map(
        |(messages, max, age, distinct, shards, in_flight, run, revoked_after)| {
            let age = MS * age as u32;
            let batch = Batch::of(max).max_age(age);
            let batch = if distinct { batch.distinct_keys() } else { batch };
            Plan { messages, batch, max, age, distinct, shards, in_flight, run, revoked_after }
        },
    )
}

/// What the model knows of a key.
#[derive(Default)]
struct Of {
    /// What was delivered and is not done, in order.
    open: Vec<u64>,
    /// When its first one may run, at the earliest.
    turn: Option<Instant>,
    running: bool,
}

struct Model {
    plan: Plan,
    keys: BTreeMap<String, Of>,
    behaviours: BTreeMap<u64, Behaviour>,
    /// Were in a batch that failed without a name: from then on each runs alone until it is done.
    suspects: BTreeSet<u64>,
    done: Vec<u64>,
    revoked: bool,
}

/// What the handler does.
enum Say {
    Each(Failures),
    Panic,
    Fail,
}

impl Model {
    fn delivered(&mut self, key: &str, offset: u64, behaviour: Behaviour) {
        self.behaviours.insert(offset, behaviour);
        let of = self.keys.entry(key.to_owned()).or_default();
        if of.open.is_empty() {
            of.turn = Some(Instant::now());
        }
        of.open.push(offset);
    }

    fn started(&mut self, batch: &[Delivery]) {
        let now = Instant::now();
        let offsets: Vec<u64> = batch.iter().map(Delivery::offset).collect();
        assert!(offsets.len() <= self.plan.max, "{} are too many", offsets.len());
        let mut first_turn: Option<Instant> = None;
        let mut seen = BTreeSet::new();
        for of_key in batch.chunk_by(|a, b| a.key() == b.key()) {
            let key = of_key[0].key().expect("all have one").to_string();
            assert!(seen.insert(key.clone()), "{key} stands in two places of {offsets:?}");
            assert!(!self.plan.distinct || of_key.len() == 1, "{key} is twice in {offsets:?}");
            let of = self.keys.get_mut(&key).expect("was delivered");
            assert!(!std::mem::replace(&mut of.running, true), "two batches have {key}");
            let given: Vec<u64> = of_key.iter().map(Delivery::offset).collect();
            assert_eq!(given, of.open[..given.len()], "{key} is not at its next");
            let turn = of.turn.expect("it has messages");
            let retried = of_key[0].attempt() > 1;
            assert!(now >= turn || !retried, "{key} ran {:?} before its retry", turn - now);
            first_turn = Some(first_turn.map_or(turn, |first| first.min(turn)));
            // With slots for all, and where no hand-over cancelled it, only its own failures keep a key waiting.
            if self.plan.in_flight > 10 && !self.revoked {
                assert!(now <= turn + self.plan.age + SLACK, "{key} waited {:?}", now - turn);
            }
        }
        let aged = first_turn.is_some_and(|first| now + MS >= first + self.plan.age);
        let alone = self.suspects.contains(&offsets[0]);
        assert!(!alone || offsets.len() == 1, "{offsets:?} are together with one that took others with it");
        if !self.plan.distinct && !self.revoked && !alone {
            assert!(aged || offsets.len() == self.plan.max, "{offsets:?} did not wait for others");
        }
    }

    /// What becomes of a batch, and what it comes to.
    fn ended(&mut self, batch: &[(String, u64)]) -> Say {
        let now = Instant::now();
        let nameless = batch.iter().find_map(|(_, offset)| match self.behaviours.get_mut(offset) {
            Some(Behaviour::Nameless { times, panics }) if *times > 0 => {
                *times -= 1;
                Some(*panics)
            }
            _ => None,
        });
        let mut failures = Failures::new();
        for (place, (key, offset)) in batch.iter().enumerate() {
            let of = self.keys.get_mut(key).expect("was delivered");
            let failed_before =
                std::mem::replace(&mut of.running, false) && place > 0 && of.open[0] > *offset;
            debug_assert!(!failed_before);
            if nameless.is_some() {
                of.turn = Some(now + RETRY);
                if batch.len() > 1 {
                    self.suspects.insert(*offset);
                }
                continue;
            }
            if of.open[0] != *offset {
                continue; // Behind one that failed: not begun, whatever is said of it.
            }
            match self.behaviours.get_mut(offset) {
                Some(Behaviour::Named(times)) if *times > 0 => {
                    *times -= 1;
                    failures.add(place, retry(RETRY));
                    of.turn = Some(now + RETRY);
                }
                _ => {
                    of.open.remove(0);
                    of.turn = Some(now);
                    self.done.push(*offset);
                }
            }
        }
        match nameless {
            Some(true) => Say::Panic,
            Some(false) => Say::Fail,
            None => Say::Each(failures),
        }
    }
}

async fn follow(plan: Plan) {
    let (mut script, source) = script();
    let model = Arc::new(Mutex::new(Model {
        plan: plan.clone(),
        keys: BTreeMap::new(),
        behaviours: BTreeMap::new(),
        suspects: BTreeSet::new(),
        done: Vec::new(),
        revoked: false,
    }));
    let violated = Arc::new(Mutex::new(None::<String>));
    let (of_handler, violation) = (model.clone(), violated.clone());
    let run = MS * plan.run as u32;
    let handler = tower::service_fn(move |batch: Vec<Delivery>| {
        let (model, violation) = (of_handler.clone(), violation.clone());
        // A panic of the model would be taken for one of the handler.
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            model.lock().unwrap_or_else(std::sync::PoisonError::into_inner).started(&batch);
        }));
        if let Err(panic) = checked {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "the model panicked".into());
            violation.lock().expect("nobody panics with it").get_or_insert(text);
        }
        let batch: Vec<(String, u64)> =
            batch.iter().map(|d| (d.key().expect("all have one").to_string(), d.offset())).collect();
        async move {
            if !run.is_zero() {
                tokio::time::sleep(run).await;
            }
            let said = model.lock().unwrap_or_else(std::sync::PoisonError::into_inner).ended(&batch);
            Ok::<_, Infallible>(match said {
                Say::Each(failures) => BatchOutcome::Each(failures),
                Say::Panic => std::panic::resume_unwind(Box::new("deliberate")),
                Say::Fail => {
                    BatchOutcome::Retry { after: None, error: Error::new(ErrorKind::Handler, "down") }
                }
            })
        }
    });
    let config = config()
        .with_shards(plan.shards)
        .with_max_in_flight(plan.in_flight)
        .with_retry(RetryPolicy::fixed(RETRY));
    let handlers = Handlers::new().batch(topic(), plan.batch, handler);
    let _pool = Pool::start_with(source, config, handlers).expect("valid");
    let (leaves, stays) = (script.assign(0), script.assign(1));
    script.rewind(stays, STAYS);
    let mut delivered = Vec::new();
    let mut revoked = false;
    for (at, (partition, key, gap, behaviour)) in plan.messages.iter().enumerate() {
        if *gap > 0 {
            tokio::time::sleep(MS * *gap as u32).await;
        }
        if at == plan.revoked_after {
            revoked = true;
            model.lock().expect("the model holds").revoked = true;
            script.revoke(leaves, MS * 200);
        }
        if *partition == 0 && revoked {
            continue;
        }
        let owned = if *partition == 0 { leaves } else { stays };
        let key = format!("{partition}-{key}");
        // Known to the model first: it may run before this returns.
        let mut model = model.lock().expect("the model holds");
        let offset = script.deliver(owned, Some(&key));
        model.delivered(&key, offset, *behaviour);
        delivered.push(offset);
    }
    // What a shard is told of after the end of its ownership is settled by nobody: the release gives it back.
    let staying = delivered.iter().filter(|offset| !revoked || **offset >= STAYS).count();
    let settled = tokio::time::timeout(Duration::from_secs(60), async {
        let stayed = |offset: &u64| !revoked || *offset >= STAYS;
        while script.finished().into_iter().filter(stayed).count() < staying
            || (revoked && !script.released())
        {
            tokio::time::sleep(MS * 5).await;
        }
    });
    let settled = settled.await;
    if let Some(violation) = violated.lock().expect("nobody panics with it").take() {
        panic!("{violation}");
    }
    assert!(settled.is_ok(), "not settled: {:?} {:?} of {delivered:?}", script.finished(), script.dropped());
    let finished: BTreeSet<u64> = script.finished().into_iter().collect();
    let dropped: BTreeSet<u64> = script.dropped().into_iter().collect();
    assert_eq!(
        finished.len() + dropped.len(),
        script.finished().len() + script.dropped().len(),
        "settled once"
    );
    assert!(finished.is_disjoint(&dropped));
    assert!(dropped.iter().all(|offset| *offset < STAYS && revoked), "only what was revoked: {dropped:?}");
    let model = model.lock().expect("the model holds");
    assert_eq!(finished, model.done.iter().copied().collect(), "finished is what the handler has done");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn p2_batches_follow_a_naive_model(plan in plans()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("runtime");
        runtime.block_on(follow(plan));
    }
}
