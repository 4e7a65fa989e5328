//! Bytes that a silent connection still holds when the next one publishes (G7): they come late, and change nothing.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use ebus_core::{Backend, Error, ErrorKind, Message, Publish, ReadRange, Receipt, Topic};
use ebus_nats::{NatsBackend, NatsConfig};
use ebus_testkit::proxy::Proxy;
use futures_util::StreamExt;
use libtest_mimic::Trial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::shared;
use crate::support::drive::{PATIENCE, Tested, connect, create, topic};

pub(crate) fn trials() -> Vec<Trial> {
    let (few, many) = (20, 1_500);
    vec![
        shared("p7_late_bytes_are_not_stored_behind_later_ones", move |url| late(url, Of::Ours, few)),
        shared("p7_late_batches_are_not_stored_behind_later_ones", move |url| late(url, Of::Ours, many)),
        shared("p7_late_bytes_with_ids_of_the_callers_are_stored_in_order", move |url| {
            late(url, Of::Callers, few)
        }),
        shared("p7_late_bytes_to_a_stream_of_other_make_are_stored_in_order", move |url| {
            late(url, Of::Others, few)
        }),
    ]
}

/// What is published where.
#[derive(Clone, Copy, PartialEq)]
enum Of {
    /// To a topic of ours.
    Ours,
    /// To a topic of ours, each with an id.
    Callers,
    /// To a stream of somebody else.
    Others,
}

/// A way to a server that can fall silent, and holds what is said on it until it is let go: also when who said it has hung up
/// long ago. A proxy would pass that on, as a reset, and drop what it holds.
struct Reservoir {
    url: String,
    silent: watch::Sender<bool>,
}

impl Reservoir {
    async fn open(upstream: String) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("nats://{}", listener.local_addr()?);
        let (silent, watched) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // Who comes while it is silent is not heard.
                if !*watched.borrow() {
                    tokio::spawn(hand_on(client, upstream.clone(), watched.clone()));
                }
            }
        });
        Ok(Self { url, silent })
    }
}

async fn hand_on(
    client: TcpStream,
    upstream: String,
    mut silent: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let server = TcpStream::connect(upstream).await?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let watched = silent.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        // The server never waits for somebody to listen.
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            if !*watched.borrow() {
                let _ = to_client.write_all(&buffer[..count]).await;
            }
        }
    });
    let mut buffer = vec![0; 64 << 10];
    let mut held = Vec::new();
    loop {
        let count = from_client.read(&mut buffer).await.unwrap_or(0);
        held.extend_from_slice(&buffer[..count]);
        if count == 0 {
            // The client has gone; what it said has not.
            let _ = silent.wait_for(|silent| !silent).await;
        }
        if !*silent.borrow() {
            to_server.write_all(&std::mem::take(&mut held)).await?;
        }
        if count == 0 {
            return to_server.shutdown().await;
        }
    }
}

/// Two ways to one server. One of them falls silent, and holds what was said on it.
struct Ways {
    silent: Reservoir,
    other: Proxy,
}

impl Ways {
    /// A publisher that begins on the way that will be silent.
    async fn publisher(url: &str) -> Result<(Self, NatsBackend), libtest_mimic::Failed> {
        let upstream = url.trim_start_matches("nats://");
        let (silent, other) = (Reservoir::open(upstream.to_owned()).await?, Proxy::start(upstream)?);
        other.cut();
        let config = NatsConfig::new([silent.url.clone(), other.url("nats")])
            .with_publish_timeout(Duration::from_secs(1))
            .with_connect_timeout(Duration::from_secs(2));
        let backend = NatsBackend::connect(config).await?;
        other.heal();
        Ok((Self { silent, other }, backend))
    }
}

/// What was published as this number, and what came of it.
type Sent = (u64, Result<Receipt, Error>);

async fn publish(
    backend: &NatsBackend,
    (topic, of): (&Topic, Of),
    numbers: std::ops::Range<u64>,
) -> Result<Vec<Sent>, Error> {
    let (mut publisher, mut waiting, mut sent) = (backend.publisher(), Vec::new(), Vec::new());
    for number in numbers {
        let message = Message::new(number.to_string()).with_key("k");
        let mut publish = Publish::new(topic.clone(), message);
        if of == Of::Callers {
            publish = publish.with_id(format!("{topic}-{number}"));
        }
        waiting.push((number, publisher.enqueue(publish).await?));
    }
    for (number, receipt) in waiting {
        sent.push((number, receipt.await));
    }
    Ok(sent)
}

async fn stored(backend: &NatsBackend, topic: &Topic) -> Result<Vec<(u64, u64)>, libtest_mimic::Failed> {
    let there = backend.describe_topic(topic).await?.partitions.remove(0);
    let mut reader = backend.read(ReadRange::new(topic.clone(), 0, there.earliest, there.end)).await?;
    let (mut read, mut stored) = (Vec::new(), Vec::new());
    while reader.next(1_000, &mut read).await? > 0 {}
    for (offset, message) in read {
        stored.push((offset, std::str::from_utf8(&message.payload)?.parse()?));
    }
    Ok(stored)
}

/// `count` messages are on their way when the connection falls silent; they arrive when later ones of their key are stored.
async fn late(url: String, of: Of, count: u64) -> Tested {
    let (direct, topic) = (connect(&url).await?, topic("late"));
    let tap = async_nats::connect(&url).await?;
    let subject = if of == Of::Others { topic.to_string() } else { format!("{topic}.0") };
    if of == Of::Others {
        let (name, subjects) = (topic.to_string(), vec![subject.clone()]);
        let config = jetstream::stream::Config { name, subjects, ..Default::default() };
        jetstream::new(tap.clone()).create_stream(config).await?;
    } else {
        create(&direct, &topic, 1).await?;
    }
    let to = (&topic, of);
    let (ways, backend) = Ways::publisher(&url).await?;
    let mut all = publish(&backend, to, 0..3_000).await?;
    assert!(all.iter().all(|(_, result)| result.is_ok()), "the connection works");
    // What comes to the server, stored or not.
    let mut heard = tap.subscribe(subject).await?;
    tap.flush().await?;

    ways.silent.silent.send_replace(true);
    let held = publish(&backend, to, 3_000..3_000 + count).await?;
    assert!(held.iter().all(|(_, result)| result.is_err()), "nobody answers");
    assert_eq!(held[0].1.as_ref().map_err(Error::kind), Err(ErrorKind::Timeout), "it was sent");
    all.extend(held);
    let deadline = Instant::now() + PATIENCE;
    let (mut next, mut later) = (3_000 + count, 0);
    while later < 100 {
        assert!(Instant::now() < deadline, "publishing does not go on");
        let sent = publish(&backend, to, next..next + 20).await?;
        next += 20;
        later += sent.iter().filter(|(_, result)| result.is_ok()).count();
        all.extend(sent);
    }
    // All of them were said before, so what is heard from now on is late.
    let end = format!("{}", next - 1);
    while heard.next().await.is_some_and(|message| message.payload != end) {}
    ways.silent.silent.send_replace(false);
    let mut late = 0;
    while let Ok(Some(_)) =
        tokio::time::timeout(Duration::from_secs(if late == 0 { 10 } else { 1 }), heard.next()).await
    {
        late += 1;
    }
    assert!(late > 0, "nothing came late");
    // Behind all that came.
    all.extend(publish(&direct, to, next..next + 1).await?);

    let stored = stored(&direct, &topic).await?;
    let numbers: Vec<u64> = stored.iter().map(|(_, number)| *number).collect();
    let expected = all.iter().filter(|(_, result)| result.is_ok()).count();
    assert!(numbers.len() >= expected, "{expected} were acknowledged");
    let misplaced = numbers.windows(2).filter(|pair| pair[0] >= pair[1]).count();
    assert_eq!(misplaced, 0, "{late} came late; stored: {:?}", &numbers[2_990.min(numbers.len())..]);
    for (number, result) in &all {
        if let Ok(receipt) = result {
            assert!(stored.contains(&(receipt.offset, *number)), "{number} is not where its receipt says");
            // With an id it may be that of what was sent before.
            assert!(of == Of::Callers || !receipt.duplicate, "{number} was published once");
        }
    }
    drop(ways.other);
    Ok(())
}
