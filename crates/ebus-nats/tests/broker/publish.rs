//! Publishing and topics.

use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use ebus_core::{
    Backend, ErrorKind, Message, NextOffset, Publish, ReadRange, Retryability, Topic, TopicSpec,
};
use ebus_nats::{MissingTopic, NatsBackend, NatsConfig};
use ebus_testkit::proxy::Proxy;
use futures_util::future::join_all;
use libtest_mimic::Trial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::shared;
use crate::support::drive::{Tested, config, connect, create, publish, refused, topic};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("p2_a_key_has_the_partition_of_the_java_clients_and_is_plain_on_the_wire", on_the_wire),
        shared("i07_a_topic_is_created_once_and_never_changed", create_twice),
        shared("a05_a_missing_topic_follows_the_policy", missing_topic),
        shared("a_topic_that_is_deleted_under_a_publisher_is_not_found", deleted_topic),
        shared("what_another_stream_took_is_an_error_and_nothing_more_goes_there", stored_elsewhere),
        shared("an_id_that_was_seen_is_stored_once", same_id),
        shared("a02_what_the_stream_does_not_take_is_too_large", too_large),
        shared("h03_without_a_server_publish_fails_in_time_and_says_so", server_gone),
        shared("p7_only_the_last_failed_message_of_a_key_is_safe_to_try_again", safe_to_retry),
        shared("a_bounded_range_is_read_and_ends", read_range),
        shared("i05_a_wrong_address_is_refused_in_time", wrong_address),
        shared("a_server_that_is_too_old_is_refused", old_server),
    ]
}

async fn on_the_wire(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("wire"));
    create(&backend, &topic, 4).await?;
    let message = Message::new("body").with_key("21").with_header("X-One", "1");
    let receipt = backend.publisher().publish(Publish::new(topic.clone(), message)).await?;
    // murmur2("21") is -973932308 in Kafka's own tests.
    assert_eq!(receipt.partition, (-973_932_308i32 & 0x7fff_ffff) as u32 % 4);
    let context = jetstream::new(async_nats::connect(&url).await?);
    let raw = context.get_stream(topic.as_str()).await?.get_raw_message(receipt.offset).await?;
    assert_eq!(raw.subject.as_str(), format!("{topic}.{}", receipt.partition));
    assert_eq!(raw.payload, "body");
    let header = |name| raw.headers.get(name).map(|value| value.as_str());
    assert_eq!(header("X-One"), Some("1"));
    let own = |id: &str| id.starts_with("Ebus ") && id.split(' ').nth(2) == Some("21");
    assert!(header("Nats-Msg-Id").is_some_and(own), "{:?}", raw.headers);
    assert_eq!(raw.headers.len(), 2);
    Ok(())
}

async fn create_twice(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("twice"));
    let spec = TopicSpec::new(topic.clone(), 3);
    let others = join_all((0..4).map(|_| backend.create_topic(&spec))).await;
    for created in others {
        assert_eq!(created?.partitions.len(), 3);
    }
    refused(
        backend.create_topic(&TopicSpec::new(topic.clone(), 4)).await,
        ErrorKind::ConfigInvalid,
        "3 partitions",
    )?;
    assert_eq!(backend.describe_topic(&topic).await?.partitions.len(), 3);
    let context = jetstream::new(async_nats::connect(&url).await?);
    let info = context.get_stream(topic.as_str()).await?.cached_info().clone();
    let stream::Config { max_messages, max_bytes, max_age, retention, .. } = info.config;
    assert_eq!((max_messages, max_bytes, max_age), (-1, -1, Duration::ZERO), "nothing is evicted");
    assert_eq!(retention, stream::RetentionPolicy::Limits);
    refused(
        backend.create_topic(&TopicSpec::new(Topic::new("KV_x")?, 1)).await,
        ErrorKind::ConfigInvalid,
        "KV_",
    )?;
    refused(
        backend.create_topic(&TopicSpec::new(self::topic("r"), 1).with_replicas(3)).await,
        ErrorKind::Unsupported,
        "replicas need a cluster",
    )
}

async fn missing_topic(url: String) -> Tested {
    let missing = topic("missing");
    let publish = || Publish::new(missing.clone(), Message::new("x"));
    let refusing = connect(&url).await?;
    let failed = refusing.publisher().publish(publish()).await;
    refused(failed, ErrorKind::NotFound, missing.as_str())?;
    let create = MissingTopic::Create { partitions: 2, replicas: 1 };
    let creating = NatsBackend::connect(config(&url).with_missing_topic(create)).await?;
    assert!(creating.capability().creates_topics && !refusing.capability().creates_topics);
    creating.publisher().publish(publish()).await?;
    assert_eq!(refusing.describe_topic(&missing).await?.partitions.len(), 2);
    // The first failure is not remembered.
    refusing.publisher().publish(publish()).await?;
    Ok(())
}

async fn deleted_topic(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("deleted"));
    create(&backend, &topic, 2).await?;
    publish(&backend, &topic, 3, 1..3).await?;
    let context = jetstream::new(async_nats::connect(&url).await?);
    context.delete_stream(topic.as_str()).await?;
    let mut publisher = backend.publisher();
    for _ in 0..2 {
        let failed = publisher.publish(Publish::new(topic.clone(), Message::new("x"))).await;
        refused(failed, ErrorKind::NotFound, "no such topic")?;
    }
    create(&backend, &topic, 5).await?;
    publish(&backend, &topic, 3, 1..3).await?;
    Ok(())
}

/// A stream of somebody else takes the subjects of a topic whose stream is gone.
async fn stored_elsewhere(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("elsewhere"));
    create(&backend, &topic, 2).await?;
    publish(&backend, &topic, 3, 1..3).await?;
    let context = jetstream::new(async_nats::connect(&url).await?);
    context.delete_stream(topic.as_str()).await?;
    let other = format!("{topic}-other");
    context
        .create_stream(stream::Config {
            name: other.clone(),
            subjects: vec![format!("{topic}.>")],
            ..Default::default()
        })
        .await?;
    let mut publisher = backend.publisher();
    let publish = || Publish::new(topic.clone(), Message::new("x").with_key("k"));
    refused(publisher.publish(publish()).await, ErrorKind::Unexpected, &other)?;
    for _ in 0..3 {
        refused(publisher.publish(publish()).await, ErrorKind::NotFound, "no such topic")?;
    }
    let stored = context.get_stream(&other).await?.cached_info().state.messages;
    assert_eq!(stored, 1, "nothing more went there");
    Ok(())
}

async fn same_id(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("id"));
    create(&backend, &topic, 1).await?;
    let mut publisher = backend.publisher();
    let publish = |id: &str| Publish::new(topic.clone(), Message::new("x").with_key("k")).with_id(id);
    let first = publisher.publish(publish("one")).await?;
    let again = publisher.publish(publish("one")).await?;
    let other = publisher.publish(publish("two")).await?;
    assert_eq!((first.duplicate, again.duplicate, other.duplicate), (false, true, false));
    assert_eq!((first.offset, again.offset, other.offset), (1, 1, 2));
    refused(publisher.publish(publish("a\r\nb")).await, ErrorKind::ConfigInvalid, "id")?;
    refused(publisher.publish(publish("")).await, ErrorKind::ConfigInvalid, "id")
}

async fn too_large(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("large"));
    let context = jetstream::new(async_nats::connect(&url).await?);
    context
        .create_stream(stream::Config {
            name: topic.to_string(),
            subjects: vec![topic.to_string()],
            max_message_size: 500,
            ..Default::default()
        })
        .await?;
    let mut publisher = backend.publisher();
    for _ in 0..2 {
        // The first time the server says it, then the publisher knows.
        let failed = publisher.publish(Publish::new(topic.clone(), Message::new(vec![0; 600]))).await;
        refused(failed, ErrorKind::TooLarge, "stream allows")?;
    }
    publisher.publish(Publish::new(topic.clone(), Message::new(vec![0; 100]))).await?;
    Ok(())
}

async fn server_gone(url: String) -> Tested {
    let upstream = url.trim_start_matches("nats://").to_owned();
    let proxy = Proxy::start(upstream)?;
    let timeout = Duration::from_millis(500);
    let behind = config(&proxy.url("nats")).with_publish_timeout(timeout).with_max_in_flight(100);
    let (backend, topic) = (NatsBackend::connect(behind).await?, topic("gone"));
    create(&backend, &topic, 2).await?;
    publish(&backend, &topic, 2, 1..2).await?;
    // From now on nothing passes; the other side learns of it in a moment.
    proxy.cut();
    let cut = tokio::spawn({
        let proxy = proxy.clone();
        async move { proxy.cut_for(Duration::from_secs(3)).await }
    });
    let began = Instant::now();
    let mut publisher = backend.publisher();
    let mut waiting = Vec::new();
    for number in 0..300 {
        // The bound holds: only what failed makes room.
        let message = Message::new(number.to_string());
        waiting.push(publisher.enqueue(Publish::new(topic.clone(), message)).await?);
    }
    for failed in join_all(waiting).await {
        let error = failed.expect_err("nobody is there");
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error:?}");
    }
    assert!(began.elapsed() < 6 * timeout, "{:?}", began.elapsed());
    cut.await?;
    // It goes on by itself.
    while publisher.publish(Publish::new(topic.clone(), Message::new("back"))).await.is_err() {}
    for (partition, there) in (0..).zip(backend.describe_topic(&topic).await?.partitions) {
        let range = ReadRange::new(topic.clone(), partition, there.earliest, there.end);
        let (mut reader, mut read) = (backend.read(range).await?, Vec::new());
        while reader.next(100, &mut read).await? > 0 {}
        for (_, message) in read {
            // Those in flight at the cut may have been stored; all others failed as not stored.
            let text = std::str::from_utf8(&message.payload)?;
            assert!(
                text.parse::<u32>().is_ok_and(|number| number < 100) || text == "back",
                "{text} was stored"
            );
        }
    }
    Ok(())
}

async fn safe_to_retry(url: String) -> Tested {
    let upstream = url.trim_start_matches("nats://").to_owned();
    let proxy = Proxy::start(upstream)?;
    let behind = config(&proxy.url("nats")).with_publish_timeout(Duration::from_millis(400));
    let (backend, topic) = (NatsBackend::connect(behind).await?, topic("safe"));
    create(&backend, &topic, 2).await?;
    publish(&backend, &topic, 2, 1..2).await?;
    let cut = tokio::spawn({
        let proxy = proxy.clone();
        async move { proxy.cut_for(Duration::from_secs(1)).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut publisher = backend.publisher();
    let mut waiting = Vec::new();
    for key in ["a", "b", "a"] {
        let message = Message::new("x").with_key(key);
        waiting.push(publisher.enqueue(Publish::new(topic.clone(), message)).await?);
    }
    let safe: Vec<_> =
        join_all(waiting).await.into_iter().map(|failed| failed.expect_err("cut").retryability()).collect();
    assert_eq!(safe, [Retryability::Never, Retryability::Safe, Retryability::Safe]);
    cut.await?;
    Ok(())
}

async fn read_range(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("range"));
    create(&backend, &topic, 2).await?;
    publish(&backend, &topic, 7, 1..101).await?;
    let info = backend.describe_topic(&topic).await?;
    let mut all = 0;
    for (partition, there) in (0..).zip(&info.partitions) {
        let end = NextOffset(u64::MAX);
        let mut reader = backend.read(ReadRange::new(topic.clone(), partition, 0, end)).await?;
        let mut read = Vec::new();
        while reader.next(64, &mut read).await? > 0 {}
        assert_eq!(read.first().map(|(offset, _)| *offset), Some(there.earliest));
        assert_eq!(read.last().map(|(offset, _)| NextOffset::after(*offset)), Some(there.end));
        assert!(read.is_sorted_by_key(|(offset, _)| *offset));
        all += read.len();
        let (from, to) = (read[10].0, read[20].0);
        let mut reader = backend.read(ReadRange::new(topic.clone(), partition, from, NextOffset(to))).await?;
        let mut part = Vec::new();
        while reader.next(3, &mut part).await? > 0 {}
        assert_eq!(part, read[10..20]);
    }
    assert_eq!(all, 700);
    refused(
        backend.read(ReadRange::new(topic.clone(), 2, 0, NextOffset(1))).await.map(drop),
        ErrorKind::NotFound,
        "no such partition",
    )
}

/// A server that only says who it is.
async fn old_server(_: String) -> Tested {
    for (version, is_refused) in [("2.8.4", true), ("1.4.1", true), ("2.9.0", false)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("nats://{}", listener.local_addr()?);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let info = format!(
                    r#"INFO {{"server_id":"old","version":"{version}","proto":1,"headers":true,"max_payload":1048576,"jetstream":true}}"#
                );
                let _ = client.write_all(format!("{info}\r\n").as_bytes()).await;
                let mut said = vec![0; 4_096];
                while let Ok(count @ 1..) = client.read(&mut said).await {
                    if said[..count].windows(6).any(|word| word == b"PING\r\n") {
                        let _ = client.write_all(b"PONG\r\n").await;
                    }
                }
            }
        });
        let connected = connect(&address).await;
        if is_refused {
            refused(connected, ErrorKind::Unsupported, version)?;
        } else {
            connected?;
        }
    }
    Ok(())
}

async fn wrong_address(_: String) -> Tested {
    let began = Instant::now();
    let nobody = NatsConfig::new(["nats://127.0.0.1:1"]).with_connect_timeout(Duration::from_secs(1));
    refused(NatsBackend::connect(nobody).await, ErrorKind::Unavailable, "127.0.0.1:1")?;
    // It accepts and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("nats://{}", silent.local_addr()?);
    let silent = NatsConfig::new([address]).with_connect_timeout(Duration::from_secs(1));
    refused(NatsBackend::connect(silent).await, ErrorKind::Unavailable, "in time")?;
    assert!(began.elapsed() < Duration::from_secs(6));
    Ok(())
}
