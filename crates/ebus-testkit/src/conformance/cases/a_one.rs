//! A. One message.

use std::time::{Duration, Instant};

use ebus_core::{
    Error, ErrorKind, Group, Key, Message, Publish, ReadRange, SourceOptions, Timestamp, Topic, TopicSpec,
};

use super::super::TopicPolicy;
use super::super::ctx::{Ctx, keys, message};
use super::super::failure::Checked;

/// What "at once" may be on a slow machine.
const AT_ONCE: Duration = Duration::from_secs(2);

/// a01: key, headers (duplicates, order, binary values), payload and timestamp arrive as sent; 0 B, 1 B, 1 MiB.
pub(super) async fn a01_arrives_as_sent(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("one", 2).await?;
    // 1 MiB, or what the backend takes beside key and headers.
    let large = (1 << 20).min(ctx.capability().max_message_bytes.saturating_sub(4 << 10));
    let sent = [
        Message::new(vec![]),
        Message::new("x").with_key("order-1").with_timestamp(Timestamp::from_millis(1_700_000_000_123)),
        Message::new(vec![0xfe; large]).with_key(Key::new(vec![0, 255, 10, 13, 58])),
        Message::new(vec![0, 1, 255])
            .with_key("")
            .with_header("b", "1")
            .with_header("a", vec![0, 255, 10, 13, 128])
            .with_header("b", "2")
            .with_header("B", "")
            .with_header("X-Mixed-Case", "ü"),
    ];
    let member = ctx.member("m", &ctx.group("g"), &[&topic]).start().await?;
    let mut publisher = ctx.publisher();
    for message in &sent {
        publisher.publish(Publish::new(topic.clone(), message.clone())).await?;
    }
    ctx.until_handled(sent.len()).await?;
    let _ = member.drain(ctx.patience()).await;
    let got = ctx.log.all();
    for message in &sent {
        let same = |other: &Message| other.payload.len() == message.payload.len() && other.key == message.key;
        let arrived = got.iter().find(|ran| same(&ran.message)).map(|ran| &ran.message);
        let Some(arrived) = arrived else {
            panic!("{:?} has not arrived with its key and length", message.key)
        };
        assert_eq!(arrived.headers, message.headers, "headers");
        assert_eq!(arrived.timestamp, message.timestamp, "timestamp");
        assert!(arrived.payload == message.payload, "a payload of {} bytes changed", message.payload.len());
    }
    assert_eq!(got.len(), sent.len());
    Ok(())
}

/// a02: above the size limit: `TooLarge` at publish, at once, nothing sent.
pub(super) async fn a02_too_large_is_refused_at_once(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("large", 1).await?;
    let most = ctx.capability().max_message_bytes;
    let mut publisher = ctx.publisher();
    let (key, header, value) = ("order-1", "h", "v");
    let of = |bytes: usize| {
        let message = Message::new(vec![7; bytes]).with_key(key).with_header(header, value);
        Publish::new(topic.clone(), message)
    };
    for bytes in [most + 1, 2 * most] {
        let began = Instant::now();
        let error = publisher.publish(of(bytes)).await.expect_err("it is above the limit");
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert!(error.to_string().contains(topic.as_str()), "it does not say where: {error}");
        assert!(began.elapsed() < AT_ONCE, "it took {:?}", began.elapsed());
    }
    assert_eq!(ctx.count(&topic).await?, 0, "something was sent");
    publisher.publish(of(most / 2)).await?;
    assert_eq!(ctx.count(&topic).await?, 1, "publishing does not go on");
    Ok(())
}

/// a03: an illegal topic name is refused wherever a topic can be given, naming the rule.
pub(super) async fn a03_an_illegal_name_is_refused(ctx: &Ctx) -> Checked {
    let long = "x".repeat(201);
    for (name, rule) in [
        ("", "empty"),
        ("..", "dot"),
        (".a", "dot"),
        ("a..b", "dot"),
        ("a b", "' '"),
        ("a*", "'*'"),
        ("a>", "'>'"),
        ("a/b", "'/'"),
        ("a\nb", "'\\n'"),
        ("ü", "'ü'"),
        (&long, "201 bytes"),
    ] {
        // Publish, subscribe and admin take no other name than a `Topic`, so it is enough to ask the two ways to one.
        let refused: [Error; 3] = [
            Topic::new(name).expect_err("it is illegal"),
            Publish::to(name, Message::new("x")).expect_err("it is illegal"),
            Group::new(name).expect_err("it is illegal"),
        ];
        for error in refused {
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error}");
            assert!(error.to_string().contains(rule), "{name:?}: {error}");
        }
    }
    // What is legal is legal to the broker too, and names that differ only in case are two topics.
    let mut publisher = ctx.publisher();
    for (number, name) in ["A-b_c.9", "a-b_c.9", "0"].into_iter().enumerate() {
        let topic = Topic::new(ctx.name(name))?;
        ctx.control.create_topic(&TopicSpec::new(topic.clone(), 1)).await?;
        for version in 0..=number as u64 {
            publisher.publish(Publish::new(topic.clone(), message("k", version))).await?;
        }
        assert_eq!(ctx.count(&topic).await?, number + 1, "{topic}");
    }
    Ok(())
}

/// a04: no leakage between topics, even with equal ids.
pub(super) async fn a04_topics_do_not_leak(ctx: &Ctx) -> Checked {
    let topics = [ctx.topic("left", 2).await?, ctx.topic("left.right", 2).await?, ctx.topic("lef", 2).await?];
    let names = keys("k", 5);
    let _member = ctx.member("m", &ctx.group("g"), &[&topics[0], &topics[1], &topics[2]]).start().await?;
    let mut publisher = ctx.publisher();
    for (version, topic) in (1..).zip(&topics) {
        for key in &names {
            // The id says the same in all topics: only within one it may mean the same message.
            let publish = Publish::new(topic.clone(), message(key, version)).with_id(format!("id-{key}"));
            let receipt = publisher.publish(publish).await?;
            assert!(!receipt.duplicate, "{topic} takes an id of another topic for its own");
        }
    }
    ctx.until_handled(topics.len() * names.len()).await?;
    for ran in ctx.log.all() {
        let sent_to = &topics[ran.version as usize - 1];
        assert_eq!(ran.topic, sent_to.as_str(), "a message of one topic came from another");
    }
    for topic in &topics {
        assert_eq!(ctx.count(topic).await?, names.len(), "{topic}");
    }
    Ok(())
}

/// a05: a receipt names partition and offset; a topic that does not exist follows the topic policy.
pub(super) async fn a05_a_receipt_names_the_place(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("placed", 3).await?;
    let mut publisher = ctx.publisher();
    for version in 1..=20 {
        let sent = message(&format!("k{}", version % 7), version);
        let receipt = publisher.publish(Publish::new(topic.clone(), sent.clone())).await?;
        assert_eq!(receipt.topic, topic);
        let (from, to) = (receipt.offset, ebus_core::NextOffset::after(receipt.offset));
        let mut read = Vec::new();
        let mut reader = ctx.control.read(ReadRange::new(topic.clone(), receipt.partition, from, to)).await?;
        while reader.next(10, &mut read).await? > 0 {}
        assert_eq!(read, [(receipt.offset, sent)], "another message is at the place of the receipt");
    }
    let absent = ctx.absent_topic("absent");
    let error = ctx.control.describe_topic(&absent).await.expect_err("it does not exist");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    if let Some(strict) = ctx.harness.connect_with(TopicPolicy::MustExist).await? {
        let absent = ctx.absent_topic("strict");
        let publish = Publish::new(absent.clone(), message("k", 1));
        let published =
            tokio::time::timeout(ctx.patience(), strict.publisher().publish(publish.clone())).await?;
        let joined = strict.source(SourceOptions::new(ctx.group("g"), vec![absent.clone()])).await;
        for error in [published.expect_err("it does not exist"), joined.err().expect("it does not exist")] {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            assert!(error.to_string().contains(absent.as_str()), "it does not say which: {error}");
        }
        strict.create_topic(&TopicSpec::new(absent, 1)).await?;
        strict.publisher().publish(publish).await?;
        strict.close(ctx.patience()).await?;
    }
    if let Some(creating) = ctx.harness.connect_with(TopicPolicy::Create { partitions: 3 }).await? {
        let absent = ctx.absent_topic("created");
        creating.publisher().publish(Publish::new(absent.clone(), message("k", 1))).await?;
        assert_eq!(creating.describe_topic(&absent).await?.partitions.len(), 3);
        creating.close(ctx.patience()).await?;
    }
    Ok(())
}
