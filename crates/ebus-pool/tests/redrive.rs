//! A redrive finds the letters of its key, all of them and from the first, or says that it did not (G1, G2).

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use common::letters::Letters;
use common::*;
use ebus_core::{Outcome, Owned};
use ebus_pool::{ParkedKey, Pool, dead_letter};

const MS: Duration = Duration::from_millis(1);

/// Keys `b` and `a` are parked, with letters in the places 0 and 1, and 2, 3 and 4; from now on all is handled, `b` in an hour.
async fn parked() -> (Script, Letters, Log, Pool, Owned) {
    let (mut script, source) = script();
    let (letters, log, heals) = (Letters::default(), Log::default(), Arc::new(AtomicBool::new(false)));
    let pool = Pool::start(source, letters.config(10)).expect("valid");
    let (seen, healed) = (log.clone(), heals.clone());
    let failing = handler(move |delivery| {
        seen.run(&delivery).end();
        let (healed, hour) = (healed.load(SeqCst), Duration::from_secs(3_600));
        async move {
            if !healed {
                return reject();
            }
            tokio::time::sleep(if delivery.offset() < 2 { hour } else { MS }).await;
            Outcome::Ack
        }
    });
    pool.subscribe(topic(), failing).expect("open");
    let owned = script.assign(0);
    for (count, key) in (1..).zip(["b", "b", "a", "a", "a"]) {
        script.deliver(owned, Some(key));
        until("it has its letter", || script.finished().len() == count).await;
    }
    heals.store(true, SeqCst);
    (script, letters, log, pool, owned)
}

/// Asks for `a`, and waits until that is answered; what the list says of it then.
async fn redriven(letters: &Letters) -> Option<ParkedKey> {
    letters.redrive("a").await.expect("it is parked");
    until("it is answered", || letters.state().requests.is_empty()).await;
    // The lane goes on after the answer.
    tokio::time::sleep(MS).await;
    letters.parked().await.into_iter().find(|parked| parked.key == "a".into())
}

#[tokio::test(start_paused = true)]
async fn p5_a_redrive_reads_no_letters_before_those_of_its_key() {
    let (_script, letters, log, _pool, _) = parked().await;
    assert_eq!(redriven(&letters).await, None);
    assert_eq!(log.starts()[2..], [2, 3, 4]);
    assert!(letters.state().reads.iter().all(|from| *from >= 2), "{:?}", letters.state().reads);
}

/// Where its first letter stood stands its last one: what is in front of that must not be taken for done.
#[tokio::test(start_paused = true)]
async fn p1_letters_that_moved_to_the_front_run_from_the_first_one() {
    let (_script, letters, log, _pool, _) = parked().await;
    letters.state().letters.drain(..2);
    assert_eq!(redriven(&letters).await, None);
    assert_eq!(log.starts()[2..], [2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn p1_the_last_letter_of_a_key_that_is_missing_stops_its_redrive() {
    let (mut script, letters, log, _pool, owned) = parked().await;
    letters.state().letters.pop();
    let stays = redriven(&letters).await.expect("one of its messages did not run");
    assert!(stays.stopped && stays.error.contains("missing"), "{stays:?}");
    script.deliver(owned, Some("a"));
    until("it follows", || script.finished().len() == 6).await;
    assert_eq!(log.starts()[2..], [2, 3], "what arrives is parked behind what is missing");
}

/// One dead-letter topic may be that of many topics, partitions and groups.
#[tokio::test(start_paused = true)]
async fn p1_letters_of_others_in_the_same_topic_are_left_alone() {
    let (_script, letters, log, _pool, _) = parked().await;
    {
        let mut state = letters.state();
        for (header, other) in [
            (dead_letter::GROUP, "others"),
            (dead_letter::TOPIC, "users"),
            (dead_letter::PARTITION, "7"),
            (dead_letter::OFFSET, "999"),
        ] {
            let mut letter = state.letters[3].clone();
            letter.headers.remove(dead_letter::OFFSET);
            letter.headers.append(dead_letter::OFFSET, "999");
            letter.headers.remove(header);
            letter.headers.append(header, other);
            if header == dead_letter::OFFSET {
                letter.key = Some("b".into());
            }
            state.letters.push(letter);
        }
    }
    assert_eq!(redriven(&letters).await, None);
    assert_eq!(log.starts()[2..], [2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn p4_a_redrive_that_takes_its_time_holds_up_no_other() {
    let (_script, letters, log, _pool, _) = parked().await;
    letters.redrive("b").await.expect("it is parked");
    until("it runs", || log.starts().len() == 3).await;
    let begun = tokio::time::Instant::now();
    letters.redrive("a").await.expect("it is parked");
    until("a is through", || log.starts()[2..] == [0, 2, 3, 4]).await;
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

/// Else it is stored when the key is free, and nothing ever runs it.
#[tokio::test(start_paused = true)]
async fn p1_a_redrive_waits_for_the_letter_that_is_on_its_way() {
    let (mut script, letters, log, pool, owned) = parked().await;
    letters.state().publish_fails = true;
    script.deliver(owned, Some("a"));
    while pool.state().await.dead_letter_error.is_none() {
        tokio::time::sleep(MS).await;
    }
    letters.redrive("a").await.expect("it is parked");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(log.starts().len(), 2, "its last letter is not there yet");
    letters.state().publish_fails = false;
    until("it is answered", || letters.state().requests.is_empty()).await;
    assert_eq!(log.starts()[2..], [2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn p4_a_redrive_waits_for_no_letter_of_another_key() {
    let (mut script, letters, log, pool, owned) = parked().await;
    letters.state().publish_fails = true;
    script.deliver(owned, Some("b"));
    while pool.state().await.dead_letter_error.is_none() {
        tokio::time::sleep(MS).await;
    }
    assert_eq!(redriven(&letters).await, None);
    assert_eq!(log.starts()[2..], [2, 3, 4]);
}

/// Both are held; the lane that goes on is the one whose redrive has ended.
#[tokio::test(start_paused = true)]
async fn p4_a_key_that_was_redriven_goes_on_while_another_one_is_held() {
    let (mut script, letters, log, _pool, owned) = parked().await;
    letters.redrive("b").await.expect("it is parked");
    until("it runs", || log.starts().len() == 3).await;
    script.deliver(owned, Some("b"));
    letters.redrive("a").await.expect("it is parked");
    until("it runs", || log.starts().len() == 4).await;
    let next = script.deliver(owned, Some("a"));
    let begun = tokio::time::Instant::now();
    until("a goes on", || script.finished().contains(&next)).await;
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(log.starts()[2..], [0, 2, 3, 4, next]);
}

#[tokio::test(start_paused = true)]
async fn p8_the_list_says_how_far_a_redrive_has_come() {
    let (_script, letters, log, _pool, _) = parked().await;
    letters.redrive("b").await.expect("it is parked");
    tokio::time::sleep(Duration::from_secs(3_660)).await;
    until("the second one runs", || log.starts()[2..] == [0, 1]).await;
    let parked = letters.parked().await.into_iter().find(|parked| parked.key == "b".into());
    let parked = parked.expect("one of them is left");
    assert_eq!((parked.offset, parked.redriven.0, parked.next_letter), (0, 1, 1));
}
