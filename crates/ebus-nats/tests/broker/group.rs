//! Ownership, positions and records of a group.

use std::time::{Duration, Instant};

use async_nats::jetstream::{self, kv};
use ebus_core::{Backend, Epoch, ErrorKind, NextOffset, SourceOptions, StartPosition, Timestamp, Topic};
use ebus_testkit::proxy::Proxy;
use libtest_mimic::Trial;

use crate::shared;
use crate::support::drive::{
    Driver, Tested, config, connect, create, group, one, publish, refused, topic, unique,
};
use crate::support::team::Team;
use ebus_nats::NatsBackend;

const LEASE: Duration = Duration::from_secs(2);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("p3_a_member_that_was_dropped_is_followed_after_its_lease", dropped_member),
        shared("p6_a_member_that_left_is_followed_at_once_without_duplicates", left_member),
        shared("p3_an_owner_that_is_not_driven_past_its_lease_is_fenced", frozen_owner),
        shared("p1_a_record_that_is_gone_is_never_a_start_from_zero", gone_record),
        shared("p1_a_member_that_joins_when_the_bucket_was_deleted_does_not_begin_anew", deleted_bucket),
        shared("p1_a_running_member_does_not_begin_anew_in_a_bucket_made_by_another_group", bucket_made_anew),
        shared("e06_a_damaged_record_repeats_and_loses_nothing", damaged_record),
        shared("e04_a_topic_made_anew_is_read_from_its_beginning", made_anew),
        shared("e04_a_topic_made_anew_while_it_is_read_is_noticed", made_anew_live),
        shared("e07_latest_and_time_are_committed_before_anything_is_delivered", start_positions),
        shared("g04_a_topic_is_subscribed_and_given_up_later", subscribe_later),
        shared("p3_a_write_whose_reply_is_lost_costs_no_ownership", lost_replies),
        shared("the_consumer_of_a_former_owner_is_removed", consumers_are_removed),
    ]
}

async fn bucket(url: &str) -> Result<kv::Store, libtest_mimic::Failed> {
    let client = async_nats::connect(url).await?;
    Ok(jetstream::new(client).get_key_value("ebus").await?)
}

fn key(group: &ebus_core::Group, topic: &ebus_core::Topic, partition: u32) -> String {
    format!("p.{group}.{topic}.{partition}")
}

async fn quick(url: &str) -> Result<NatsBackend, ebus_core::Error> {
    NatsBackend::connect(config(url).with_lease(LEASE)).await
}

async fn dropped_member(url: String) -> Tested {
    let (backend, topic, group) = (quick(&url).await?, topic("dropped"), group("g"));
    create(&backend, &topic, 2).await?;
    publish(&backend, &topic, 10, 1..3).await?;
    let mut first = Driver::join(&backend, &group, &topic).await?;
    first.until("all is read", |heard| heard.messages.len() == 20).await?;
    // The commit of the last ones.
    first.during(Duration::from_millis(300)).await?;
    drop(first);
    let began = Instant::now();
    let mut second = Driver::join(&backend, &group, &topic).await?;
    publish(&backend, &topic, 10, 3..4).await?;
    second.until("the new ones are read", |heard| heard.messages.len() >= 10).await?;
    let took = began.elapsed();
    assert!(took >= LEASE / 2, "an owner was followed before he could be dead: {took:?}");
    second.during(Duration::from_millis(200)).await?;
    assert_eq!(second.heard.messages.len(), 10, "what was committed came again");
    assert_eq!(second.heard.epochs, [Epoch(2), Epoch(2)]);
    second.close().await?;
    Ok(())
}

async fn left_member(url: String) -> Tested {
    let (backend, topic, group) = (quick(&url).await?, topic("left"), group("g"));
    create(&backend, &topic, 1).await?;
    publish(&backend, &topic, 10, 1..11).await?;
    let mut first = Driver::join(&backend, &group, &topic).await?;
    first.settle = false;
    first.until("all is read", |heard| heard.messages.len() == 100).await?;
    // All but the third are finished: the watermark stays, what is above it is not forgotten.
    let held = std::mem::take(&mut first.heard.held);
    let mut settled: Vec<_> = held
        .into_iter()
        .filter(|token| token.offset() != 3)
        .map(|token| (token, ebus_core::Settlement::Finished))
        .collect();
    first.source.settle(&mut settled);
    first.close().await?;
    let committed = one(backend.committed(&group, &topic).await?);
    let position = committed.position.expect("committed");
    assert_eq!((position.watermark, position.finished.count()), (NextOffset(3), 97));
    let began = Instant::now();
    let mut second = Driver::join(&backend, &group, &topic).await?;
    second.until("the third comes", |heard| !heard.messages.is_empty()).await?;
    assert!(
        began.elapsed() < LEASE / 2,
        "a record that was released is claimed at once: {:?}",
        began.elapsed()
    );
    second.during(Duration::from_millis(300)).await?;
    let offsets: Vec<u64> = second.heard.messages.iter().map(|message| message.3).collect();
    assert_eq!(offsets, [3]);
    second.close().await?;
    let position = one(backend.committed(&group, &topic).await?).position.expect("committed");
    assert_eq!((position.watermark, position.finished.count()), (NextOffset(101), 0));
    Ok(())
}

async fn frozen_owner(url: String) -> Tested {
    let (backend, topic, group) = (quick(&url).await?, topic("frozen"), group("g"));
    create(&backend, &topic, 1).await?;
    publish(&backend, &topic, 1, 1..4).await?;
    let mut frozen = Driver::join(&backend, &group, &topic).await?;
    frozen.settle = false;
    frozen.until("it reads", |heard| heard.messages.len() == 3).await?;
    // Nobody calls recv: no heartbeats. The other takes over, and finishes.
    let mut other = Driver::join(&quick(&url).await?, &group, &topic).await?;
    other.until("it is read again", |heard| heard.messages.len() == 3).await?;
    other.during(Duration::from_millis(200)).await?;
    // Thawed: its settlements are void, it is told, and it changes nothing.
    let held = std::mem::take(&mut frozen.heard.held);
    frozen.until("it is told", |heard| heard.lost == 1).await?;
    let mut settled: Vec<_> = held.into_iter().map(|t| (t, ebus_core::Settlement::Finished)).collect();
    frozen.source.settle(&mut settled);
    assert_eq!(frozen.source.stale(), 3);
    let committed = one(backend.committed(&group, &topic).await?);
    assert_eq!(committed.epoch, Epoch(2));
    frozen.close().await?;
    publish(&backend, &topic, 1, 4..5).await?;
    other.until("the owner goes on", |heard| heard.messages.len() == 4).await?;
    other.close().await?;
    Ok(())
}

async fn gone_record(url: String) -> Tested {
    let (backend, topic, group) = (quick(&url).await?, topic("gone"), group("g"));
    create(&backend, &topic, 2).await?;
    Driver::join(&backend, &group, &topic).await?.close().await?;
    bucket(&url).await?.delete(key(&group, &topic, 1)).await?;
    refused(
        Driver::join(&backend, &group, &topic).await,
        ErrorKind::NotFound,
        "record of this partition is gone",
    )
}

/// A group that runs on a bucket of its own, of which all was read.
async fn on_its_own_bucket(
    url: &str,
    name: &str,
) -> Result<(Team, NatsBackend, Topic, String), libtest_mimic::Failed> {
    let (topic, bucket) = (topic(name), unique(name));
    let backend = NatsBackend::connect(config(url).with_lease(LEASE).with_bucket(&bucket)).await?;
    create(&backend, &topic, 2).await?;
    publish(&backend, &topic, 4, 1..6).await?;
    let mut team = Team::new(&group("g"), &[&topic]);
    team.join("a", &backend).await?;
    team.until("all is read", |log| log.distinct().0 == 20).await?;
    Ok((team, backend, topic, bucket))
}

async fn deleted_bucket(url: String) -> Tested {
    let (team, backend, topic, bucket) = on_its_own_bucket(&url, "deleted-bucket").await?;
    jetstream::new(async_nats::connect(&url).await?).delete_key_value(&bucket).await?;
    // The new member makes the bucket again, before the one that runs has said a word in it.
    let joined = Driver::join(&backend, &team.group, &topic).await;
    refused(joined, ErrorKind::NotFound, "members and no manifest")?;
    assert_eq!(team.log().distinct(), (20, 0), "nothing runs again");
    Ok(())
}

async fn bucket_made_anew(url: String) -> Tested {
    let (team, backend, topic, bucket) = on_its_own_bucket(&url, "made-bucket").await?;
    jetstream::new(async_nats::connect(&url).await?).delete_key_value(&bucket).await?;
    let other = Driver::join(&backend, &group("other"), &topic).await?;
    publish(&backend, &topic, 4, 6..7).await?;
    let says_so =
        |text: &String| text.contains("record of this partition is gone") || text.contains("no manifest");
    team.until("it says that its state is gone", |log| log.trouble.iter().any(says_so)).await?;
    // Whatever it tried, it did so several times by then.
    let before = team.log().trouble.len();
    team.until("it goes on saying so", |log| log.trouble.len() >= before + 3).await?;
    assert_eq!(team.log().distinct().1, 0, "nothing runs again");
    other.close().await?;
    Ok(())
}

async fn damaged_record(url: String) -> Tested {
    let (backend, topic, group) = (quick(&url).await?, topic("damaged"), group("g"));
    create(&backend, &topic, 1).await?;
    publish(&backend, &topic, 1, 1..6).await?;
    let mut first = Driver::join(&backend, &group, &topic).await?;
    first.until("all is read", |heard| heard.messages.len() == 5).await?;
    first.close().await?;
    bucket(&url).await?.put(key(&group, &topic, 0), "\u{0}nonsense".into()).await?;
    let mut second = Driver::join(&backend, &group, &topic).await?;
    second.until("all comes again", |heard| heard.messages.len() == 5).await?;
    assert!(second.heard.epochs[0] > Epoch(1));
    assert!(
        second.heard.trouble.iter().any(|error| error.kind() == ErrorKind::Decode),
        "{:?}",
        second.heard.trouble
    );
    second.close().await?;
    Ok(())
}

async fn made_anew(url: String) -> Tested {
    let (backend, topic, group) = (quick(&url).await?, topic("anew"), group("g"));
    create(&backend, &topic, 1).await?;
    publish(&backend, &topic, 1, 1..9).await?;
    let mut first = Driver::join(&backend, &group, &topic).await?;
    first.until("all is read", |heard| heard.messages.len() == 8).await?;
    first.close().await?;
    let context = jetstream::new(async_nats::connect(&url).await?);
    context.delete_stream(topic.as_str()).await?;
    create(&backend, &topic, 2).await?;
    publish(&backend, &topic, 4, 1..3).await?;
    let mut second = Driver::join(&backend, &group, &topic).await?;
    second.until("all of the new one is read", |heard| heard.messages.len() == 8).await?;
    assert!(second.heard.trouble.iter().any(|error| error.message().contains("made anew")));
    second.close().await?;
    Ok(())
}

async fn made_anew_live(url: String) -> Tested {
    let (backend, topic, group) = (quick(&url).await?, topic("anew-live"), group("g"));
    create(&backend, &topic, 1).await?;
    publish(&backend, &topic, 1, 1..9).await?;
    let mut driver = Driver::join(&backend, &group, &topic).await?;
    driver.until("all is read", |heard| heard.messages.len() == 8).await?;
    let context = jetstream::new(async_nats::connect(&url).await?);
    context.delete_stream(topic.as_str()).await?;
    driver.until("it is told", |heard| heard.trouble.iter().any(|e| e.kind() == ErrorKind::NotFound)).await?;
    create(&backend, &topic, 1).await?;
    publish(&backend, &topic, 1, 1..4).await?;
    driver.until("all of the new one is read", |heard| heard.messages.len() == 11).await?;
    assert_eq!(driver.heard.lost, 1);
    driver.close().await?;
    Ok(())
}

async fn start_positions(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("start"));
    create(&backend, &topic, 2).await?;
    publish(&backend, &topic, 4, 1..3).await?;
    tokio::time::sleep(Duration::from_millis(20)).await; // the server's clock has to move on
    let between = Timestamp::now();
    tokio::time::sleep(Duration::from_millis(20)).await;
    for (name, start, expected, watermark) in [
        ("latest", StartPosition::Latest, 4, 9),
        ("time", StartPosition::Time(between), 4, 9),
        ("earliest", StartPosition::Earliest, 12, 1),
    ] {
        let group = group(name);
        let options = SourceOptions::new(group.clone(), vec![topic.clone()]).with_start(start);
        // Given up before it read anything.
        backend.source(options.clone()).await?.close(Duration::from_secs(5)).await?;
        let committed = backend.committed(&group, &topic).await?;
        let marks: Vec<_> = committed.into_iter().filter_map(|c| Some(c.position?.watermark)).collect();
        assert_eq!(marks, [NextOffset(watermark); 2], "{name}");
        if name == "latest" {
            publish(&backend, &topic, 4, 3..4).await?;
        }
        let source = backend.source(options).await?;
        let mut driver = Driver { source, heard: Default::default(), settle: true };
        driver.until(name, |heard| heard.messages.len() == expected).await?;
        driver.during(Duration::from_millis(100)).await?;
        assert_eq!(driver.heard.messages.len(), expected, "{name}");
        driver.close().await?;
    }
    // After all: the end.
    let group = group("later");
    let later = StartPosition::Time(Timestamp::from_millis(Timestamp::now().as_millis() + 60_000));
    let options = SourceOptions::new(group.clone(), vec![topic.clone()]).with_start(later);
    backend.source(options).await?.close(Duration::from_secs(5)).await?;
    let position = one(backend.committed(&group, &topic).await?).position.expect("committed");
    assert_eq!(position.watermark, NextOffset(13));
    Ok(())
}

async fn subscribe_later(url: String) -> Tested {
    let (backend, first, second, group) = (connect(&url).await?, topic("first"), topic("second"), group("g"));
    create(&backend, &first, 2).await?;
    publish(&backend, &first, 4, 1..2).await?;
    let mut driver = Driver::join(&backend, &group, &first).await?;
    driver.until("the first is read", |heard| heard.messages.len() == 4).await?;
    // It does not exist yet: said, and tried again.
    driver.source.subscribe(&[first.clone(), second.clone()]);
    driver.until("it is told", |heard| heard.trouble.iter().any(|e| e.kind() == ErrorKind::NotFound)).await?;
    create(&backend, &second, 1).await?;
    publish(&backend, &second, 4, 1..2).await?;
    driver.until("the second is read", |heard| heard.messages.len() == 8).await?;
    driver.source.subscribe(std::slice::from_ref(&second));
    driver.until("the first is given up", |heard| heard.released == 2).await?;
    publish(&backend, &first, 4, 2..3).await?;
    driver.during(Duration::from_millis(200)).await?;
    assert_eq!(driver.heard.messages.len(), 8);
    driver.source.subscribe(&[second, first]);
    driver.until("the first is read again", |heard| heard.messages.len() == 12).await?;
    driver.close().await?;
    Ok(())
}

async fn lost_replies(url: String) -> Tested {
    let upstream = url.trim_start_matches("nats://").to_owned();
    let (direct, proxy) = (connect(&url).await?, Proxy::start(upstream)?);
    let lease = Duration::from_secs(6);
    let behind = NatsBackend::connect(config(&proxy.url("nats")).with_lease(lease)).await?;
    let (topic, group) = (topic("replies"), group("g"));
    create(&direct, &topic, 4).await?;
    let mut driver = Driver::join(&behind, &group, &topic).await?;
    driver.settle = false;
    for round in 0..5u64 {
        publish(&direct, &topic, 40, round * 2 + 1..round * 2 + 3).await?;
        let expected = (round as usize + 1) * 80;
        driver.until("all is read", |heard| heard.messages.len() == expected).await?;
        // All partitions commit while requests arrive and nothing comes back.
        let muting = async {
            proxy.mute();
            tokio::time::sleep(Duration::from_millis(400)).await;
            proxy.cut_for(Duration::from_millis(10)).await;
        };
        let held = std::mem::take(&mut driver.heard.held);
        let mut settled: Vec<_> = held.into_iter().map(|t| (t, ebus_core::Settlement::Finished)).collect();
        driver.source.settle(&mut settled);
        let (driven, ()) = tokio::join!(driver.during(Duration::from_millis(1_500)), muting);
        driven?;
    }
    driver.during(Duration::from_millis(500)).await?;
    assert_eq!((driver.heard.lost, driver.heard.epochs.len()), (0, 4), "{:?}", driver.heard.trouble);
    assert_eq!(driver.heard.messages.len(), 400, "nothing twice");
    driver.heard.check_order()?;
    driver.close().await?;
    let finished: u64 = direct
        .committed(&group, &topic)
        .await?
        .iter()
        .filter_map(|committed| committed.position.as_ref())
        .filter(|position| position.finished.is_empty())
        .count() as u64;
    assert_eq!(finished, 4, "the last commit covers all");
    Ok(())
}

async fn consumers_are_removed(url: String) -> Tested {
    let (backend, topic, group) = (quick(&url).await?, topic("consumers"), group("g"));
    create(&backend, &topic, 1).await?;
    publish(&backend, &topic, 1, 1..3).await?;
    let context = jetstream::new(async_nats::connect(&url).await?);
    for _ in 0..2 {
        let mut driver = Driver::join(&backend, &group, &topic).await?;
        publish(&backend, &topic, 1, 1..2).await?;
        driver.until("it reads", |heard| !heard.messages.is_empty()).await?;
        driver.during(Duration::from_millis(500)).await?; // the instance is in the record
        drop(driver); // as by a crash
    }
    let mut driver = Driver::join(&backend, &group, &topic).await?;
    publish(&backend, &topic, 1, 1..2).await?;
    driver.until("it reads", |heard| !heard.messages.is_empty()).await?;
    let mut stream = context.get_stream(topic.as_str()).await?;
    while stream.info().await?.state.consumer_count != 1 {
        driver.during(Duration::from_millis(20)).await?;
    }
    driver.close().await?;
    while stream.info().await?.state.consumer_count != 0 {
        tokio::task::yield_now().await;
    }
    Ok(())
}
