//! Parked keys: the order of a key goes on in the dead-letter topic, and comes back from there (G1, G2, G3, G5, G8).

mod common;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use common::letters::Letters;
use common::*;
use ebus_core::{Epoch, ErrorKind, Handler, Lease, Outcome, Owned};
use ebus_pool::{Doing, Pool, RetryPolicy};

const MS: Duration = Duration::from_millis(1);

/// Offsets that are rejected.
#[derive(Clone, Default)]
struct Bad(Arc<Mutex<BTreeSet<u64>>>);

impl Bad {
    fn of(offsets: &[u64]) -> Self {
        Self(Arc::new(Mutex::new(offsets.iter().copied().collect())))
    }

    fn set(&self, offsets: &[u64]) {
        *self.0.lock().expect("no test panicked with it") = offsets.iter().copied().collect();
    }

    fn has(&self, offset: u64) -> bool {
        self.0.lock().expect("no test panicked with it").contains(&offset)
    }
}

/// Takes a millisecond, and rejects what is bad.
fn judging(log: &Log, bad: &Bad) -> impl Handler {
    let (log, bad) = (log.clone(), bad.clone());
    handler(move |delivery| {
        let (run, bad) = (log.run(&delivery), bad.clone());
        async move {
            tokio::time::sleep(MS).await;
            run.end();
            if bad.has(delivery.offset()) { reject() } else { Outcome::Ack }
        }
    })
}

struct World {
    script: Script,
    pool: Pool,
    letters: Letters,
    log: Log,
    bad: Bad,
}

fn world(bad: &[u64], most: usize) -> World {
    world_with(bad, most, Letters::default())
}

fn world_with(bad: &[u64], most: usize, letters: Letters) -> World {
    let (script, source) = script();
    let (log, bad) = (Log::default(), Bad::of(bad));
    let pool = Pool::start(source, letters.config(most)).expect("valid");
    pool.subscribe(topic(), judging(&log, &bad)).expect("open");
    World { script, pool, letters, log, bad }
}

impl World {
    fn deliver(&mut self, owned: Owned, keys: &[&str]) {
        for key in keys {
            self.script.deliver(owned, Some(key));
        }
    }

    async fn finished(&self, count: usize) {
        until("all are finished", || self.script.finished().len() >= count).await;
    }

    async fn redriven(&self, key: &str) {
        self.letters.redrive(key).await.expect("it is parked");
        let free = async {
            while self.letters.parked().await.iter().any(|parked| parked.key == key.into()) {
                tokio::time::sleep(MS).await;
            }
        };
        tokio::time::timeout(600_000 * MS, free).await.expect("it is redriven in time");
    }
}

/// Key `a` is parked with its first messages, so many of them.
async fn parked(count: usize) -> (World, Owned) {
    let mut world = world(&[0], 10);
    let owned = world.script.assign(0);
    world.deliver(owned, &vec!["a"; count]);
    world.finished(count).await;
    (world, owned)
}

/// Offsets and reasons.
fn letters(told: &[(u64, &str)]) -> Vec<(u64, String)> {
    told.iter().map(|(offset, reason)| (*offset, (*reason).to_owned())).collect()
}

#[tokio::test(start_paused = true)]
async fn p2_what_follows_a_dead_letter_waits_for_it_in_the_dead_letter_topic() {
    let mut world = world(&[0], 10);
    let owned = world.script.assign(0);
    world.deliver(owned, &["a", "b", "a", "a", "b"]);
    world.finished(5).await;
    assert_eq!(world.letters.told(), letters(&[(0, "rejected"), (2, "parked"), (3, "parked")]));
    assert_eq!(world.log.starts(), [0, 1, 4], "no run of what follows, and b goes on");
    let parked = world.letters.parked().await;
    assert_eq!(parked.len(), 1);
    assert_eq!((parked[0].key.as_str(), parked[0].offset, parked[0].next_letter), (Some("a"), 0, 0));
    assert!(parked[0].error.contains("never"), "{}", parked[0].error);
    let state = world.pool.state().await;
    assert_eq!((state.counters.dead_letters, state.counters.parked), (3, 2));
    assert_eq!(state.partitions[0].parked_keys, 1);

    world.bad.set(&[]);
    world.redriven("a").await;
    assert_eq!(world.log.starts(), [0, 1, 4, 0, 2, 3], "in order");
    world.deliver(owned, &["a"]);
    world.finished(6).await;
    assert_eq!(world.log.starts().last(), Some(&5), "the lane goes on");
    assert_eq!(world.letters.told().len(), 3);
    let state = world.pool.state().await;
    assert_eq!((state.counters.redriven, state.partitions[0].parked_keys), (3, 0));
    assert_eq!(state.counters.handled, 3, "what was redriven is counted apart");
}

#[tokio::test(start_paused = true)]
async fn p2_what_arrives_while_a_key_is_redriven_waits_for_its_end() {
    let (mut world, owned) = parked(3).await;
    world.bad.set(&[]);
    world.letters.redrive("a").await.expect("it is parked");
    until("the first one runs again", || world.log.starts().len() >= 2).await;
    world.deliver(owned, &["a", "a", "b"]);
    until("b goes on meanwhile", || world.script.finished().contains(&5)).await;
    world.finished(6).await;
    let of_a: Vec<_> = world.log.starts().into_iter().filter(|offset| *offset != 5).collect();
    assert_eq!(of_a, [0, 0, 1, 2, 3, 4]);
    assert_eq!(world.letters.told().len(), 3, "nothing followed any more");
}

#[tokio::test(start_paused = true)]
async fn p8_a_redrive_that_fails_again_stops_there_and_says_so() {
    let (mut world, owned) = parked(4).await;
    world.bad.set(&[2]);
    world.letters.redrive("a").await.expect("it is parked");
    until("2 was tried", || world.log.starts().contains(&2)).await;
    while !world.letters.parked().await[0].stopped {
        tokio::time::sleep(MS).await;
    }
    let parked = &world.letters.parked().await[0];
    assert_eq!((parked.offset, parked.redriven.0, parked.next_letter), (0, 2, 2));
    assert!(world.letters.state().requests.is_empty(), "it is not tried for ever");
    world.deliver(owned, &["a"]);
    world.finished(5).await;
    assert_eq!(world.letters.told().last(), Some(&(4, "parked".to_owned())), "it is parked as before");
    world.bad.set(&[]);
    world.redriven("a").await;
    assert_eq!(world.log.starts(), [0, 0, 1, 2, 2, 3, 4], "it goes on with the one that failed");
}

/// Nothing tells a member of a partition which keys are parked but the list.
#[tokio::test(start_paused = true)]
async fn p2_nothing_is_delivered_before_the_list_is_read() {
    let mut world = world(&[], 10);
    world.letters.state().store_fails = Some(ErrorKind::Unavailable);
    let owned = world.script.assign(0);
    world.deliver(owned, &["a", "b"]);
    until("the partition is paused", || world.script.said().contains(&Said::Paused { partition: 0 })).await;
    tokio::time::sleep(60 * 1000 * MS).await;
    assert!(world.log.entries().is_empty(), "{:?}", world.log.entries());
    let trouble = world.pool.state().await.trouble.expect("it says why");
    assert_eq!(trouble.kind(), ErrorKind::Unavailable);
    world.letters.state().store_fails = None;
    world.finished(2).await;
    assert!(world.script.said().contains(&Said::Resumed { partition: 0 }));
}

#[tokio::test(start_paused = true)]
async fn p2_a_list_that_cannot_be_read_holds_its_partition() {
    let mut world = world(&[], 10);
    world.letters.state().value = Some("something else".into());
    let owned = world.script.assign(0);
    world.deliver(owned, &["a"]);
    tokio::time::sleep(60 * 1000 * MS).await;
    assert!(world.log.entries().is_empty());
    assert_eq!(world.pool.state().await.trouble.map(|error| error.kind()), Some(ErrorKind::Decode));
    world.letters.state().value = None;
    world.finished(1).await;
}

/// What waits for its parked keys has never begun: it is given up at once.
#[tokio::test(start_paused = true)]
async fn p9_a_partition_that_waits_for_its_list_can_be_revoked_lost_and_drained() {
    let mut world = world(&[], 10);
    world.letters.state().store_fails = Some(ErrorKind::Unavailable);
    let owned = world.script.assign(0);
    world.deliver(owned, &["a"]);
    world.script.revoke(owned, 1000 * MS);
    until("it is released", || world.script.released()).await;
    assert_eq!(world.script.dropped(), [0]);
    let owned = world.script.assign(0);
    world.script.lose(owned);
    let owned = world.script.assign(0);
    world.script.rewind(owned, 0);
    world.deliver(owned, &["a"]);
    let report = world.pool.drain(1000 * MS).await;
    assert!(report.committed.is_ok(), "{report:?}");
    assert!(world.log.entries().is_empty());
}

#[tokio::test(start_paused = true)]
async fn p9_nobody_asks_for_the_list_of_a_partition_that_is_lost() {
    let world = world(&[], 10);
    world.letters.state().store_fails = Some(ErrorKind::Unavailable);
    let owned = world.script.assign(0);
    until("it is asked for", || world.letters.state().claims >= 2).await;
    world.script.lose(owned);
    tokio::time::sleep(MS).await;
    let before = world.letters.state().claims;
    tokio::time::sleep(60 * 1000 * MS).await;
    assert_eq!(world.letters.state().claims, before);
}

#[tokio::test(start_paused = true)]
async fn p1_a_dead_letter_is_settled_only_after_the_list_is_written() {
    let mut world = world(&[0], 10);
    let owned = world.script.assign(0);
    world.deliver(owned, &["b"]);
    world.bad.set(&[1]);
    world.finished(1).await;
    world.letters.state().store_fails = Some(ErrorKind::Unavailable);
    world.deliver(owned, &["a", "a"]);
    until("the letter is there", || !world.letters.told().is_empty()).await;
    tokio::time::sleep(60 * 1000 * MS).await;
    assert_eq!(world.script.finished(), [0], "neither it nor what follows is settled");
    let stuck = world.pool.state().await.stuck;
    assert_eq!((stuck[0].offset, stuck[0].doing, stuck[0].waiting_behind), (1, Doing::DeadLetter, 1));
    world.letters.state().store_fails = None;
    world.finished(3).await;
    assert_eq!(world.letters.told(), letters(&[(1, "rejected"), (2, "parked")]));
}

/// Crashed between the letter and the list: it runs again, as after any crash.
#[tokio::test(start_paused = true)]
async fn p1_crashed_before_the_list_was_written_it_runs_again() {
    let mut world = world(&[0], 10);
    let owned = world.script.assign(0);
    until("the list was read", || world.script.said().contains(&Said::Resumed { partition: 0 })).await;
    world.letters.state().store_fails = Some(ErrorKind::Unavailable);
    world.deliver(owned, &["a", "a"]);
    until("the letter is there", || !world.letters.told().is_empty()).await;
    world.script.lose(owned);
    world.letters.state().store_fails = None;
    world.bad.set(&[]);
    let owned = world.script.assign(0);
    world.script.rewind(owned, 0);
    world.deliver(owned, &["a", "a"]);
    world.finished(2).await;
    assert_eq!(world.log.starts(), [0, 0, 1]);
    assert!(world.letters.parked().await.is_empty());
}

/// Crashed between the list and the commit: what parked the key is known by its offset, and what followed is not redriven twice.
#[tokio::test(start_paused = true)]
async fn p2_crashed_before_the_commit_what_was_parked_comes_again_and_is_redriven_once() {
    let (mut world, owned) = parked(3).await;
    world.script.lose(owned);
    let owned = world.script.assign(0);
    world.script.rewind(owned, 0);
    world.deliver(owned, &["a", "a", "a", "a"]);
    world.finished(7).await;
    let twice = [(0, "rejected"), (1, "parked"), (2, "parked"), (1, "parked"), (2, "parked"), (3, "parked")];
    assert_eq!(world.letters.told(), letters(&twice));
    world.bad.set(&[]);
    world.redriven("a").await;
    assert_eq!(world.log.starts(), [0, 0, 1, 2, 3]);
}

/// The redrive is quicker than the source: what it delivers later was handled.
#[tokio::test(start_paused = true)]
async fn p6_what_was_redriven_is_settled_without_a_run_when_the_source_delivers_it_again() {
    let (mut world, owned) = parked(3).await;
    world.script.lose(owned);
    world.bad.set(&[]);
    let owned = world.script.assign(0);
    world.redriven("a").await;
    world.script.rewind(owned, 0);
    world.deliver(owned, &["a", "a", "a", "a", "a"]);
    world.finished(8).await;
    assert_eq!(world.log.starts(), [0, 0, 1, 2, 3, 4]);
    assert_eq!(world.letters.told().len(), 3);
}

/// What it had redriven before it stopped was there only for the next owner: this one made it a dead letter again.
#[tokio::test(start_paused = true)]
async fn p6_what_was_redriven_before_a_redrive_stopped_is_no_dead_letter_when_it_comes_again() {
    let (mut world, owned) = parked(4).await;
    world.script.lose(owned);
    world.bad.set(&[2]);
    let owned = world.script.assign(0);
    world.letters.redrive("a").await.expect("it is parked");
    until("it has stopped", || world.letters.state().requests.is_empty()).await;
    assert_eq!(world.letters.parked().await[0].redriven.0, 2);
    world.script.rewind(owned, 0);
    world.deliver(owned, &["a"; 5]);
    world.finished(9).await;
    let told: Vec<_> = world.letters.told().into_iter().map(|(offset, _)| offset).collect();
    assert_eq!(told, [0, 1, 2, 3, 2, 3, 4], "0 and 1 were handled");
    assert_eq!(world.pool.counters().skipped, 2);
    world.bad.set(&[]);
    world.redriven("a").await;
    assert_eq!(world.log.starts(), [0, 0, 1, 2, 2, 3, 4]);
}

/// The same over a hand-over: the list knows it until the source has delivered all of it.
#[tokio::test(start_paused = true)]
async fn p6_what_was_redriven_does_not_run_at_the_next_owner_either() {
    let (mut world, owned) = parked(3).await;
    world.script.lose(owned);
    world.bad.set(&[]);
    let owned = world.script.assign(0);
    world.redriven("a").await;
    world.script.revoke(owned, 1000 * MS);
    until("it is released", || world.script.released()).await;
    let owned = world.script.assign(0);
    world.script.rewind(owned, 0);
    world.deliver(owned, &["a", "a", "a", "a"]);
    world.finished(7).await;
    assert_eq!(world.log.starts(), [0, 0, 1, 2, 3]);
    let empty = b"ebus-parked 1\nend 0\n";
    until("it is forgotten then", || world.letters.state().value.as_deref() == Some(empty)).await;
}

/// They were handled, and came again as dead letters that "never ran".
#[tokio::test(start_paused = true)]
async fn p8_what_was_handled_before_the_key_was_parked_is_no_dead_letter_when_it_comes_again() {
    let mut world = world(&[2], 10);
    let owned = world.script.assign(0);
    world.deliver(owned, &["a", "a", "a", "a"]);
    world.finished(4).await;
    world.script.lose(owned);
    let owned = world.script.assign(0);
    world.script.rewind(owned, 0);
    world.deliver(owned, &["a", "a", "a"]);
    world.finished(7).await;
    assert_eq!(world.letters.told(), letters(&[(2, "rejected"), (3, "parked")]));
    assert_eq!(world.log.starts(), [0, 1, 2]);
    assert_eq!(world.pool.counters().skipped, 3);
}

/// The second request was the same bytes as the first, and was removed with it.
#[tokio::test(start_paused = true)]
async fn p8_a_redrive_that_is_asked_for_as_the_one_before_stops_is_not_lost() {
    let (world, _) = parked(2).await;
    world.letters.redrive("a").await.expect("it is parked");
    until("it runs again", || world.log.starts().len() == 2).await;
    let first = world.letters.state().requests[0].clone();
    // Before the answer to the first one, which must not be one to this.
    world.letters.redrive("a").await.expect("it is parked");
    let second = world.letters.state().requests.clone();
    assert!(
        second.len() == 1 && second[0] != first,
        "it takes the place of the first, and is another: {second:?}"
    );
    world.bad.set(&[]);
    until("the second is done", || world.log.starts() == [0, 0, 0, 1] || world.log.starts() == [0, 0, 1])
        .await;
}

/// Each call stored one request more while nobody owned the partition, and what still failed ran once more for each of them.
#[tokio::test(start_paused = true)]
async fn p5_however_often_a_redrive_is_asked_for_it_is_one() {
    let (before, owned) = parked(2).await;
    before.script.lose(owned);
    for _ in 0..50 {
        before.letters.redrive("a").await.expect("it is parked");
    }
    let asked = before.letters.state().requests.clone();
    assert_eq!(asked.len(), 1, "{asked:?}");
    // As those of others who asked at the same moment: they differ in nothing but the time.
    let text = String::from_utf8(asked[0].to_vec()).expect("text");
    let (same, time) = text.rsplit_once(' ').expect("the time is last");
    let time: u128 = time.parse().expect("a number");
    before.letters.state().requests.extend((1..50).map(|i| format!("{same} {}", time - i).into()));
    let later = world_with(&[0], 10, before.letters.clone());
    later.script.assign_under(0, Epoch(2), Lease::unlimited());
    until("all are answered", || later.letters.state().requests.is_empty()).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(later.log.starts(), [0], "one redrive, which was given up");
    assert!(later.letters.parked().await[0].stopped);
}

/// By a clock that is behind it was the same request as the one before, or an older one, and its answer that of the former.
#[tokio::test(start_paused = true)]
async fn p8_a_redrive_that_is_asked_for_by_a_clock_that_is_behind_is_not_lost() {
    let (world, _) = parked(1).await;
    let ahead = Bytes::from(format!("redrive a 0 {}", u128::from(u64::MAX) << 8));
    world.letters.state().requests = vec![ahead.clone()];
    until("it runs again", || world.log.starts().len() == 2).await;
    world.letters.redrive("a").await.expect("it is parked");
    let asked = world.letters.state().requests.clone();
    assert!(asked.len() == 1 && asked[0] != ahead, "{asked:?}");
    until("it is done too", || world.log.starts().len() == 3).await;
}

/// All letters are gone, or stand elsewhere: nobody may take silence for the end.
#[tokio::test(start_paused = true)]
async fn p1_a_dead_letter_topic_that_was_made_anew_is_looked_through_and_what_is_missing_stops_the_redrive() {
    let mut world = world(&[3], 10);
    let owned = world.script.assign(0);
    world.deliver(owned, &["b", "b", "b", "a", "a"]);
    world.finished(5).await;
    world.bad.set(&[]);
    world.letters.state().letters.clear();
    world.deliver(owned, &["a", "a"]);
    world.finished(7).await;
    assert_eq!(world.letters.told(), letters(&[(5, "parked"), (6, "parked")]), "in the new one");
    world.letters.redrive("a").await.expect("it is parked");
    world.redriven("a").await;
    let of_a: Vec<_> = world.log.starts().into_iter().filter(|offset| *offset >= 3).collect();
    assert_eq!(of_a, [3, 5, 6], "what is left runs, in order");

    world.bad.set(&[7]);
    world.deliver(owned, &["a", "a"]);
    world.finished(9).await;
    world.bad.set(&[]);
    world.letters.state().letters.clear();
    world.letters.redrive("a").await.expect("it is parked");
    while !world.letters.parked().await[0].stopped {
        tokio::time::sleep(MS).await;
    }
    let parked = &world.letters.parked().await[0];
    assert!(parked.error.contains("missing"), "{}", parked.error);
    assert_eq!(world.pool.state().await.trouble.map(|error| error.kind()), Some(ErrorKind::NotFound));
    world.deliver(owned, &["a"]);
    world.finished(10).await;
    assert_eq!(world.log.starts().len(), 7, "the lane did not go on");
}

/// A copy from another cluster, or anybody's: its offset is not of this partition.
#[tokio::test(start_paused = true)]
async fn p1_a_letter_of_a_message_that_was_never_there_is_left_alone() {
    let (mut world, owned) = parked(2).await;
    world.bad.set(&[]);
    world.letters.state().source_end = 2;
    for offset in ["2", "1000", "18446744073709551615"] {
        let mut state = world.letters.state();
        let mut copy = state.letters[1].clone();
        copy.headers.remove(ebus_pool::dead_letter::OFFSET);
        copy.headers.append(ebus_pool::dead_letter::OFFSET, offset);
        state.letters.push(copy);
    }
    world.redriven("a").await;
    world.deliver(owned, &["a"]);
    world.finished(3).await;
    assert_eq!(world.log.starts(), [0, 0, 1, 2]);
}

/// The broker took it for the letter of a topic's former life, and stored nothing.
#[tokio::test(start_paused = true)]
async fn p1_a_dead_letter_of_a_topic_made_anew_is_no_duplicate_of_the_old_one() {
    let mut world = world(&[0], 10);
    world.letters.state().ids = Some(Default::default());
    let owned = world.script.assign(0);
    world.deliver(owned, &["b"]);
    world.finished(1).await;
    world.script.lose(owned);
    world.letters.state().value = None;
    let owned = world.script.assign(0);
    world.script.rewind(owned, 0);
    world.deliver(owned, &["c"]);
    world.finished(2).await;
    let keys: Vec<_> = world.letters.state().letters.iter().map(|letter| letter.key.clone()).collect();
    assert_eq!(keys, [Some("b".into()), Some("c".into())]);
}

/// Crashed in the middle of a redrive: the next owner goes on behind what was kept.
#[tokio::test(start_paused = true)]
async fn p6_crashed_while_redriving_only_what_was_not_kept_runs_again() {
    let (mut world, owned) = parked(4).await;
    world.bad.set(&[]);
    world.letters.redrive("a").await.expect("it is parked");
    until("1 was redriven", || world.log.starts() == [0, 0, 1]).await;
    world.letters.state().store_fails = Some(ErrorKind::Unavailable);
    until("1 has ended", || world.log.entries().len() >= 6).await;
    tokio::time::sleep(1000 * MS).await;
    assert_eq!(world.log.starts(), [0, 0, 1], "2 waits until it is kept that 1 is done");
    world.script.lose(owned);
    world.letters.state().store_fails = None;
    let owned = world.script.assign(0);
    world.script.rewind(owned, 4);
    world.deliver(owned, &["a"]);
    until("nobody had to ask again", || world.log.starts().last() == Some(&4)).await;
    assert_eq!(world.log.starts(), [0, 0, 1, 1, 2, 3, 4]);
}

/// A hand-over with notice repeats nothing: what is redriven is kept before the partition is released.
#[tokio::test(start_paused = true)]
async fn p6_handed_over_while_redriving_nothing_runs_again() {
    let (mut world, owned) = parked(4).await;
    world.bad.set(&[]);
    world.letters.redrive("a").await.expect("it is parked");
    until("1 is being redriven", || world.log.starts() == [0, 0, 1]).await;
    world.deliver(owned, &["a"]);
    world.script.revoke(owned, 1000 * MS);
    until("it is released", || world.script.released()).await;
    assert_eq!(world.log.cancelled(), 0);
    assert_eq!(world.letters.parked().await[0].redriven.0, 2, "kept before the release");
    assert_eq!(world.script.dropped(), [4], "what waited is the next owner's");
    let owned = world.script.assign(0);
    world.script.rewind(owned, 4);
    world.deliver(owned, &["a"]);
    until("it goes on", || world.log.starts().last() == Some(&4)).await;
    assert_eq!(world.log.starts(), [0, 0, 1, 2, 3, 4]);
}

/// A former owner that does not know it yet can change nothing.
#[tokio::test(start_paused = true)]
async fn p3_a_former_owner_neither_parks_nor_frees() {
    let letters = Letters::default();
    let mut former = world_with(&[0], 10, letters.clone());
    let owned = former.script.assign(0);
    former.deliver(owned, &["b"]);
    until("it began", || !former.log.starts().is_empty()).await;
    letters.state().epoch = 99;
    former.deliver(owned, &["a", "a"]);
    former.bad.set(&[1]);
    until("its letter is there", || letters.told().iter().any(|told| told.0 == 1)).await;
    tokio::time::sleep(60 * 1000 * MS).await;
    assert!(letters.parked().await.is_empty());
    assert!(!former.script.finished().contains(&1), "and it settles nothing");
    assert_eq!(former.pool.state().await.trouble.map(|error| error.kind()), Some(ErrorKind::Fenced));
    former.script.lose(owned);
    let report = former.pool.drain(1000 * MS).await;
    assert!(report.committed.is_ok(), "and hangs nobody");
}

/// Takes over from `former`, which is not told; committed is what is below `from`.
fn taken_over(former: &World, from: u64) -> (World, Owned) {
    let mut later = world_with(&[], 10, former.letters.clone());
    let epoch = Epoch(former.letters.state().epoch + 1);
    let owned = later.script.assign_under(0, epoch, Lease::unlimited());
    later.script.rewind(owned, from);
    (later, owned)
}

/// It followed an earlier parking, and was ahead: its letter stood in front of those of the later parking that come before it, and
/// the redrive took it first and skipped them.
#[tokio::test(start_paused = true)]
async fn p1_letters_of_a_former_owner_between_those_of_a_later_parking_are_left_alone() {
    let mut former = world(&[0], 10);
    let had = former.script.assign(0);
    former.deliver(had, &["a", "a"]);
    former.finished(2).await;
    // Each looks for requests twice a second from its beginning on: asked so, the later one is the first to see it.
    tokio::time::sleep(250 * MS).await;
    let (mut later, owned) = taken_over(&former, 2);
    tokio::time::sleep(350 * MS).await;
    later.redriven("a").await;
    former.deliver(had, &["a", "a"]);
    former.finished(4).await;
    later.bad.set(&[2]);
    later.deliver(owned, &["a"]);
    later.finished(1).await;
    former.deliver(had, &["a"]);
    former.finished(5).await;
    later.deliver(owned, &["a", "a"]);
    later.finished(3).await;
    let told: Vec<_> = later.letters.told().into_iter().map(|(offset, _)| offset).collect();
    assert_eq!(told, [0, 1, 2, 3, 2, 4, 3, 4], "4 of the former owner stands before 3 of the later one");
    assert_eq!(later.letters.parked().await[0].epoch, owned.epoch);
    later.bad.set(&[]);
    later.redriven("a").await;
    assert_eq!(later.log.starts(), [0, 1, 2, 2, 3, 4], "each once, in order");
    later.deliver(owned, &["a"]);
    later.finished(4).await;
    assert_eq!(later.log.starts().last(), Some(&5));
}

/// It knew of no such key, took the request for one in vain, and nobody ever redrove the key.
#[tokio::test(start_paused = true)]
async fn p8_a_former_owner_takes_no_request_of_a_later_one_away() {
    let mut former = world(&[0], 10);
    let had = former.script.assign(0);
    former.deliver(had, &["z"]);
    former.finished(1).await;
    let (mut later, owned) = taken_over(&former, 1);
    later.bad.set(&[1]);
    later.deliver(owned, &["a"]);
    later.finished(1).await;
    later.script.lose(owned);
    let _ = later.pool.drain(MS).await;
    for key in ["a", "z"] {
        later.letters.redrive(key).await.expect("it is parked");
    }
    former.bad.set(&[]);
    tokio::time::sleep(60_000 * MS).await;
    assert_eq!(later.letters.state().requests.len(), 2, "they wait for the next owner");
    assert_eq!(former.pool.state().await.trouble.map(|error| error.kind()), Some(ErrorKind::Fenced));
}

#[tokio::test(start_paused = true)]
async fn p5_when_the_list_is_full_a_message_waits_is_visible_and_goes_on_when_there_is_room() {
    let mut world = world(&[0, 1], 1);
    let owned = world.script.assign(0);
    world.deliver(owned, &["a", "b", "b", "c"]);
    world.finished(2).await;
    tokio::time::sleep(5_000 * MS).await;
    assert_eq!(world.script.finished().len(), 2, "a is parked and c is done");
    let stuck = world.pool.state().await.stuck;
    assert_eq!((stuck[0].offset, stuck[0].doing), (1, Doing::Retrying));
    let why = stuck[0].last_error.as_ref().expect("it failed").chain();
    assert!(why.contains("full: at most 1 keys") && why.contains("never"), "{why}");
    world.bad.set(&[1]);
    world.redriven("a").await;
    world.finished(4).await;
    assert_eq!(world.letters.told(), letters(&[(0, "rejected"), (1, "rejected"), (2, "parked")]));
}

#[tokio::test(start_paused = true)]
async fn p5_the_list_never_outgrows_what_the_store_keeps() {
    let letters = Letters::default();
    letters.state().max_bytes = Some(2_000);
    let all: Vec<u64> = (0..40).collect();
    let mut world = world_with(&all, 3, letters);
    let owned = world.script.assign(0);
    for i in 0..40 {
        // Three times as long where it is kept.
        let key = format!("{i}{}", "ü".repeat(100));
        world.script.deliver(owned, Some(&key));
    }
    until("some are parked", || !world.script.finished().is_empty()).await;
    tokio::time::sleep(10_000 * MS).await;
    assert_eq!(world.letters.parked().await.len(), 2);
    let state = world.pool.state().await;
    assert_eq!(
        (state.partitions[0].parked_keys, state.stuck.len()),
        (2, 38),
        "no place is lost, and all others are listed"
    );
    let why = state.stuck[0].last_error.as_ref().expect("it failed").chain();
    assert!(why.contains("2 keys take 1734 of 1936 bytes") && why.contains("never"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_key_parks_nothing() {
    let mut world = world(&[0], 10);
    let owned = world.script.assign(0);
    world.script.deliver(owned, None);
    world.script.deliver(owned, None);
    world.finished(2).await;
    assert_eq!(world.letters.told(), letters(&[(0, "rejected")]));
    assert!(world.letters.parked().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn p8_a_request_means_one_parking_and_no_later_one() {
    let mut world = world(&[0, 2], 10);
    let owned = world.script.assign(0);
    world.deliver(owned, &["a"]);
    world.finished(1).await;
    world.bad.set(&[2]);
    let request = {
        world.letters.redrive("a").await.expect("it is parked");
        world.letters.state().requests[0].clone()
    };
    world.redriven("a").await;
    world.deliver(owned, &["a", "a"]);
    world.finished(3).await;
    world.letters.state().requests = vec![request, "nonsense".into()];
    until("they are cleared away", || world.letters.state().requests.is_empty()).await;
    assert_eq!(world.log.starts(), [0, 0, 1, 2], "2 was not redriven");
    let refused = world.letters.redrive("b").await.expect_err("b is not parked");
    assert_eq!(refused.kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn p8_dead_letters_that_cannot_be_read_are_told_and_read_later() {
    let (mut world, owned) = parked(2).await;
    world.bad.set(&[]);
    world.letters.state().read_fails = true;
    world.letters.redrive("a").await.expect("it is parked");
    tokio::time::sleep(5_000 * MS).await;
    assert_eq!(world.pool.state().await.trouble.map(|error| error.kind()), Some(ErrorKind::Unavailable));
    world.deliver(owned, &["a"]);
    world.finished(3).await;
    assert_eq!(world.letters.told().len(), 3, "what arrives is not held for ever");
    world.letters.state().read_fails = false;
    world.redriven("a").await;
    assert_eq!(world.log.starts(), [0, 0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn p8_a_redriven_message_says_that_it_is_one_and_its_retries_count_anew() {
    let mut world = world(&[], 10);
    let seen: Arc<Mutex<Vec<(u64, u32, bool)>>> = Arc::default();
    let (told, fails) = (seen.clone(), Arc::new(Mutex::new(3)));
    let (script, source) = script();
    let config = world.letters.config(10).with_retry(RetryPolicy::fixed(MS).max_attempts(2));
    let pool = Pool::start(source, config).expect("valid");
    world.script = script;
    pool.subscribe(
        topic(),
        handler(move |delivery| {
            let dead = delivery.headers().contains(ebus_pool::dead_letter::ID);
            told.lock().expect("whole").push((delivery.offset(), delivery.attempt(), dead));
            let mut fails = fails.lock().expect("whole");
            let fail = delivery.offset() == 0 && *fails > 0;
            *fails -= u32::from(fail);
            async move { if fail { retry(MS) } else { Outcome::Ack } }
        }),
    )
    .expect("open");
    let owned = world.script.assign(0);
    world.deliver(owned, &["a", "a"]);
    world.finished(2).await;
    world.redriven("a").await;
    let runs = seen.lock().expect("whole").clone();
    assert_eq!(runs, [(0, 1, false), (0, 2, false), (0, 1, true), (0, 2, true), (1, 1, true)]);
}

#[test]
fn i06_what_does_not_go_together_is_refused() {
    let letters = Letters::default();
    for (config, says) in [
        (config().with_parked_keys(1), "need a dead-letter topic"),
        (letters.config(0), "at least 1"),
        (config().with_parked_keys(1).with_drop_rejected(), "what is dropped has no order"),
    ] {
        let error = config.validate().expect_err(says);
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(letters.config(1).validate().is_ok());
}

/// `park_keys(10_000)` was accepted where a thousand fit, and the others were stuck.
#[test]
fn p8_more_parked_keys_than_are_kept_for_sure_are_refused_with_the_most_that_are() {
    let letters = Letters::default();
    letters.state().max_bytes = Some(512 << 10);
    assert!(letters.config(1_004).validate().is_ok());
    let error = letters.config(1_005).validate().expect_err("does not fit");
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert!(error.to_string().contains("at most 1004 keys"), "{error}");
    let error = letters.config(2).with_budget_bytes(4_000).validate().expect_err("the budget is small");
    assert!(error.to_string().contains("at most 1 keys"), "{error}");
}
