//! What this backend does on a real Apache Kafka beyond the conformance suite.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use ebus_core::{
    Backend, ErrorKind, Group, LogMark, Message, NextOffset, Owned, Position, Publish, ReadRange, Source,
    SourceEvent, SourceOptions, Topic, TopicSpec,
};
use ebus_kafka::{Compression, KafkaBackend, KafkaConfig};
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

/// A topic that takes less than the connection would send: what is too large is refused before it is sent, to the byte, and sent
/// again once the topic takes it.
async fn what_a_topic_does_not_take_is_not_sent(url: String) -> Tested {
    const MOST: usize = 2_000;
    // 61 bytes before the record, 2 of its length, 8 in it around the payload.
    const PAYLOAD: usize = MOST - 71;
    let plain = |url: &str| Ok::<_, Failed>(KafkaConfig::from_url(url)?.with_compression(Compression::None));
    let backend = KafkaBackend::connect(plain(&url)?).await?;
    let topic = fresh("less")?;
    let settings = [("max.message.bytes", MOST.to_string()), ("cleanup.policy", "compact".to_owned())];
    support::create(&url, topic.as_str(), &settings).await?;
    let message = |bytes: usize| ebus_core::Message::new(vec![b'x'; bytes]).with_key("k");
    let publish = async |message: ebus_core::Message| {
        backend.publisher().publish(ebus_core::Publish::new(topic.clone(), message)).await
    };
    publish(message(PAYLOAD)).await?;
    // None of them makes the next one wait for a look-up.
    for _ in 0..2 {
        let error = publish(message(PAYLOAD + 1)).await.err().ok_or("a byte too many was taken")?;
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert!(error.to_string().contains("takes 2000"), "the broker refused it, not we: {error}");
    }
    let error = publish(ebus_core::Message::new("no key")).await.err().ok_or("no key was taken")?;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    // As the broker sees it: one byte more is too much.
    let sent = support::send(&url, topic.as_str(), PAYLOAD + 1)?;
    assert_eq!(sent, Some(rdkafka::error::RDKafkaErrorCode::MessageSizeTooLarge), "the bound is too low");
    support::alter(&url, topic.as_str(), ("max.message.bytes", "4000")).await?;
    let begun = Instant::now();
    while let Err(error) = publish(message(PAYLOAD + 1)).await {
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert!(begun.elapsed() < PATIENCE, "what the topic takes now is not asked for: {error}");
    }
    backend.close(Duration::from_secs(5)).await?;
    Ok(())
}

mod support {
    //! Clients of somebody else's.

    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use libtest_mimic::Failed;
    use rdkafka::admin::{
        AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
    };
    use rdkafka::client::{ClientContext, DefaultClientContext};
    use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
    use rdkafka::error::RDKafkaErrorCode;
    use rdkafka::message::DeliveryResult;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
    use rdkafka::{ClientConfig, Offset, TopicPartitionList};

    fn client(url: &str) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", url.trim_start_matches("kafka://"));
        client
    }

    /// Creates a topic of one partition with these settings.
    pub(super) async fn create(url: &str, topic: &str, settings: &[(&str, String)]) -> Result<(), Failed> {
        let admin: AdminClient<DefaultClientContext> = client(url).create()?;
        let mut new = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
        for (name, value) in settings {
            new = new.set(name, value);
        }
        for result in admin.create_topics(&[new], &AdminOptions::new()).await? {
            result.map_err(|(topic, code)| format!("{topic}: {code}"))?;
        }
        Ok(())
    }

    /// Changes a setting of a topic.
    pub(super) async fn alter(url: &str, topic: &str, (name, value): (&str, &str)) -> Result<(), Failed> {
        let admin: AdminClient<DefaultClientContext> = client(url).create()?;
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(name, value);
        for result in admin.alter_configs(&[change], &AdminOptions::new()).await? {
            result.map_err(|(_, code)| format!("{topic}: {code}"))?;
        }
        Ok(())
    }

    #[derive(Clone, Default)]
    struct Answer(Arc<Mutex<Option<RDKafkaErrorCode>>>);

    impl ClientContext for Answer {}

    impl ProducerContext for Answer {
        type DeliveryOpaque = ();

        fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
            let code = result.as_ref().err().and_then(|(error, _)| error.rdkafka_error_code());
            *self.0.lock().expect("nobody panics with it") = code;
        }
    }

    /// Sends one message of this size, with the key `k` and no compression: why it was refused, if it was.
    pub(super) fn send(url: &str, topic: &str, bytes: usize) -> Result<Option<RDKafkaErrorCode>, Failed> {
        let answer = Answer::default();
        let producer: BaseProducer<Answer> = client(url).create_with_context(answer.clone())?;
        let payload = vec![b'x'; bytes];
        let record = BaseRecord::<[u8], [u8]>::to(topic).key(b"k").payload(&payload);
        producer.send(record).map_err(|(error, _)| error)?;
        producer.flush(Duration::from_secs(10))?;
        let code = *answer.0.lock().expect("nobody panics with it");
        Ok(code)
    }

    /// Commits for a group without members.
    pub(super) fn commit(
        url: &str,
        group: &str,
        topic: &str,
        offset: i64,
        metadata: &str,
    ) -> Result<(), Failed> {
        let consumer: BaseConsumer = client(url).set("group.id", group).create()?;
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(topic, 0);
        element.set_offset(Offset::Offset(offset))?;
        element.set_metadata(metadata);
        consumer.commit(&list, CommitMode::Sync)?;
        Ok(())
    }
}

/// Headers, keys and payloads of every shape beside each other, compressed or not: none takes another's for its own.
async fn messages_of_all_shapes_beside_each_other(url: String) -> Tested {
    for compression in [Compression::None, Compression::Lz4, Compression::Gzip] {
        let backend =
            KafkaBackend::connect(KafkaConfig::from_url(&url)?.with_compression(compression)).await?;
        let topic = fresh("shapes")?;
        backend.create_topic(&TopicSpec::new(topic.clone(), 1)).await?;
        let messages: Vec<Message> = (0..600_usize)
            .map(|i| {
                // None, a byte, and more than has room in a slab beside others.
                let mut message = Message::new(vec![b'x'; [0, 1, 300, 9_000][i % 4]]);
                if i % 3 > 0 {
                    message = message.with_key("k".repeat(i % 3));
                }
                (0..i % 5).fold(message, |message, n| message.with_header(format!("h{n}"), vec![0; n]))
            })
            .collect();
        let mut publisher = backend.publisher();
        let mut sent = Vec::new();
        for message in &messages {
            sent.push(publisher.enqueue(Publish::new(topic.clone(), message.clone())).await?);
        }
        for one in sent {
            one.await?;
        }
        let mut reader = backend.read(ReadRange::new(topic.clone(), 0, 0, NextOffset(600))).await?;
        let mut read = Vec::new();
        while reader.next(100, &mut read).await? > 0 {}
        assert_eq!(read.len(), messages.len());
        for ((_, read), message) in read.iter().zip(&messages) {
            assert_eq!(
                (&read.key, &read.payload, &read.headers),
                (&message.key, &message.payload, &message.headers)
            );
        }
        backend.close(Duration::from_secs(10)).await?;
    }
    Ok(())
}

fn main() {
    let args = libtest_mimic::Arguments::from_args();
    let trials = vec![
        shared(
            "d_closing_while_a_revocation_is_held_lets_go_of_it",
            closing_while_a_revocation_is_held_lets_go_of_it,
        ),
        shared("a01_messages_of_all_shapes_beside_each_other", messages_of_all_shapes_beside_each_other),
        shared("a02_what_a_topic_does_not_take_is_not_sent", what_a_topic_does_not_take_is_not_sent),
        shared("e06_a_position_of_another_log_is_begun_anew", a_position_of_another_log_is_begun_anew),
    ];
    libtest_mimic::run(&args, trials).exit();
}
