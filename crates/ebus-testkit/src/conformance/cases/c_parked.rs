//! C. Failure of a handler: parked keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ebus_core::{Delivery, Epoch, ErrorKind, Group, Key, Outcome, Parking, PartitionId, Topic};
use ebus_pool::{ParkedKey, PoolConfig, dead_letter};

use super::super::ctx::{Ctx, keys};
use super::super::failure::{Checked, Failure};
use super::super::handler::rejects;
use super::super::member::MemberBuilder;
use crate::record::version_from_header;

const BAD: &str = "bad";

/// From this version on, the key `bad` is rejected; 0 when it is not.
#[derive(Clone, Default)]
struct From(Arc<AtomicU64>);

impl From {
    fn version(version: u64) -> Self {
        let from = Self::default();
        from.set(version);
        from
    }

    fn set(&self, version: u64) {
        self.0.store(version, Ordering::SeqCst);
    }

    fn rejects(&self, delivery: &Delivery) -> bool {
        let from = self.0.load(Ordering::SeqCst);
        let version = version_from_header(delivery.message()).unwrap_or_default();
        delivery.key() == Some(&Key::from(BAD)) && from != 0 && version >= from
    }
}

/// A member that parks, and rejects what `from` says; a run of the bad key takes a moment.
fn parking<'c>(
    ctx: &'c Ctx,
    label: &str,
    group: &Group,
    (topic, dead): (&Topic, &Topic),
    from: &From,
) -> MemberBuilder<'c> {
    let from = from.clone();
    ctx.member(label, group, &[topic]).dead_letter(dead).parks(100).handler(move |delivery| {
        let from = from.clone();
        async move {
            if delivery.key() == Some(&Key::from(BAD)) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if from.rejects(&delivery) { rejects("it is broken") } else { Outcome::Ack }
        }
    })
}

async fn parked(ctx: &Ctx, group: &Group, topic: &Topic) -> Checked<Vec<ParkedKey>> {
    Ok(ebus_pool::parked_keys(&*ctx.control, group, topic).await?)
}

async fn ask(ctx: &Ctx, group: &Group, topic: &Topic) -> Checked {
    let parked = parked(ctx, group, topic).await?;
    let Some(first) = parked.first() else { return Err(Failure::new("nothing is parked")) };
    Ok(ebus_pool::redrive(&*ctx.control, group, topic, &first.key).await?)
}

async fn until_free(ctx: &Ctx, group: &Group, topic: &Topic) -> Checked {
    ctx.until_some("no key is parked any more", || async {
        Ok(parked(ctx, group, topic).await?.is_empty().then_some(()))
    })
    .await
}

/// Versions of the bad key in the dead-letter topic, and why they are there.
async fn letters(ctx: &Ctx, dead: &Topic) -> Checked<Vec<(u64, String)>> {
    let all = ctx.read_all(dead).await?;
    let told = all.iter().map(|(_, _, letter)| {
        let reason = letter.headers.first_str(dead_letter::REASON).unwrap_or_default();
        (version_from_header(letter).unwrap_or_default(), reason.to_owned())
    });
    Ok(told.collect())
}

async fn until_letters(ctx: &Ctx, dead: &Topic, count: usize) -> Checked<Vec<(u64, String)>> {
    ctx.until_some("the messages are dead letters", || async {
        Ok(Some(letters(ctx, dead).await?).filter(|letters| letters.len() >= count))
    })
    .await
}

fn told(versions: std::ops::RangeInclusive<u64>) -> Vec<(u64, String)> {
    let first = *versions.start();
    versions
        .map(|version| (version, if version == first { "rejected" } else { "parked" }.to_owned()))
        .collect()
}

/// c13: a dead letter parks its key: what follows goes after it in order without a run, other keys go on; redriven, all of it
/// runs in order, and then the key's own messages go on.
pub(super) async fn c13_what_follows_a_dead_letter_is_parked_and_redriven(ctx: &Ctx) -> Checked {
    const OTHERS: usize = 10;
    let (topic, dead) = (ctx.topic("parking", 2).await?, ctx.topic("parking.dead", 2).await?);
    let group = ctx.group("g");
    let mut names = vec![BAD.to_owned()];
    names.extend(keys("good", OTHERS));
    ctx.publish(&topic, &names, 1..=10).await?;
    let from = From::version(4);
    let member = parking(ctx, "m", &group, (&topic, &dead), &from).start().await?;
    ctx.until_handled(10 * OTHERS + 3).await?;
    assert_eq!(until_letters(ctx, &dead, 7).await?, told(4..=10));
    assert_eq!(ctx.log.versions(BAD), [1, 2, 3, 4], "what follows ran");
    let listed = parked(ctx, &group, &topic).await?;
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0].key, listed[0].stopped), (&Key::from(BAD), false));
    assert!(listed[0].error.contains("it is broken"), "{:?}", listed[0]);
    let state = member.state().await;
    assert_eq!(state.partitions.iter().map(|partition| partition.parked_keys).sum::<usize>(), 1);
    ctx.until_some("they are counted", || async {
        let counters = member.pool().counters();
        Ok(((counters.dead_letters, counters.parked) == (7, 6)).then_some(()))
    })
    .await?;
    from.set(0);
    ask(ctx, &group, &topic).await?;
    until_free(ctx, &group, &topic).await?;
    assert_eq!(ctx.log.versions(BAD), [1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10]);
    ctx.publish(&topic, &names, 11..=11).await?;
    ctx.until_handled(11 * (OTHERS + 1)).await?;
    assert_eq!(ctx.count(&dead).await?, 7);
    assert_eq!(member.pool().counters().redriven, 7);
    Ok(())
}

/// c14: killed or gone, the next owner knows what is parked before its first delivery; a program that is no member asks for it.
pub(super) async fn c14_the_next_owner_knows_what_is_parked(ctx: &Ctx) -> Checked {
    let (topic, dead) = (ctx.topic("parking", 2).await?, ctx.topic("parking.dead", 2).await?);
    let group = ctx.group("g");
    let from = From::version(1);
    ctx.publish(&topic, &[BAD], 1..=3).await?;
    let first = parking(ctx, "first", &group, (&topic, &dead), &from).mortal().start().await?;
    until_letters(ctx, &dead, 3).await?;
    first.kill().await?;
    // What the next owners get of this key would succeed, if they ran it.
    from.set(0);
    ctx.publish(&topic, &[BAD], 4..=6).await?;
    let second = parking(ctx, "second", &group, (&topic, &dead), &from).start().await?;
    ctx.until_some("what follows is there too", || async {
        Ok(letters(ctx, &dead).await?.iter().any(|letter| letter.0 == 6).then_some(()))
    })
    .await?;
    let report = second.drain(ctx.patience()).await;
    assert!(report.committed.is_ok(), "{report:?}");
    ctx.publish(&topic, &[BAD], 7..=9).await?;
    // Nobody owns the partition: the request waits.
    ask(ctx, &group, &topic).await?;
    let _third = parking(ctx, "third", &group, (&topic, &dead), &from).start().await?;
    ctx.until_handled(9).await?;
    until_free(ctx, &group, &topic).await?;
    assert_eq!(ctx.log.versions(BAD), [1, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    Ok(())
}

/// c15: a redriven message that fails again: the key stays parked there, that is visible, and the next redrive begins with it.
pub(super) async fn c15_a_redrive_that_fails_again_stops_there(ctx: &Ctx) -> Checked {
    let (topic, dead) = (ctx.topic("parking", 1).await?, ctx.topic("parking.dead", 1).await?);
    let group = ctx.group("g");
    ctx.publish(&topic, &[BAD], 1..=5).await?;
    let from = From::version(1);
    let _member = parking(ctx, "m", &group, (&topic, &dead), &from).start().await?;
    until_letters(ctx, &dead, 5).await?;
    from.set(3);
    ask(ctx, &group, &topic).await?;
    let stopped = ctx
        .until_some("the redrive has stopped", || async {
            let parked = parked(ctx, &group, &topic).await?;
            Ok(parked.into_iter().find(|parked| parked.stopped))
        })
        .await?;
    assert!(stopped.error.contains("it is broken"), "{stopped:?}");
    assert_eq!(ctx.log.versions(BAD), [1, 1, 2, 3]);
    ctx.publish(&topic, &[BAD], 6..=6).await?;
    assert_eq!(until_letters(ctx, &dead, 6).await?, told(1..=6));
    from.set(0);
    ask(ctx, &group, &topic).await?;
    until_free(ctx, &group, &topic).await?;
    assert_eq!(ctx.log.versions(BAD), [1, 1, 2, 3, 3, 4, 5, 6]);
    Ok(())
}

/// c16: the owner is killed while it redrives: the next one goes on where it was, without being asked again.
pub(super) async fn c16_killed_while_redriving_the_next_goes_on(ctx: &Ctx) -> Checked {
    const PARKED: u64 = 100;
    let (topic, dead) = (ctx.topic("parking", 2).await?, ctx.topic("parking.dead", 2).await?);
    let group = ctx.group("g");
    ctx.publish(&topic, &[BAD], 1..=PARKED).await?;
    let from = From::version(1);
    let first = parking(ctx, "first", &group, (&topic, &dead), &from).mortal().start().await?;
    until_letters(ctx, &dead, PARKED as usize).await?;
    ctx.until_some("all of it is committed", || async {
        Ok((ctx.finished(&group, &topic).await? >= PARKED as usize).then_some(()))
    })
    .await?;
    from.set(0);
    ask(ctx, &group, &topic).await?;
    ctx.until_handled(PARKED as usize / 4).await?;
    first.kill().await?;
    let before = ctx.log.acked();
    ctx.publish(&topic, &[BAD], PARKED + 1..=PARKED + 5).await?;
    let _second = parking(ctx, "second", &group, (&topic, &dead), &from).start().await?;
    ctx.until_handled(PARKED as usize + 5).await?;
    until_free(ctx, &group, &topic).await?;
    let again = ctx.log.acked() - (PARKED as usize + 5);
    assert!(again <= 1, "{again} ran again, of {before}: what is kept after each of them was not looked at");
    Ok(())
}

/// c17: no place for one key more: its message waits as without a dead-letter topic, is visible as stuck, and nothing is lost.
pub(super) async fn c17_a_full_list_makes_a_key_wait(ctx: &Ctx) -> Checked {
    let (topic, dead) = (ctx.topic("parking", 1).await?, ctx.topic("parking.dead", 1).await?);
    let group = ctx.group("g");
    let broken = Arc::new(AtomicU64::new(1));
    let seen = broken.clone();
    let member = ctx
        .member("m", &group, &[&topic])
        .dead_letter(&dead)
        .parks(1)
        .handler(move |_| {
            let broken = seen.load(Ordering::SeqCst) == 1;
            async move { if broken { rejects("it is broken") } else { Outcome::Ack } }
        })
        .start()
        .await?;
    ctx.publish(&topic, &["one"], 1..=2).await?;
    until_letters(ctx, &dead, 2).await?;
    ctx.publish(&topic, &["two"], 1..=2).await?;
    let stuck = ctx
        .until_some("the other is stuck", || async {
            Ok(member.state().await.stuck.into_iter().find(|stuck| stuck.attempts >= 3))
        })
        .await?;
    let why = stuck.last_error.map(|error| error.chain()).unwrap_or_default();
    assert!(why.contains("full") && why.contains("it is broken"), "{why:?}");
    assert_eq!((stuck.key, stuck.waiting_behind), (Some(Key::from("two")), 1));
    assert_eq!(ctx.count(&dead).await?, 2);
    broken.store(0, Ordering::SeqCst);
    ctx.until_some("it goes on", || async { Ok((ctx.log.handled() == 2).then_some(())) }).await?;
    ask(ctx, &group, &topic).await?;
    until_free(ctx, &group, &topic).await?;
    ctx.until_handled(4).await
}

/// c18: a member leaves while it redrives: nothing runs again, and the next one goes on without being asked.
pub(super) async fn c18_handed_over_while_redriving_repeats_nothing(ctx: &Ctx) -> Checked {
    const PARKED: u64 = 60;
    let (topic, dead) = (ctx.topic("parking", 1).await?, ctx.topic("parking.dead", 1).await?);
    let group = ctx.group("g");
    ctx.publish(&topic, &[BAD], 1..=PARKED).await?;
    let from = From::version(1);
    let first = parking(ctx, "first", &group, (&topic, &dead), &from).start().await?;
    until_letters(ctx, &dead, PARKED as usize).await?;
    from.set(0);
    ask(ctx, &group, &topic).await?;
    ctx.until_handled(PARKED as usize / 4).await?;
    let report = first.drain(ctx.patience()).await;
    assert!(report.committed.is_ok(), "{report:?}");
    let before = ctx.log.acked();
    assert!(before < PARKED as usize, "it was done before it was asked to leave");
    let _second = parking(ctx, "second", &group, (&topic, &dead), &from).start().await?;
    ctx.until_handled(PARKED as usize).await?;
    until_free(ctx, &group, &topic).await?;
    assert_eq!(ctx.log.acked(), PARKED as usize, "something ran again");
    Ok(())
}

/// c19: what an owner wrote is what every later owner finds; what a former one writes later counts nothing; requests are a set.
pub(super) async fn c19_what_a_former_owner_writes_does_not_count(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("kept", 2).await?;
    let group = ctx.group("g");
    let place = PartitionId::new(topic.clone(), 1);
    let (one, two) = (ctx.another("one").await?, ctx.another("two").await?);
    let (former, later) = (one.parking(&group).await?, two.parking(&group).await?);
    assert_eq!(former.claim(&place, Epoch(5)).await?, None);
    former.keep(&place, Epoch(5), "first".into()).await?;
    assert_eq!(former.claim(&place, Epoch(5)).await?, Some("first".into()), "asked again");
    assert_eq!(later.claim(&place, Epoch(6)).await?, Some("first".into()));
    match former.keep(&place, Epoch(5), "late".into()).await {
        Ok(()) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::Fenced, "{error}"),
    }
    assert_eq!(later.read(&place).await?, Some("first".into()));
    let refused = former.claim(&place, Epoch(5)).await.expect_err("a later owner has claimed it");
    assert_eq!(refused.kind(), ErrorKind::Fenced, "{refused}");
    later.keep(&place, Epoch(6), "second".into()).await?;
    assert_eq!(former.read(&place).await?, Some("second".into()));
    // As much as is promised to fit, and nothing of a neighbour.
    let largest = vec![b'x'; later.max_bytes()];
    later.keep(&place, Epoch(6), largest.clone().into()).await?;
    assert!(
        former.claim(&place, Epoch(9)).await? == Some(largest.into()),
        "the largest value came back changed"
    );
    let beside = PartitionId::new(topic.clone(), 0);
    assert_eq!(former.read(&beside).await?, None);
    let other = one.parking(&ctx.group("other")).await?;
    assert_eq!(other.claim(&place, Epoch(1)).await?, None, "a group has found another's");
    let too_large = vec![b'x'; later.max_bytes() + 1].into();
    let refused = former.keep(&place, Epoch(9), too_large).await.expect_err("more than is promised to fit");
    assert_eq!(refused.kind(), ErrorKind::TooLarge, "{refused}");

    let requests = [b"redrive a/b.c 7".to_vec(), vec![0, 255, b' '], vec![b'y'; 2_000]];
    for request in requests.iter().chain(&requests) {
        later.ask(&place, request.clone().into()).await?;
    }
    let mut sorted = requests.to_vec();
    sorted.sort();
    assert_eq!(asked(&*former, &place).await?, sorted);
    assert!(former.asked(&beside).await?.is_empty() && other.asked(&place).await?.is_empty());
    for _ in 0..2 {
        former.answered(&place, &requests[1].clone().into()).await?;
    }
    sorted.retain(|request| *request != requests[1]);
    assert_eq!(asked(&*later, &place).await?, sorted);
    Ok(())
}

async fn asked(parking: &dyn Parking, place: &PartitionId) -> Checked<Vec<Vec<u8>>> {
    let mut asked: Vec<Vec<u8>> = parking.asked(place).await?.iter().map(|one| one.to_vec()).collect();
    asked.sort();
    Ok(asked)
}

/// c25: more parked keys than the backend keeps for sure are refused at start, and the refusal says how many it keeps.
pub(super) async fn c25_more_parked_keys_than_are_kept_are_refused(ctx: &Ctx) -> Checked {
    let dead = ctx.topic("parking.dead", 1).await?;
    let group = ctx.group("g");
    let store = ctx.control.parking(&group).await?;
    let config = |most| {
        PoolConfig::new(group.clone())
            .with_dead_letter(dead.clone(), ctx.control.publisher())
            .with_parked_keys(most)
            .with_parking(store.clone(), ctx.control.clone())
    };
    // A line of the list has 256 bytes beside key and topic.
    let fits = (store.max_bytes() - 64) / (256 + 256 + dead.as_str().len());
    config(fits).validate()?;
    let refused = config(fits + 1).validate().expect_err("more than is promised to fit");
    assert_eq!(refused.kind(), ErrorKind::ConfigInvalid, "{refused}");
    assert!(refused.to_string().contains(&format!("at most {fits} keys")), "{refused}");
    Ok(())
}

/// c27: who only looks creates nothing: of a group that never parked keys, such as one whose name is mistyped, there is nothing, however
/// often it is asked for; and of one that did, all that its members kept.
pub(super) async fn c27_who_looks_for_parked_keys_creates_none(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("looked.at", 2).await?;
    let (group, typo) = (ctx.group("g"), ctx.group("typo"));
    let not_there = async |group: &Group| {
        let refused = ctx.control.existing_parking(group).await.err();
        assert_eq!(refused.map(|error| error.kind()), Some(ErrorKind::NotFound), "{group}");
    };
    not_there(&group).await;
    not_there(&group).await;
    let owner = ctx.another("owner").await?;
    let owners = owner.parking(&group).await?;
    let place = PartitionId::new(topic, 1);
    owners.claim(&place, Epoch(1)).await?;
    owners.keep(&place, Epoch(1), "parked".into()).await?;
    let looks = ctx.control.existing_parking(&group).await?;
    assert_eq!(looks.read(&place).await?, Some("parked".into()));
    looks.ask(&place, "redrive".into()).await?;
    assert_eq!(owners.asked(&place).await?, ["redrive"]);
    not_there(&typo).await;
    Ok(())
}
