//! C. Failure of a handler.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ebus_core::{Delivery, Error, ErrorKind, Message, Outcome, Publish};
use ebus_pool::{RetryPolicy, dead_letter};

use super::super::ctx::{Ctx, keys, message};
use super::super::failure::Checked;
use super::super::faulty::{Down, Faulty};
use super::super::handler::{fails, rejects};
use super::super::wait::Gate;

fn is(delivery: &Delivery, key: &str) -> bool {
    delivery.key().is_some_and(|own| own.as_bytes() == key.as_bytes())
}

fn header<'m>(message: &'m Message, name: &str) -> &'m str {
    message.headers.first_str(name).unwrap_or_else(|| panic!("the dead letter has no header {name}"))
}

/// c01: fails once: the same message again, then its successors; other keys unaffected meanwhile.
pub(super) async fn c01_fails_once_then_goes_on(ctx: &Ctx) -> Checked {
    const OTHERS: usize = 20;
    let topic = ctx.topic("failing", 1).await?;
    let mut names = vec!["bad".to_owned()];
    names.extend(keys("good", OTHERS));
    ctx.publish(&topic, &names, 1..=3).await?;
    let log = ctx.log.clone();
    let _member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .handler(move |delivery| {
            let log = log.clone();
            async move {
                if !is(&delivery, "bad") || delivery.attempt() > 1 {
                    // The second attempt is not finished before the others are: they do not wait for it.
                    while is(&delivery, "bad") && log.acked() < 3 * OTHERS {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    return Outcome::Ack;
                }
                if log.count(|ran| ran.key == "bad") == 0 { fails("once") } else { Outcome::Ack }
            }
        })
        .start()
        .await?;
    ctx.until_handled(3 * names.len()).await?;
    assert_eq!(ctx.log.versions("bad"), [1, 1, 2, 3]);
    Ok(())
}

/// c02: fails for ever: after max attempts exactly one dead letter that says why, where and when; the others in order.
pub(super) async fn c02_fails_for_ever_one_dead_letter(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("failing", 4).await?;
    let dead = ctx.topic("failing.dead", 1).await?;
    let names = keys("k", 50);
    let receipts = ctx.publish(&topic, &names, 1..=20).await?;
    let (bad, version) = ("k7", 10);
    let place = &receipts[(version - 1) * names.len() + 7];
    let group = ctx.group("g");
    let _member = ctx
        .member("m", &group, &[&topic])
        .pool(|pool| pool.with_retry(RetryPolicy::fixed(Duration::from_millis(5)).max_attempts(3)))
        .dead_letter(&dead)
        .handler(move |delivery| async move {
            let bad = is(&delivery, bad) && delivery.headers().first_str("ebus-version") == Some("10");
            if bad { fails("it never works") } else { Outcome::Ack }
        })
        .start()
        .await?;
    ctx.until_handled(999).await?;
    let letters = ctx
        .until_some("the dead letter is there", || async {
            let letters = ctx.read_all(&dead).await?;
            Ok((!letters.is_empty()).then_some(letters))
        })
        .await?;
    assert_eq!(letters.len(), 1);
    let letter = &letters[0].2;
    assert_eq!(header(letter, dead_letter::REASON), "attempts");
    assert!(header(letter, dead_letter::ERROR).contains("it never works"));
    assert_eq!(header(letter, dead_letter::GROUP), group.as_str());
    assert_eq!(header(letter, dead_letter::TOPIC), topic.as_str());
    assert_eq!(header(letter, dead_letter::PARTITION), place.partition.to_string());
    assert_eq!(header(letter, dead_letter::OFFSET), place.offset.to_string());
    assert_eq!(header(letter, dead_letter::ATTEMPTS), "3");
    let time = |name| header(letter, name).parse::<i64>().expect("a time in milliseconds");
    let (first, last) = (time(dead_letter::FIRST_FAILED_MS), time(dead_letter::LAST_FAILED_MS));
    assert!(0 < first && first <= last, "first failed at {first}, last at {last}");
    let sent = message(bad, version as u64);
    assert_eq!((&letter.key, &letter.payload), (&sent.key, &sent.payload));
    assert_eq!(header(letter, "ebus-version"), "10", "its own headers are gone");
    Ok(())
}

/// c03: the dead-letter topic is down: nothing acknowledged past it, visible in health, finishes when it comes back.
pub(super) async fn c03_dead_letter_topic_is_down(ctx: &Ctx) -> Checked {
    const OTHERS: usize = 40;
    let topic = ctx.topic("failing", 1).await?;
    let dead = ctx.topic("failing.dead", 1).await?;
    let bad = ctx.publish(&topic, &["bad"], 1..=2).await?.remove(0);
    ctx.publish(&topic, &keys("good", OTHERS), 1..=1).await?;
    let faulty = Faulty::new(ctx.publisher(), Down::Fails);
    let group = ctx.group("g");
    let member = ctx
        .member("m", &group, &[&topic])
        .pool(|pool| pool.with_dead_letter(dead.clone(), faulty.publisher()))
        .handler(|delivery| async move {
            let bad = is(&delivery, "bad") && delivery.headers().first_str("ebus-version") == Some("1");
            if bad { rejects("no") } else { Outcome::Ack }
        })
        .start()
        .await?;
    ctx.until("the dead letter is tried again", || faulty.refused() >= 2).await?;
    let told = ctx
        .until_some("the state tells of it", || async { Ok(member.state().await.dead_letter_error) })
        .await?;
    assert_eq!(told.kind(), ErrorKind::Unavailable, "{told}");
    // The others are committed, and it is not.
    let committed = ctx
        .until_some("the other keys are committed", || async {
            let committed = ctx.committed(&group, &topic).await?;
            Ok((ctx.finished_in(&topic, &committed) >= OTHERS).then_some(committed))
        })
        .await?;
    let watermark = committed[0].position.as_ref().map_or(0, |position| position.watermark.0);
    assert!(watermark <= bad.offset, "it was acknowledged before its dead letter was");
    assert_eq!(ctx.log.versions("bad"), [1], "its key went on without it");
    faulty.heal();
    ctx.until_some("all is committed", || async {
        Ok((ctx.finished(&group, &topic).await? >= OTHERS + 2).then_some(()))
    })
    .await?;
    assert_eq!(ctx.count(&dead).await?, 1);
    assert_eq!(ctx.log.versions("bad"), [1, 2]);
    ctx.until_some("the state is well again", || async {
        Ok(member.state().await.dead_letter_error.is_none().then_some(()))
    })
    .await
}

/// c04: permanent error: no second attempt.
pub(super) async fn c04_permanent_error_no_second_attempt(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("failing", 2).await?;
    let dead = ctx.topic("failing.dead", 1).await?;
    ctx.publish(&topic, &keys("k", 10), 1..=3).await?;
    let _member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .dead_letter(&dead)
        .handler(|delivery| async move { if is(&delivery, "k3") { rejects("never") } else { Outcome::Ack } })
        .start()
        .await?;
    ctx.until_handled(27).await?;
    ctx.until_some("three dead letters", || async { Ok((ctx.count(&dead).await? >= 3).then_some(())) })
        .await?;
    assert_eq!(ctx.log.versions("k3"), [1, 2, 3], "a permanent error was tried again");
    for (_, _, letter) in ctx.read_all(&dead).await? {
        assert_eq!(header(&letter, dead_letter::REASON), "rejected");
        assert_eq!(header(&letter, dead_letter::ATTEMPTS), "1");
    }
    Ok(())
}

/// c05: panic = failure of that message only.
pub(super) async fn c05_panic_is_the_failure_of_that_message(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("panicking", 2).await?;
    ctx.publish(&topic, &keys("k", 20), 1..=10).await?;
    let member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .handler(|delivery| async move {
            let bad = is(&delivery, "k3") && delivery.attempt() == 1;
            match delivery.headers().first_str("ebus-version") {
                Some("4") if bad => panic!("a handler of case c05 panics at once"),
                Some("6") if bad => {
                    tokio::task::yield_now().await;
                    panic!("a handler of case c05 panics later")
                }
                _ => Outcome::Ack,
            }
        })
        .start()
        .await?;
    ctx.until_handled(200).await?;
    let counters = member.state().await.counters;
    assert_eq!((counters.panics, counters.retries), (2, 2));
    Ok(())
}

/// c06: undecodable message: dead letter, never a loop, never a stop.
pub(super) async fn c06_undecodable_is_a_dead_letter(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("undecodable", 1).await?;
    let dead = ctx.topic("undecodable.dead", 1).await?;
    let mut publisher = ctx.publisher();
    let payloads: [&[u8]; 5] = [b"1", b"{\"never\":", b"", &[0xff, 0, 0xc3], b"2"];
    for (version, payload) in (1..).zip(payloads) {
        let mut sent = message("k", version);
        sent.payload = payload.to_vec().into();
        publisher.publish(Publish::new(topic.clone(), sent)).await?;
    }
    let _member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .dead_letter(&dead)
        .handler(|delivery| async move {
            match serde_json::from_slice::<serde_json::Value>(delivery.payload()) {
                Ok(_) => Outcome::Ack,
                Err(error) => Outcome::Reject {
                    error: Error::new(ErrorKind::Decode, "the payload is no JSON").with_source(error),
                },
            }
        })
        .start()
        .await?;
    ctx.until_handled(2).await?;
    ctx.until_some("three dead letters", || async { Ok((ctx.count(&dead).await? >= 3).then_some(())) })
        .await?;
    assert_eq!(ctx.log.versions("k"), [1, 2, 3, 4, 5], "one ran twice");
    for (_, _, letter) in ctx.read_all(&dead).await? {
        // The errors below it too: what serde found is what helps.
        let error = header(&letter, dead_letter::ERROR);
        assert!(error.starts_with("the payload is no JSON: ") && error.contains("line 1"), "{error:?}");
    }
    let kept: Vec<_> = ctx.read_all(&dead).await?.into_iter().map(|(_, _, letter)| letter.payload).collect();
    assert_eq!(kept, payloads[1..4], "a dead letter does not keep the bytes");
    Ok(())
}

/// c07: a retry that waits holds no slot: with one slot, other keys run.
pub(super) async fn c07_a_retry_that_waits_holds_no_slot(ctx: &Ctx) -> Checked {
    const OTHERS: usize = 50;
    let topic = ctx.topic("one-slot", 1).await?;
    ctx.publish(&topic, &["bad"], 1..=2).await?;
    ctx.publish(&topic, &keys("good", OTHERS), 1..=1).await?;
    let log = ctx.log.clone();
    let _member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .pool(|pool| pool.with_max_in_flight(1).with_shards(2))
        .handler(move |delivery| {
            let log = log.clone();
            async move {
                // A run that waits takes a slot, which one that ends at once may not.
                tokio::task::yield_now().await;
                let others = log.count(|ran| ran.acked);
                if is(&delivery, "bad") && others < OTHERS {
                    let after = if delivery.attempt() < 3 { 50 } else { 200 };
                    let error = Error::new(ErrorKind::Handler, "not before the others");
                    return Outcome::Retry { after: Some(Duration::from_millis(after)), error };
                }
                Outcome::Ack
            }
        })
        .start()
        .await?;
    ctx.rules(|rules| rules.max_in_flight(1));
    ctx.until_handled(OTHERS + 2).await?;
    let runs = ctx.log.all();
    let before_retry = runs.iter().take_while(|ran| !(ran.key == "bad" && ran.attempt == 2)).count();
    assert!(before_retry > 1, "nothing ran while the retry waited");
    Ok(())
}

/// c11: a dead letter larger than its topic allows: published with its error cut and marked.
pub(super) async fn c11_a_dead_letter_too_large_is_cut_and_marked(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("large", 1).await?;
    let dead = ctx.topic("large.dead", 1).await?;
    // Room for a short error beside the names of this case, and none for 4 KiB.
    let payload = vec![b'x'; ctx.capability().max_message_bytes - 2_000];
    let mut sent = message("k", 1);
    sent.payload = payload.clone().into();
    ctx.publisher().publish(Publish::new(topic.clone(), sent)).await?;
    ctx.publish(&topic, &["k"], 2..=2).await?;
    let _member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .dead_letter(&dead)
        .handler(|_| async { rejects(&"ü".repeat(10_000)) })
        .start()
        .await?;
    let letters = ctx
        .until_some("both are dead letters", || async {
            let letters = ctx.read_all(&dead).await?;
            Ok((letters.len() >= 2).then_some(letters))
        })
        .await?;
    let (large, small) = (&letters[0].2, &letters[1].2);
    assert!(large.payload == payload, "its payload is not whole");
    for (letter, most) in [(large, 64), (small, 4_096)] {
        assert_eq!(header(letter, dead_letter::CUT), "true");
        let error = header(letter, dead_letter::ERROR);
        assert!(error.starts_with('ü') && error.len() <= most, "{} bytes", error.len());
        assert_eq!(header(letter, dead_letter::ATTEMPTS), "1");
    }
    Ok(())
}

/// c12: no dead-letter topic: retried for ever, visible as stuck; `max_attempts` refused at start.
pub(super) async fn c12_without_dead_letters_retried_for_ever(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("stuck", 1).await?;
    let receipts = ctx.publish(&topic, &["bad"], 1..=5).await?;
    ctx.publish(&topic, &["good"], 1..=5).await?;
    let healed = Gate::closed();
    let (heals, attempts) = (healed.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = attempts.clone();
    let member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .handler(move |delivery| {
            let (heals, counted) = (heals.clone(), counted.clone());
            async move {
                if is(&delivery, "bad") && !heals.is_open() {
                    counted.fetch_add(1, Ordering::Relaxed);
                    return rejects("it cannot be, and there is nowhere to put it");
                }
                Outcome::Ack
            }
        })
        .start()
        .await?;
    ctx.until("it is tried again and again", || attempts.load(Ordering::Relaxed) >= 5).await?;
    ctx.until_handled(5).await?;
    let stuck = ctx
        .until_some("it is visible as stuck", || async {
            Ok(member.state().await.stuck.into_iter().find(|stuck| stuck.attempts >= 5))
        })
        .await?;
    assert_eq!((&stuck.partition.topic, stuck.partition.partition), (&topic, receipts[0].partition));
    assert_eq!(stuck.offset, receipts[0].offset);
    assert_eq!(stuck.key.as_ref().and_then(|key| key.as_str()), Some("bad"));
    assert_eq!(stuck.waiting_behind, 4);
    let why = stuck.last_error.map(|error| error.to_string()).unwrap_or_default();
    assert!(why.contains("nowhere to put it"), "{why:?}");
    healed.open();
    ctx.until_handled(10).await?;
    // A limit of attempts with no place for what is beyond it is refused before anything is read.
    let refused = ctx
        .member("refused", &ctx.group("refused"), &[&topic])
        .pool(|pool| pool.with_retry(RetryPolicy::exponential().max_attempts(3)))
        .start()
        .await;
    let failure = refused.err().map(|failure| failure.to_string()).unwrap_or_default();
    assert!(failure.contains("max_attempts"), "{failure:?}");
    Ok(())
}
