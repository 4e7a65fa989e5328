//! Consumers of somebody else's in the same group: not disturbed by us, nor we by them.

use std::time::{Duration, Instant};

use ebus_core::{Backend, ErrorKind, Group, Topic, TopicSpec};
use ebus_kafka::GroupProtocol;
use ebus_testkit::brokers::{Need, shared_trial};
use libtest_mimic::Trial;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::log_faults::by_hand::commit_by_hand;
use crate::raw::{Raw, Tested, block, fresh, go_on, publish, until};
use crate::{connect, options};

pub(crate) fn trials() -> Vec<Trial> {
    let shared = |name: &str, test: fn(String) -> std::pin::Pin<Box<dyn Future<Output = Tested> + Send>>| {
        shared_trial(format!("{name}@classic"), Need::Kafka, move |url| block(test(url)))
    };
    vec![
        shared("e06_foreign_metadata_is_no_position", |url| {
            Box::pin(e06_foreign_metadata_is_no_position(url))
        }),
        shared("e06_a_commit_of_somebody_else_in_between", |url| {
            Box::pin(e06_a_commit_of_somebody_else_in_between(url))
        }),
        shared("d01_a_plain_consumer_takes_over_at_our_watermark", |url| {
            Box::pin(d01_a_plain_consumer_takes_over_at_our_watermark(url))
        }),
        shared("g08_an_eager_member_is_named", |url| Box::pin(g08_an_eager_member_is_named(url))),
    ]
}

fn bootstrap(url: &str) -> &str {
    url.trim_start_matches("kafka://")
}

/// Metadata that is not text, or missing, or empty, as old Java consumers leave it, or text of any kind: the offset counts.
async fn e06_foreign_metadata_is_no_position(url: String) -> Tested {
    let backend = connect(&url, GroupProtocol::Classic).await?;
    let kinds: [(Option<&[u8]>, bool); 5] = [
        (Some(&[0xff, 0xfe, 0x00, 0x80, b'e', b'1', b'.', 0xc3]), true),
        (None, false),
        (Some(b""), false),
        (Some(b"consumer-1 at 10:15"), true),
        (Some(b"e1.0.1.5.-.00000000"), true),
    ];
    for (metadata, told) in kinds {
        let topic = fresh("foreign")?;
        backend.create_topic(&TopicSpec::new(topic.clone(), 1)).await?;
        publish(&backend, &topic, 10).await?;
        commit_by_hand(bootstrap(&url), topic.as_str(), (topic.as_str(), 0), 5, metadata)?;
        let group = Group::new(topic.as_str())?;
        let committed = backend.committed(&group, &topic).await?;
        assert_eq!(committed[0].position.as_ref().map(|at| at.watermark.0), Some(5), "{metadata:?}");
        let mut member = Raw::join(&backend, options(&topic)?).await?;
        until("the rest is read", [&mut member], |[member]| member.inbound.len() >= 5).await?;
        go_on([&mut member], Duration::from_millis(200)).await;
        assert_eq!(member.offsets(0), [5, 6, 7, 8, 9], "{metadata:?}");
        let decode = member.troubles.iter().any(|error| error.kind() == ErrorKind::Decode);
        assert_eq!(decode, told, "{metadata:?}: {member:#?}");
        member.close().await?;
    }
    Ok(())
}

/// A tool of somebody else's moves the offset of a group that rests, and our metadata is gone with it: what finished above that
/// offset runs again, and nothing is skipped.
async fn e06_a_commit_of_somebody_else_in_between(url: String) -> Tested {
    let backend = connect(&url, GroupProtocol::Classic).await?;
    let topic = fresh("between")?;
    backend.create_topic(&TopicSpec::new(topic.clone(), 1)).await?;
    publish(&backend, &topic, 10).await?;
    let mut member = Raw::join(&backend, options(&topic)?).await?;
    until("all is read", [&mut member], |[member]| member.inbound.len() == 10).await?;
    member.finish(|inbound| inbound.token.offset() != 3);
    member.close().await?;
    let mut member = Raw::join(&backend, options(&topic)?).await?;
    until("what was not finished is read", [&mut member], |[member]| !member.inbound.is_empty()).await?;
    go_on([&mut member], Duration::from_millis(200)).await;
    assert_eq!(member.offsets(0), [3]);
    member.close().await?;
    let text = Some(&b"reset by an operator"[..]);
    commit_by_hand(bootstrap(&url), topic.as_str(), (topic.as_str(), 0), 3, text)?;
    let mut member = Raw::join(&backend, options(&topic)?).await?;
    until("all from there is read", [&mut member], |[member]| member.inbound.len() >= 7).await?;
    assert_eq!(member.offsets(0), (3..10).collect::<Vec<u64>>());
    member.close().await?;
    Ok(())
}

fn plain(url: &str, group: &str, strategy: &str) -> Tested<BaseConsumer> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", bootstrap(url))
        .set("group.id", group)
        .set("partition.assignment.strategy", strategy)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("session.timeout.ms", "6000")
        .create()?)
}

/// A consumer that is not ebus shares the partitions, begins at our watermark, and we go on where it has committed.
async fn d01_a_plain_consumer_takes_over_at_our_watermark(url: String) -> Tested {
    let backend = connect(&url, GroupProtocol::Classic).await?;
    let topic = fresh("plain")?;
    backend.create_topic(&TopicSpec::new(topic.clone(), 2)).await?;
    publish(&backend, &topic, 100).await?;
    let mut ours = Raw::join(&backend, options(&topic)?).await?;
    until("all is read", [&mut ours], |[ours]| ours.inbound.len() == 100).await?;
    let ends = [0, 1].map(|partition| ours.offsets(partition).len() as u64);
    // All but one of each partition: the watermark stands at 7.
    ours.finish(|inbound| inbound.token.offset() != 7);
    let theirs = plain(&url, topic.as_str(), "cooperative-sticky")?;
    theirs.subscribe(&[topic.as_str()])?;
    let (mut theirs_first, mut first) = (None, None);
    let begun = Instant::now();
    while theirs_first.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(40), "the plain consumer gets nothing: {ours:#?}");
        if let Some(message) = theirs.poll(Duration::from_millis(5)) {
            let message = message?;
            theirs_first = Some((message.partition(), message.offset()));
            first = Some(message.partition());
        }
        ours.look().await;
        if !ours.revoking.is_empty() {
            ours.release();
        }
    }
    assert_eq!(theirs_first.map(|one| one.1), Some(7), "it begins at our watermark");
    assert_eq!(ours.owned.len(), 1, "we share: {ours:#?}");
    // It handles ten and commits as such consumers do, without metadata, and leaves.
    let partition = first.expect("it has one");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic.as_str(), partition, Offset::Offset(17))?;
    theirs.commit(&list, CommitMode::Sync)?;
    let leaving = tokio::task::spawn_blocking(move || drop(theirs));
    until("we have both again", [&mut ours], |[ours]| ours.owned.len() == 2).await?;
    leaving.await?;
    let now =
        ours.owned.values().find(|one| one.partition.partition == partition as u32).expect("owned").owned;
    let end = ends[partition as usize];
    until("the rest is read", [&mut ours], |[ours]| {
        ours.inbound.iter().filter(|(one, _)| one.token.owned() == now).count() as u64 >= end - 17
    })
    .await?;
    let offsets: Vec<u64> = ours
        .inbound
        .iter()
        .filter(|(one, _)| one.token.owned() == now)
        .map(|(one, _)| one.token.offset())
        .collect();
    assert_eq!(offsets, (17..end).collect::<Vec<_>>(), "from where it committed: repeated, never skipped");
    ours.close().await?;
    Ok(())
}

/// A group whose members hand over all at once cannot be joined: that is told, by name, and again and again tried.
async fn g08_an_eager_member_is_named(url: String) -> Tested {
    let backend = connect(&url, GroupProtocol::Classic).await?;
    let topic: Topic = fresh("eager")?;
    backend.create_topic(&TopicSpec::new(topic.clone(), 2)).await?;
    publish(&backend, &topic, 20).await?;
    let theirs = plain(&url, topic.as_str(), "range")?;
    theirs.subscribe(&[topic.as_str()])?;
    let begun = Instant::now();
    while theirs.assignment()?.count() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(30), "the eager consumer gets nothing");
        let _ = theirs.poll(Duration::from_millis(20));
    }
    let mut ours = Raw::join(&backend, options(&topic)?).await?;
    until("it is told", [&mut ours], |[ours]| {
        let _ = theirs.poll(Duration::from_millis(5));
        ours.troubles.iter().any(|error| error.kind() == ErrorKind::Unsupported)
    })
    .await?;
    let text =
        ours.troubles.iter().find(|error| error.kind() == ErrorKind::Unsupported).map(ToString::to_string);
    println!("{text:?}");
    assert!(text.is_some_and(|text| text.contains("assignor")), "it does not say what to do: {ours:#?}");
    let leaving = tokio::task::spawn_blocking(move || drop(theirs));
    until("once it has left, we have all", [&mut ours], |[ours]| {
        ours.owned.len() == 2 || ours.ended.is_some()
    })
    .await?;
    leaving.await?;
    assert!(ours.ended.is_none(), "{ours:#?}");
    ours.close().await?;
    Ok(())
}
