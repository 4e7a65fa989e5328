//! Publishing in batches: every receipt is right, whatever comes between.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use ebus_core::{
    Backend, Error, ErrorKind, Message, NextOffset, Publish, ReadRange, Receipt, Retryability, Topic,
};
use ebus_nats::NatsBackend;
use ebus_testkit::brokers::{Home, NatsConfig as Server, launch_nats};
use ebus_testkit::proxy::Proxy;
use futures_util::StreamExt;
use libtest_mimic::Trial;

use crate::shared;
use crate::support::drive::{PATIENCE, Tested, config, connect, create, topic, unique};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("p1_every_message_of_a_batch_has_its_own_offset", alone),
        shared("p1_offsets_are_right_among_messages_of_other_publishers", among_others),
        shared("p1_equal_messages_and_those_with_an_id_have_their_own_offsets", with_ids),
        shared("a_stream_without_batches_is_published_to_one_by_one", without),
        shared("batches_that_are_forbidden_on_the_way_lose_nothing_and_publishing_goes_on", forbidden),
        shared("a02_what_is_refused_within_a_batch_is_told_and_nothing_behind_it_is_stored", refused_within),
        shared("p7_cut_connections_within_batches_keep_order_and_repeat_nothing", cuts),
        shared("a_topic_that_is_deleted_under_batches_is_not_found", deleted),
        shared("a_close_waits_for_batches", closing),
    ]
}

/// What was published, in order, and what became of it.
struct Sent {
    key: usize,
    text: String,
    result: Result<Receipt, Error>,
}

const KEYS: usize = 50;

/// Publishes messages of these numbers in order, pipelined, and waits for all.
async fn publish(
    backend: &NatsBackend,
    topic: &Topic,
    who: &str,
    numbers: std::ops::Range<usize>,
) -> Result<Vec<Sent>, Error> {
    let mut publisher = backend.publisher();
    let mut waiting = Vec::new();
    for number in numbers {
        let (key, text) = (number % KEYS, format!("{who}-{number:08}"));
        let message = Message::new(text.clone()).with_key(format!("k{key}"));
        waiting.push((key, text, publisher.enqueue(Publish::new(topic.clone(), message)).await?));
    }
    let mut sent = Vec::new();
    for (key, text, receipt) in waiting {
        sent.push(Sent { key, text, result: receipt.await });
    }
    Ok(sent)
}

/// All messages of a topic: partition and offset to payload.
async fn stored(backend: &NatsBackend, topic: &Topic) -> Result<HashMap<(u32, u64), String>, Error> {
    let mut all = HashMap::new();
    for (partition, there) in (0..).zip(backend.describe_topic(topic).await?.partitions) {
        let range = ReadRange::new(topic.clone(), partition, there.earliest, there.end);
        let (mut reader, mut read) = (backend.read(range).await?, Vec::new());
        while reader.next(1_000, &mut read).await? > 0 {}
        for (offset, message) in read {
            all.insert((partition, offset), String::from_utf8_lossy(&message.payload).into_owned());
        }
    }
    Ok(all)
}

/// Every receipt names the place of its message; each message is stored once at most, those of a key in the order of the
/// calls; what surely was not stored is not there.
async fn check(backend: &NatsBackend, topic: &Topic, sent: &[Sent]) -> Result<(), Error> {
    let stored = stored(backend, topic).await?;
    let mut places: HashMap<&str, Vec<u64>> = HashMap::new();
    for ((_, offset), text) in &stored {
        places.entry(text).or_default().push(*offset);
    }
    let mut last: HashMap<(String, usize), u64> = HashMap::new();
    for Sent { key, text, result } in sent {
        let at = places.get(text.as_str()).map(Vec::as_slice).unwrap_or_default();
        match result {
            Ok(receipt) => {
                assert_eq!(stored.get(&(receipt.partition, receipt.offset)), Some(text), "{receipt:?}");
            }
            Err(error) if error.kind() == ErrorKind::Timeout => {}
            Err(error) => assert!(at.is_empty(), "{text} is stored: {error:?}"),
        }
        assert!(at.len() <= 1, "{text} is stored at {at:?}");
        if let Some(offset) = at.first() {
            let who = text.split('-').next().unwrap_or_default().to_owned();
            let before = last.insert((who, *key), *offset);
            assert!(before.is_none_or(|before| before < *offset), "{text} is stored before an earlier one");
        }
    }
    Ok(())
}

fn failures(sent: &[Sent]) -> usize {
    sent.iter().filter(|sent| sent.result.is_err()).count()
}

/// Counts the batches of a topic that the server acknowledges, and the consumers that are made to look for offsets.
struct Watch {
    batches: Arc<AtomicUsize>,
    lookups: Arc<AtomicUsize>,
    _client: async_nats::Client,
}

impl Watch {
    async fn start(url: &str, topic: &Topic) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let client = async_nats::connect(url).await?;
        let (batches, lookups) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut answers = client.subscribe("_INBOX.>").await?;
        let mut requests = client.subscribe(format!("$JS.API.CONSUMER.CREATE.{topic}.>")).await?;
        client.flush().await?;
        let (count, ours) = (batches.clone(), format!("\"stream\":\"{topic}\""));
        tokio::spawn(async move {
            while let Some(answer) = answers.next().await {
                let text = String::from_utf8_lossy(&answer.payload);
                if text.contains(&ours) && text.contains("\"batch\":") {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let count = lookups.clone();
        tokio::spawn(async move {
            while requests.next().await.is_some() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { batches, lookups, _client: client })
    }

    /// Waits for more than `count` batches: what it hears may be late.
    async fn hears_more_than(&self, count: usize) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while self.batches() <= count && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.batches() > count
    }

    fn batches(&self) -> usize {
        self.batches.load(Ordering::Relaxed)
    }

    fn lookups(&self) -> usize {
        self.lookups.load(Ordering::Relaxed)
    }
}

async fn alone(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("batches"));
    create(&backend, &topic, 4).await?;
    let watch = Watch::start(&url, &topic).await.map_err(|why| why.to_string())?;
    let sent = publish(&backend, &topic, "a", 0..20_000).await?;
    assert_eq!(failures(&sent), 0, "{:?}", sent.iter().find_map(|sent| sent.result.as_ref().err()));
    check(&backend, &topic, &sent).await?;
    assert!(watch.hears_more_than(10).await, "{} batches", watch.batches());
    Ok(())
}

/// One publisher has the stream for itself, then others come.
async fn among_others(url: String) -> Tested {
    let (one, two, topic) = (connect(&url).await?, connect(&url).await?, topic("others"));
    create(&one, &topic, 4).await?;
    let watch = Watch::start(&url, &topic).await.map_err(|why| why.to_string())?;
    let first = publish(&one, &topic, "first", 0..3_000).await?;
    assert!(watch.hears_more_than(0).await, "the first publisher was alone");
    let others = async {
        let mut all = Vec::new();
        for round in 0..40 {
            all.extend(publish(&two, &topic, "two", round * 30..round * 30 + 30).await?);
        }
        Ok::<_, Error>(all)
    };
    let (sent, others) = tokio::join!(publish(&one, &topic, "one", 0..20_000), others);
    let (sent, others) = (sent?, others?);
    // Before those of the check itself.
    let lookups = watch.lookups();
    for sent in [&first, &sent, &others] {
        let first = sent.iter().find_map(|sent| sent.result.as_ref().err());
        assert_eq!(failures(sent), 0, "{first:?}");
        check(&one, &topic, sent).await?;
    }
    assert!(lookups > 0, "no batch was among messages of others");
    Ok(())
}

/// Ids make a message take an older place; equal messages have the same content.
async fn with_ids(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("ids"));
    create(&backend, &topic, 2).await?;
    check(&backend, &topic, &publish(&backend, &topic, "a", 0..2_000).await?).await?;
    let mut publisher = backend.publisher();
    let (id, mut waiting) = (unique("id"), Vec::new());
    let equal = Message::new("equal").with_key("k");
    for number in 0..3_000 {
        let mut publish = Publish::new(topic.clone(), equal.clone());
        if number % 100 == 50 {
            publish = Publish::new(topic.clone(), Message::new("again").with_key("k")).with_id(id.clone());
        }
        waiting.push(publisher.enqueue(publish).await?);
    }
    let mut receipts = Vec::new();
    for receipt in waiting {
        receipts.push(receipt.await?);
    }
    let stored = stored(&backend, &topic).await?;
    assert_eq!(stored.len(), 2_000 + 3_000 - 29, "one id is stored once");
    for (number, receipt) in receipts.iter().enumerate() {
        let text = if number % 100 == 50 { "again" } else { "equal" };
        assert_eq!(stored.get(&(receipt.partition, receipt.offset)).map(String::as_str), Some(text));
        assert_eq!(receipt.duplicate, number % 100 == 50 && number != 50);
    }
    let mut offsets: Vec<u64> = receipts.iter().filter(|r| !r.duplicate).map(|r| r.offset).collect();
    assert!(offsets.is_sorted(), "in the order of the calls");
    offsets.dedup();
    assert_eq!(offsets.len(), 3_000 - 29);
    Ok(())
}

async fn without(url: String) -> Tested {
    let (plain, topic) = (NatsBackend::connect(config(&url).with_batches(false)).await?, topic("plain"));
    create(&plain, &topic, 2).await?;
    let watch = Watch::start(&url, &topic).await.map_err(|why| why.to_string())?;
    let sent = publish(&connect(&url).await?, &topic, "a", 0..3_000).await?;
    assert_eq!(failures(&sent), 0);
    check(&plain, &topic, &sent).await?;
    // And the other way round: a topic that takes them, a publisher that is told not to.
    let topic = self::topic("told");
    create(&connect(&url).await?, &topic, 2).await?;
    let watch_told = Watch::start(&url, &topic).await.map_err(|why| why.to_string())?;
    let sent = publish(&plain, &topic, "a", 0..3_000).await?;
    assert_eq!(failures(&sent), 0);
    assert_eq!((watch.batches(), watch_told.batches()), (0, 0));
    Ok(())
}

async fn change(url: &str, topic: &Topic, change: impl FnOnce(&mut stream::Config)) -> Tested {
    let context = jetstream::new(async_nats::connect(url).await?);
    let mut config = context.get_stream(topic.as_str()).await?.cached_info().config.clone();
    change(&mut config);
    context.update_stream(config).await?;
    Ok(())
}

async fn forbidden(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("forbidden"));
    create(&backend, &topic, 2).await?;
    let watch = Watch::start(&url, &topic).await.map_err(|why| why.to_string())?;
    let publishing = publish(&backend, &topic, "a", 0..60_000);
    let forbidding = async {
        watch.hears_more_than(5).await;
        change(&url, &topic, |config| config.allow_batch_publish = false).await
    };
    let (sent, changed) = tokio::join!(publishing, forbidding);
    changed?;
    let sent = sent?;
    check(&backend, &topic, &sent).await?;
    // At most what was on its way failed.
    assert!(failures(&sent) <= 2_000, "{}", failures(&sent));
    assert!(sent.last().is_some_and(|last| last.result.is_ok()), "publishing goes on");
    Ok(())
}

async fn refused_within(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("refused"));
    create(&backend, &topic, 2).await?;
    let watch = Watch::start(&url, &topic).await.map_err(|why| why.to_string())?;
    let warm = publish(&backend, &topic, "warm", 0..2_000).await?;
    assert_eq!(failures(&warm), 0);
    // The publisher does not know of the limit.
    change(&url, &topic, |config| config.max_message_size = 500).await?;
    let before = watch.batches();
    let mut publisher = backend.publisher();
    let mut waiting = Vec::new();
    for number in 0..1_000usize {
        let (key, mut text) = (number % KEYS, format!("a-{number:08}"));
        if number == 500 {
            text.push_str(&"x".repeat(600));
        }
        let message = Message::new(text.clone()).with_key(format!("k{key}"));
        waiting.push((key, text, publisher.enqueue(Publish::new(topic.clone(), message)).await?));
    }
    let mut sent = Vec::new();
    for (key, text, receipt) in waiting {
        sent.push(Sent { key, text, result: receipt.await });
    }
    check(&backend, &topic, &sent).await?;
    let error = sent[500].result.as_ref().expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error:?}");
    for sent in &sent {
        if let Err(error) = &sent.result
            && error.kind() != ErrorKind::TooLarge
        {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
            assert_eq!(error.retryability(), Retryability::Never, "a later one of its key was sent");
        }
    }
    assert!(failures(&sent) <= 256, "{} failed", failures(&sent));
    assert!(watch.hears_more_than(before).await, "none went in a batch");
    Ok(())
}

async fn cuts(url: String) -> Tested {
    let upstream = url.trim_start_matches("nats://").to_owned();
    let proxy = Proxy::start(upstream)?;
    let behind = config(&proxy.url("nats")).with_publish_timeout(Duration::from_secs(1));
    let (backend, direct, topic) = (NatsBackend::connect(behind).await?, connect(&url).await?, topic("cuts"));
    create(&direct, &topic, 4).await?;
    let watch = Watch::start(&url, &topic).await.map_err(|why| why.to_string())?;
    let cutting = async {
        for round in 0..6 {
            let seen = watch.batches();
            let deadline = Instant::now() + PATIENCE;
            while watch.batches() < seen + 3 && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            proxy.cut_for(Duration::from_millis(5 * round)).await;
        }
    };
    let publishing = async {
        let (mut all, mut next) = (Vec::new(), 0);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && next < 200_000 {
            all.extend(publish(&backend, &topic, "a", next..next + 5_000).await?);
            next += 5_000;
        }
        Ok::<_, Error>(all)
    };
    tokio::pin!(publishing);
    let mut cutting = Box::pin(cutting);
    // Both run; publishing ends by itself.
    let sent = tokio::select! {
        sent = &mut publishing => sent?,
        () = &mut cutting => publishing.await?,
    };
    check(&direct, &topic, &sent).await?;
    assert!(failures(&sent) < sent.len() / 2, "{} of {} failed", failures(&sent), sent.len());
    assert!(watch.hears_more_than(3).await, "none went in a batch");
    Ok(())
}

async fn deleted(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("deleted"));
    create(&backend, &topic, 2).await?;
    let warm = publish(&backend, &topic, "warm", 0..2_000).await?;
    check(&backend, &topic, &warm).await?;
    let context = jetstream::new(async_nats::connect(&url).await?);
    let publishing = publish(&backend, &topic, "a", 0..20_000);
    let deleting = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        context.delete_stream(topic.as_str()).await
    };
    let (sent, deleted) = tokio::join!(publishing, deleting);
    deleted?;
    let sent = sent?;
    let error = sent.last().and_then(|last| last.result.as_ref().err()).ok_or("it was stored nowhere")?;
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    create(&backend, &topic, 3).await?;
    let again = publish(&backend, &topic, "again", 0..3_000).await?;
    assert_eq!(failures(&again), 0);
    check(&backend, &topic, &again).await?;
    Ok(())
}

async fn closing(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("closing"));
    create(&backend, &topic, 2).await?;
    let mut publisher = backend.publisher();
    let mut waiting = Vec::new();
    for number in 0..5_000usize {
        let message = Message::new(format!("a-{number:08}")).with_key(format!("k{}", number % KEYS));
        waiting.push(publisher.enqueue(Publish::new(topic.clone(), message)).await?);
    }
    backend.close(Duration::from_secs(10)).await?;
    for receipt in waiting {
        receipt.await?;
    }
    let end = connect(&url).await?.describe_topic(&topic).await?.partitions;
    assert_eq!(end.iter().map(|partition| partition.end).max(), Some(NextOffset(5_001)));
    Ok(())
}

/// A server that is killed with batches on their way.
pub(crate) async fn killed(home: Home) -> Tested {
    let mut server = launch_nats(&home, Server::default())?;
    let timeout = Duration::from_secs(1);
    let backend = NatsBackend::connect(config(&server.url()).with_publish_timeout(timeout)).await?;
    let topic = topic("killed");
    create(&backend, &topic, 4).await?;
    let watch = Watch::start(&server.url(), &topic).await.map_err(|why| why.to_string())?;
    let mut all = Vec::new();
    for round in 0..3usize {
        let first = round * 100_000;
        let publishing = publish(&backend, &topic, "a", first..first + 30_000);
        let seen = watch.batches();
        let killing = async {
            let deadline = Instant::now() + PATIENCE;
            while watch.batches() < seen + 5 && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            server.kill()?;
            tokio::time::sleep(Duration::from_millis(100)).await;
            server.start()
        };
        let (sent, killed) = tokio::join!(publishing, killing);
        killed?;
        all.extend(sent?);
        let deadline = Instant::now() + PATIENCE;
        while backend.describe_topic(&topic).await.is_err() {
            assert!(Instant::now() < deadline, "the server does not come back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(watch.batches() > seen, "no batches in round {round}");
    }
    check(&backend, &topic, &all).await?;
    assert!(failures(&all) < all.len(), "some were stored");
    Ok(())
}

/// A cluster of which the stream's leader is killed with batches on their way.
pub(crate) async fn leader_killed(home: Home) -> Tested {
    let mut server = launch_nats(&home, Server::default().with_nodes(3))?;
    let timeout = Duration::from_secs(4);
    let backend = NatsBackend::connect(config(&server.url()).with_publish_timeout(timeout)).await?;
    let topic = topic("cluster");
    backend.create_topic(&ebus_core::TopicSpec::new(topic.clone(), 4).with_replicas(3)).await?;
    let warm = publish(&backend, &topic, "warm", 0..3_000).await?;
    assert_eq!(failures(&warm), 0);
    check(&backend, &topic, &warm).await?;
    let mut all = Vec::new();
    for node in 0..3usize {
        let first = node * 100_000;
        let publishing = publish(&backend, &topic, "a", first..first + 10_000);
        let killing = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            server.nodes()[node].kill()
        };
        let (sent, killed) = tokio::join!(publishing, killing);
        killed?;
        all.extend(sent?);
        server.nodes()[node].start()?;
        let deadline = Instant::now() + PATIENCE;
        while failures(&publish(&backend, &topic, "probe", 0..1).await?) > 0 {
            assert!(Instant::now() < deadline, "publishing does not go on");
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    check(&backend, &topic, &all).await?;
    Ok(())
}
