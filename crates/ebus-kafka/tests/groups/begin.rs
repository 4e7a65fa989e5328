//! Where a group begins in a topic, and topics that are made anew.

use std::time::Duration;

use ebus_core::{Backend, Error, ErrorKind, Message, PartitionId, Publish, StartPosition, TopicSpec};
use ebus_kafka::GroupProtocol;
use ebus_testkit::brokers::Server;
use ebus_testkit::conformance::LogFaults;
use ebus_testkit::proxy::Line;
use libtest_mimic::Trial;

use crate::log_faults::KafkaLogFaults;
use crate::raw::{Raw, Tested, fresh, go_on, publish, until};
use crate::{SESSION, connect, connect_with, options, private, shared};

pub(crate) fn trials() -> Vec<Trial> {
    [
        shared(
            "e07_a_topic_subscribed_later_begins_once_for_the_group",
            e07_a_topic_subscribed_later_begins_once_for_the_group,
        ),
        shared(
            "e07_latest_misses_nothing_after_a_member_has_joined",
            e07_latest_misses_nothing_after_a_member_has_joined,
        ),
        private(
            "e04_a_topic_made_anew_and_longer_is_begun_anew",
            e04_a_topic_made_anew_and_longer_is_begun_anew,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Two members read a second topic from now on, from `latest`: the past of none of its partitions comes, and all that is
/// published once it has begun. Neither member takes the other one's claim for a sign that its own partitions were added.
async fn e07_a_topic_subscribed_later_begins_once_for_the_group(
    url: String,
    protocol: GroupProtocol,
) -> Tested {
    // Whoever owns the first partition decides; it is told by chance. What matters is that the other one looks first.
    for first in [0, 1, 0, 1, 0, 1] {
        if a_topic_is_subscribed_later(&url, protocol, first).await? {
            return Ok(());
        }
    }
    Err("the member that does not decide never looked first".into())
}

/// True when the member that looks first is not the one that decides.
async fn a_topic_is_subscribed_later(url: &str, protocol: GroupProtocol, first: usize) -> Tested<bool> {
    // For which the other is told nothing: a heartbeat of the consumer protocol and a look-up, less than it waits for who decides.
    const ALONE: Duration = Duration::from_secs(8);
    let backends = [connect(url, protocol).await?, connect(url, protocol).await?];
    let (topic, later) = (fresh("now")?, fresh("later")?);
    for topic in [&topic, &later] {
        backends[0].create_topic(&TopicSpec::new(topic.clone(), 4)).await?;
    }
    let past = publish(&backends[0], &later, 400).await?;
    let options = options(&topic)?.with_start(StartPosition::Latest);
    let mut one = Raw::join(&backends[first], options.clone()).await?;
    let mut two = Raw::join(&backends[1 - first], options.clone()).await?;
    until("they share the first topic", [&mut one, &mut two], |[one, two]| share(one, two, 2)).await?;
    for member in [&mut one, &mut two] {
        member.source().subscribe(&[topic.clone(), later.clone()]);
    }
    go_on([&mut one], ALONE).await;
    until("they share both topics", [&mut one, &mut two], |[one, two]| share(one, two, 4)).await?;
    let new = publish(&backends[0], &later, 400).await?;
    until("all that is new comes", [&mut one, &mut two], |[one, two]| {
        one.inbound.len() + two.inbound.len() >= 400
    })
    .await?;
    go_on([&mut one, &mut two], Duration::from_millis(500)).await;
    let ends: Vec<u64> = (0..4).map(|part| past.iter().filter(|one| one.0 == part).count() as u64).collect();
    for member in [&one, &two] {
        for (inbound, _) in &member.inbound {
            let (partition, offset) = (member.partition(inbound.token.owned()), inbound.token.offset());
            assert!(offset >= ends[partition as usize], "{partition}/{offset} is of the past");
        }
    }
    assert_eq!(one.inbound.len() + two.inbound.len(), new.len(), "each once");
    let decides = PartitionId::new(later, 0);
    let other_decides = two.owned.values().any(|owned| owned.partition == decides);
    one.close().await?;
    two.close().await?;
    Ok(other_decides)
}

fn share(one: &mut Raw, two: &mut Raw, each: usize) -> bool {
    for member in [&mut *one, &mut *two] {
        if !member.revoking.is_empty() {
            member.release();
        }
    }
    one.owned.len() == each && two.owned.len() == each
}

/// A group has members already, and another joins it with a topic that nobody has read: what is published as soon as it has
/// joined is not missed, though nothing is assigned yet.
async fn e07_latest_misses_nothing_after_a_member_has_joined(url: String, protocol: GroupProtocol) -> Tested {
    let (first, second) = (connect(&url, protocol).await?, connect(&url, protocol).await?);
    let (topic, later) = (fresh("had")?, fresh("new")?);
    for topic in [&topic, &later] {
        first.create_topic(&TopicSpec::new(topic.clone(), 2)).await?;
    }
    publish(&first, &later, 50).await?;
    let start = options(&topic)?.with_start(StartPosition::Latest);
    let mut one = Raw::join(&first, start.clone()).await?;
    until("the first member is one", [&mut one], |[one]| one.owned.len() == 2).await?;
    let mut both = ebus_core::SourceOptions::new(start.group.clone(), vec![topic.clone(), later.clone()]);
    both = both.with_start(StartPosition::Latest).with_commit_interval(Duration::from_millis(50));
    let joining = tokio::spawn(async move { second.source(both).await });
    while !joining.is_finished() {
        one.look().await;
        if !one.revoking.is_empty() {
            one.release();
        }
    }
    let mut two = Raw::of(joining.await??);
    let new = publish(&first, &later, 50).await?;
    until("all that is new comes", [&mut one, &mut two], |[one, two]| {
        share(one, two, 0);
        two.inbound.len() >= new.len()
    })
    .await?;
    go_on([&mut one, &mut two], Duration::from_millis(300)).await;
    assert_eq!(two.inbound.len(), new.len(), "and none of the past");
    one.close().await?;
    two.close().await?;
    Ok(())
}

/// A topic is removed and made anew, with more messages than were read, while a member is cut off: no error says so, as the place
/// to read at is there. All of the new log is read.
async fn e04_a_topic_made_anew_and_longer_is_begun_anew(server: Server, protocol: GroupProtocol) -> Tested {
    let url = server.url();
    let links = server.links();
    let line = Line::open(links.first().ok_or("the broker has a link")?.routes())?;
    // No session ends by it.
    let long = |config: ebus_kafka::KafkaConfig| config.with_session_timeout(4 * SESSION);
    let cut_off = connect_with(&line.url("kafka"), protocol, long).await?;
    let backend = connect(&url, protocol).await?;
    let topic = fresh("longer")?;
    backend.create_topic(&TopicSpec::new(topic.clone(), 1)).await?;
    publish(&backend, &topic, 20).await?;
    let mut member = Raw::join(&cut_off, options(&topic)?).await?;
    until("the first log is read", [&mut member], |[member]| member.inbound.len() == 20).await?;
    member.finish(|_| true);
    go_on([&mut member], Duration::from_millis(300)).await;
    line.cut();
    KafkaLogFaults::new(&url).remake_topic(&topic).await?;
    // With a connection of its own: the other one may still know the old topic.
    let publisher = connect(&url, protocol).await?;
    let mut sent = publisher.publisher();
    for number in 0..50 {
        sent.publish(Publish::new(topic.clone(), Message::new(format!("{number}")))).await?;
    }
    line.heal();
    until("all of the new log is read", [&mut member], |[member]| {
        let mut offsets = member.offsets(0);
        offsets.sort_unstable();
        offsets.dedup();
        offsets == (0..50).collect::<Vec<u64>>()
    })
    .await?;
    let anew = |error: &Error| match error.kind() {
        ErrorKind::NotFound => error.message().contains("made anew"),
        // With the consumer protocol the broker revokes it, for that knows topics by their ids.
        ErrorKind::Decode => protocol == GroupProtocol::Consumer,
        _ => false,
    };
    assert!(member.troubles.iter().any(anew), "nobody was told: {member:#?}");
    let fenced = member.troubles.iter().find(|error| error.kind() == ErrorKind::Fenced);
    assert!(fenced.is_none(), "it was seen by another way: {member:#?}");
    member.close().await?;
    Ok(())
}
