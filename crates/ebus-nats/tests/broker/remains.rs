//! What a connection that ended leaves of batches whose members have no ids (G1, G7): each is stored where its receipt says, or
//! is not and never comes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID};
use async_nats::jetstream;
use async_nats::{HeaderMap, Subscriber};
use ebus_core::{Backend, Error, ErrorKind, Message, Publish, PublishFuture, ReadRange, Receipt, Topic};
use ebus_nats::{NatsBackend, NatsConfig};
use futures_util::StreamExt;
use libtest_mimic::{Failed, Trial};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::shared;
use crate::support::drive::{PATIENCE, Tested, connect, create, topic};

/// The header of what has no id.
const TAG: &str = "Ebus-Id";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("p1_batches_that_were_stored_when_their_connection_ended_have_their_receipts", |url| {
            left(url, usize::MAX)
        }),
        shared("p7_batches_that_had_begun_when_their_connection_ended_are_ended_where_they_were", |url| {
            left(url, 100_000)
        }),
        shared("p7_batches_that_had_not_begun_when_their_connection_ended_never_begin", |url| left(url, 0)),
        shared("p7_the_server_refuses_what_is_left_of_a_batch_that_was_fenced_and_ended", refused),
        shared("p7_a_batch_that_cannot_be_fenced_has_ids", with_ids),
    ]
}

/// What the first connection of a [`Way`] is like.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Open,
    /// Nothing comes back any more, and so many bytes come through.
    Silent(usize),
    /// The client is hung up on; the server is not.
    HungUp,
    /// The rest of what the client said comes through.
    Late,
}

/// A way to the server of which the first connection ends in steps.
struct Way {
    url: String,
    mode: Arc<watch::Sender<Mode>>,
    /// Bytes that the client said on it since it fell silent.
    said: watch::Receiver<usize>,
}

impl Way {
    async fn open(upstream: String) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("nats://{}", listener.local_addr()?);
        let (mode, watched) = watch::channel(Mode::Open);
        let (count, said) = watch::channel(0);
        tokio::spawn(serve(listener, upstream, watched, count));
        Ok(Self { url, mode: Arc::new(mode), said })
    }
}

async fn serve(
    listener: TcpListener,
    upstream: String,
    mode: watch::Receiver<Mode>,
    said: watch::Sender<usize>,
) -> std::io::Result<()> {
    let (client, _) = listener.accept().await?;
    tokio::spawn(first(client, TcpStream::connect(&upstream).await?, mode, said));
    loop {
        let (mut client, _) = listener.accept().await?;
        let mut server = TcpStream::connect(&upstream).await?;
        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
    }
}

async fn hung_up(mode: &mut watch::Receiver<Mode>) {
    let _ = mode.wait_for(|mode| matches!(mode, Mode::HungUp | Mode::Late)).await;
}

async fn first(
    client: TcpStream,
    server: TcpStream,
    mut mode: watch::Receiver<Mode>,
    said: watch::Sender<usize>,
) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut watched = mode.clone();
    let back = tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        loop {
            tokio::select! {
                count = from_server.read(&mut buffer) => match count {
                    Ok(count @ 1..) if *watched.borrow() == Mode::Open => {
                        let _ = to_client.write_all(&buffer[..count]).await;
                    }
                    Ok(1..) => {}
                    _ => return,
                },
                () = hung_up(&mut watched) => break,
            }
        }
        drop(to_client);
        while let Ok(1..) = from_server.read(&mut buffer).await {}
    });
    let (mut buffer, mut held, mut passed) = (vec![0; 64 << 10], Vec::new(), 0);
    loop {
        let count = tokio::select! {
            count = from_client.read(&mut buffer) => count.unwrap_or(0),
            () = hung_up(&mut mode) => 0,
        };
        if count == 0 {
            break;
        }
        let now = *mode.borrow();
        let through = match now {
            Mode::Silent(most) => count.min(most - passed),
            _ => count,
        };
        if now != Mode::Open {
            passed += through;
            said.send_modify(|all| *all += count);
        }
        to_server.write_all(&buffer[..through]).await?;
        held.extend_from_slice(&buffer[through..count]);
    }
    // The other half goes, too: the client hears that, and comes again.
    drop(from_client);
    let _ = mode.wait_for(|mode| *mode == Mode::Late).await.map(drop);
    to_server.write_all(&held).await?;
    // Until the server has read all.
    to_server.write_all(b"PING\r\n").await?;
    to_server.shutdown().await?;
    back.await.map_err(std::io::Error::other)
}

/// Messages of these numbers, called in order.
async fn call(
    backend: &NatsBackend,
    topic: &Topic,
    numbers: std::ops::Range<u64>,
) -> Result<Vec<(u64, PublishFuture)>, Error> {
    let (mut publisher, mut waiting) = (backend.publisher(), Vec::new());
    let pad = "x".repeat(200);
    for number in numbers {
        let message = Message::new(format!("{number:08}{pad}")).with_key("k");
        waiting.push((number, publisher.enqueue(Publish::new(topic.clone(), message)).await?));
    }
    Ok(waiting)
}

async fn stored(backend: &NatsBackend, topic: &Topic) -> Result<Vec<(u64, u64)>, Failed> {
    let there = backend.describe_topic(topic).await?.partitions.remove(0);
    let mut reader = backend.read(ReadRange::new(topic.clone(), 0, there.earliest, there.end)).await?;
    let (mut read, mut stored) = (Vec::new(), Vec::new());
    while reader.next(1_000, &mut read).await? > 0 {}
    for (offset, message) in read {
        stored.push((offset, std::str::from_utf8(&message.payload[..8])?.parse()?));
    }
    Ok(stored)
}

/// After so long without a word nothing more is expected.
const SILENCE: Duration = Duration::from_secs(1);

/// Hears until it is silent.
async fn hear(heard: &mut Subscriber) -> usize {
    let mut count = 0;
    while let Ok(Some(_)) = tokio::time::timeout(SILENCE, heard.next()).await {
        count += 1;
    }
    count
}

/// `through` bytes of batches come to the server, and no answer back; the connection ends; the rest comes when later messages are
/// stored. How many of them did.
async fn leave(url: &str, through: usize) -> Result<usize, Failed> {
    const WARM: u64 = 3_000;
    const LEFT: u64 = 1_500;
    let (direct, topic) = (connect(url).await?, topic("remains"));
    create(&direct, &topic, 1).await?;
    let way = Way::open(url.trim_start_matches("nats://").to_owned()).await?;
    let config =
        NatsConfig::new([way.url.clone()]).with_max_in_flight(4_000).with_publish_timeout(2 * PATIENCE);
    let backend = NatsBackend::connect(config).await?;
    for (_, warm) in call(&backend, &topic, 0..WARM).await? {
        warm.await?;
    }
    let tap = async_nats::connect(url).await?;
    let mut fences = tap.subscribe(format!("{topic}.void=.*")).await?;
    let mut heard = tap.subscribe(format!("{topic}.0")).await?;
    tap.flush().await?;

    way.mode.send_replace(Mode::Silent(through));
    let mut called = call(&backend, &topic, WARM..WARM + LEFT).await?;
    let mut said = way.said.clone();
    said.wait_for(|said| *said as u64 >= LEFT * 200).await?;
    if through == usize::MAX {
        let deadline = Instant::now() + PATIENCE;
        while stored(&direct, &topic).await?.len() < (WARM + LEFT) as usize {
            assert!(Instant::now() < deadline, "all of them came to the server");
        }
    }
    way.mode.send_replace(Mode::HungUp);
    called.extend(call(&backend, &topic, WARM + LEFT..WARM + LEFT + 100).await?);
    let mut all: Vec<(u64, Result<Receipt, Error>)> = Vec::new();
    for (number, receipt) in called {
        all.push((number, receipt.await));
    }
    assert!(hear(&mut fences).await > 0, "no batch was left");
    hear(&mut heard).await;
    way.mode.send_replace(Mode::Late);
    let late = hear(&mut heard).await;

    let stored = stored(&direct, &topic).await?;
    let numbers: Vec<u64> = stored.iter().map(|(_, number)| *number).collect();
    let misplaced = numbers.windows(2).filter(|pair| pair[0] >= pair[1]).count();
    assert_eq!(misplaced, 0, "{late} came late; stored: {:?}", &numbers[WARM as usize..]);
    let (mut kept, mut lost) = (0, 0);
    for (number, result) in &all {
        match result {
            Ok(receipt) => {
                assert!(
                    stored.contains(&(receipt.offset, *number)),
                    "{number} is not where its receipt says"
                );
                kept += u64::from(*number < WARM + LEFT);
            }
            // Nothing is left open: all of it can be known.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{number}: {error:?}");
                assert!(!numbers.contains(number), "{number} is stored: {error:?}");
                lost += u64::from(*number < WARM + LEFT);
            }
        }
    }
    assert_eq!(kept + lost, LEFT);
    match through {
        // What was not sent yet goes on the next connection.
        0 => assert!(
            lost > 256 && all[..lost as usize].iter().all(|(_, result)| result.is_err()),
            "{kept} are stored"
        ),
        usize::MAX => assert_eq!(lost, 0),
        _ => assert!(kept > 0 && lost > 0, "{kept} are stored, {lost} are not"),
    }
    Ok(late)
}

/// How much of it comes late is a matter of luck on a busy machine, and where nothing does nothing is shown.
async fn left(url: String, through: usize) -> Tested {
    for _ in 0..5 {
        let late = leave(&url, through).await?;
        if through == usize::MAX {
            assert_eq!(late, 0, "all of it was there before");
        }
        if late > 0 || through == usize::MAX {
            return Ok(());
        }
    }
    panic!("nothing came late in five tries");
}

/// What [`left`] rests on, said to the server by hand.
async fn refused(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("fenced"));
    create(&backend, &topic, 1).await?;
    let client = async_nats::connect(&url).await?;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(format!("{inbox}.>")).await?;
    let said = async |subject: String, reply: String, headers: HeaderMap| {
        client.publish_with_reply_and_headers(subject, reply, headers, "x".into()).await
    };
    let member = async |batch: &str, position: u64| {
        let (mut headers, operation) = (HeaderMap::new(), u64::from(position > 1));
        headers.insert(TAG, "x");
        if position == 1 {
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
            headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", format!("{topic}.void=.{batch}"));
        }
        let reply = format!("{inbox}.{batch}.500.fail.{position}.{operation}.$FI");
        said(format!("{topic}.0"), reply, headers).await
    };
    let fence = async |batch: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, format!("fence {batch}"));
        said(format!("{topic}.void=.{batch}"), format!("{inbox}.fence"), headers).await
    };
    let end = async |batch: &str| {
        said(format!("{topic}.0"), format!("{inbox}.{batch}.500.fail.99.3.$FI"), HeaderMap::new()).await
    };
    let mut answer = async || {
        let answer = answers.next().await.map(|answer| answer.payload).unwrap_or_default();
        String::from_utf8_lossy(&answer).into_owned()
    };
    let unknown = |answer: String| assert!(answer.contains("10208"), "{answer}");

    // It has not begun: it never does.
    fence("A").await?;
    assert!(answer().await.contains("\"seq\":1}"));
    end("A").await?;
    unknown(answer().await);
    for position in 1..4 {
        member("A", position).await?;
    }
    assert!(answer().await.contains("\"type\":\"ack\""));
    let expected = answer().await;
    assert!(expected.contains("10071"), "{expected}");
    unknown(answer().await);
    unknown(answer().await);

    // It had begun: it is ended where it was, and the fence does not hinder what was before.
    member("B", 1).await?;
    fence("B").await?;
    member("B", 2).await?;
    end("B").await?;
    member("B", 3).await?;
    assert!(answer().await.contains("\"type\":\"ack\""));
    assert!(answer().await.contains("\"seq\":3}"), "the fence");
    assert!(answer().await.contains("\"type\":\"gap\""));
    let ended = answer().await;
    assert!(ended.contains("\"count\":2") && ended.contains("\"seq\":4"), "{ended}");
    unknown(answer().await);

    // Once more, of a batch that has ended: nobody knows it.
    end("B").await?;
    unknown(answer().await);
    let there = backend.describe_topic(&topic).await?.partitions.remove(0);
    assert_eq!(there.end.0, 5, "nothing else was stored");
    Ok(())
}

/// A stream that forgets fences too soon.
async fn with_ids(url: String) -> Tested {
    let (backend, other, topics) =
        (connect(&url).await?, connect(&url).await?, [topic("fences"), topic("forgets")]);
    let context = jetstream::new(async_nats::connect(&url).await?);
    for (topic, backend) in topics.iter().zip([&backend, &other]) {
        create(backend, topic, 1).await?;
        let mut stream = context.get_stream(topic.as_str()).await?;
        if topic == &topics[1] {
            let mut config = stream.info().await?.config.clone();
            config.max_age = Duration::from_secs(100);
            config.duplicate_window = Duration::from_secs(100);
            context.update_stream(config).await?;
        }
        for (_, receipt) in call(backend, topic, 0..3_000).await? {
            receipt.await?;
        }
        let (mut ids, mut tags) = (0, 0);
        for offset in (1..=3_000).step_by(10) {
            let headers = stream.get_raw_message(offset).await?.headers;
            ids += usize::from(headers.get(NATS_MESSAGE_ID).is_some());
            tags += usize::from(headers.get(TAG).is_some());
        }
        assert_eq!(ids + tags, 300, "one or the other");
        assert!(tags > 100 || topic == &topics[1], "{topic}: {tags} without an id");
        assert!(tags == 0 || topic == &topics[0], "{topic}: {tags} without an id");
    }
    Ok(())
}
