//! What this backend does on a real Apache Kafka beyond the conformance suite.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use ebus_core::{
    Backend, ErrorKind, Group, LogMark, NextOffset, Owned, Position, Source, SourceEvent, SourceOptions,
    Topic, TopicSpec,
};
use ebus_kafka::{KafkaBackend, KafkaConfig};
use ebus_testkit::brokers::{Need, shared_trial};
use libtest_mimic::{Failed, Trial};

type Tested = Result<(), Failed>;

const PATIENCE: Duration = Duration::from_secs(45);

fn shared<F: Future<Output = Tested>>(name: &str, test: impl FnOnce(String) -> F + Send + 'static) -> Trial {
    shared_trial(name, Need::Kafka, move |url| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(test(url))
    })
}

async fn connect(url: &str) -> Result<KafkaBackend, Failed> {
    let config = KafkaConfig::from_url(url)?.with_session_timeout(Duration::from_secs(6));
    Ok(KafkaBackend::connect(config).await?)
}

/// A name that no other run has.
fn fresh(what: &str) -> Result<Topic, Failed> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(Topic::new(format!("{what}-{:x}", now.as_nanos()))?)
}

/// Receives until `done` says so; what is owned then.
async fn receive(
    source: &mut Box<dyn Source>,
    mut done: impl FnMut(&SourceEvent, &HashSet<Owned>) -> bool,
) -> Result<HashSet<Owned>, Failed> {
    let mut owned = HashSet::new();
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut events = Vec::new();
        if tokio::time::timeout_at(end, source.recv(100, &mut events)).await?? == 0 {
            return Err("the source has ended".into());
        }
        for event in events {
            match &event {
                SourceEvent::Assigned { owned: new } => {
                    owned.extend(new.iter().map(|assigned| assigned.owned))
                }
                SourceEvent::Lost { owned: gone } => owned.retain(|one| !gone.contains(one)),
                _ => {}
            }
            if done(&event, &owned) {
                return Ok(owned);
            }
        }
    }
}

/// The handle waits for what a revocation holds, for ever, unless it is let go of.
async fn closing_while_a_revocation_is_held_lets_go_of_it(url: String) -> Tested {
    let (one, two) = (connect(&url).await?, connect(&url).await?);
    let topic = fresh("held")?;
    one.create_topic(&TopicSpec::new(topic.clone(), 2)).await?;
    let options = SourceOptions::new(Group::new(topic.as_str())?, vec![topic.clone()]);
    let mut first = one.source(options.clone()).await?;
    receive(&mut first, |_, owned| owned.len() == 2).await?;
    let mut second = two.source(options).await?;
    let waiting = tokio::spawn(async move {
        let all = receive(&mut second, |_, owned| owned.len() == 2).await.map(|_| ());
        (all, second)
    });
    receive(&mut first, |event, _| matches!(event, SourceEvent::Revoking { .. })).await?;
    let begun = Instant::now();
    first.close(Duration::from_secs(5)).await?;
    let (all, second) = waiting.await?;
    all?;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(20), "the other member waited {took:?} for both partitions");
    second.close(Duration::from_secs(5)).await?;
    Ok(())
}

/// The offset of a log that is no more says nothing about the one that has its name now.
async fn a_position_of_another_log_is_begun_anew(url: String) -> Tested {
    let backend = connect(&url).await?;
    let topic = fresh("anew")?;
    backend.create_topic(&TopicSpec::new(topic.clone(), 1)).await?;
    for payload in ["a", "b", "c"] {
        let message = ebus_core::Message::new(payload);
        backend.publisher().publish(ebus_core::Publish::new(topic.clone(), message)).await?;
    }
    let group = Group::new(topic.as_str())?;
    let foreign = Position::at(NextOffset(2)).encode(LogMark(7), ebus_core::Epoch(1));
    support::commit(&url, group.as_str(), topic.as_str(), 2, &foreign)?;
    let mut source = backend.source(SourceOptions::new(group, vec![topic])).await?;
    let (mut offsets, mut told) = (Vec::new(), false);
    receive(&mut source, |event, _| {
        match event {
            SourceEvent::Message(inbound) => offsets.push(inbound.token.offset()),
            SourceEvent::Trouble(error) => told |= error.kind() == ErrorKind::Decode,
            _ => {}
        }
        offsets.len() == 3
    })
    .await?;
    assert_eq!(offsets, [0, 1, 2]);
    assert!(told, "a position that is ignored is told of");
    source.close(Duration::from_secs(5)).await?;
    Ok(())
}

mod support {
    //! A consumer of somebody else's.

    use libtest_mimic::Failed;
    use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
    use rdkafka::{ClientConfig, Offset, TopicPartitionList};

    /// Commits for a group without members.
    pub(super) fn commit(
        url: &str,
        group: &str,
        topic: &str,
        offset: i64,
        metadata: &str,
    ) -> Result<(), Failed> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", url.trim_start_matches("kafka://"))
            .set("group.id", group)
            .create()?;
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(topic, 0);
        element.set_offset(Offset::Offset(offset))?;
        element.set_metadata(metadata);
        consumer.commit(&list, CommitMode::Sync)?;
        Ok(())
    }
}

fn main() {
    let args = libtest_mimic::Arguments::from_args();
    let trials = vec![
        shared(
            "d_closing_while_a_revocation_is_held_lets_go_of_it",
            closing_while_a_revocation_is_held_lets_go_of_it,
        ),
        shared("e06_a_position_of_another_log_is_begun_anew", a_position_of_another_log_is_begun_anew),
    ];
    libtest_mimic::run(&args, trials).exit();
}
