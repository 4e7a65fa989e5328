//! What a publisher holds when its way to the server fails, and what it tells (G1, G7, G8).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use ebus_core::{Backend, Error, ErrorKind, Message, Publish, ReadRange, Timestamp, Topic};
use ebus_nats::{NatsBackend, NatsConfig};
use ebus_testkit::proxy::Proxy;
use libtest_mimic::{Failed, Trial};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::shared;
use crate::support::drive::{PATIENCE, Tested, connect, create, topic};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("p7_late_bytes_find_nothing_of_the_clients_queue_in_front_of_the_voids", queue),
        shared("p1_equal_messages_of_two_publishers_have_their_own_offsets", equal),
        shared("p2_a_stream_made_anew_with_more_partitions_is_looked_up_again", anew),
        shared("p9_a_stream_made_anew_with_fewer_partitions_ends_no_publisher", fewer),
        shared("p8_a_full_stream_says_so_after_a_reconnect_too", full),
    ]
}

/// The way to the server: the first connection falls silent; the second is stopped in front of its first void, until what the
/// first one held has come.
async fn way(upstream: String, topic: String) -> Result<(String, watch::Sender<bool>), Failed> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("nats://{}", listener.local_addr()?);
    let (silent, watched) = watch::channel(false);
    let (release, released) = watch::channel(false);
    let release = Arc::new(release);
    tokio::spawn(async move {
        let mut count = 0;
        while let Ok((client, _)) = listener.accept().await {
            count += 1;
            let is_first = count == 1;
            let (upstream, watched, released, release) =
                (upstream.clone(), watched.clone(), released.clone(), release.clone());
            let mark = format!("HPUB {topic}.void");
            tokio::spawn(async move {
                let server = TcpStream::connect(upstream).await?;
                server.set_nodelay(true)?;
                client.set_nodelay(true)?;
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let silent = watched.clone();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                        if !(is_first && *silent.borrow()) {
                            let _ = to_client.write_all(&buffer[..count]).await;
                        }
                    }
                });
                let mut buffer = vec![0; 64 << 10];
                if is_first {
                    loop {
                        let count = from_client.read(&mut buffer).await?;
                        if *watched.borrow() {
                            let mut held = buffer[..count].to_vec();
                            // Nobody reads until then: the kernel holds it.
                            let mut released = released.clone();
                            let _ = released.wait_for(|released| *released).await;
                            let _ = from_client.read_to_end(&mut held).await;
                            to_server.write_all(&held).await?;
                            to_server.flush().await?;
                            tokio::time::sleep(Duration::from_secs(60)).await;
                            return Ok(());
                        }
                        to_server.write_all(&buffer[..count]).await?;
                    }
                }
                let (mut seen, mut found) = (Vec::new(), false);
                loop {
                    let count = from_client.read(&mut buffer).await?;
                    if count == 0 {
                        return Ok::<_, std::io::Error>(());
                    }
                    if found {
                        to_server.write_all(&buffer[..count]).await?;
                        continue;
                    }
                    seen.extend_from_slice(&buffer[..count]);
                    let at = seen.windows(mark.len()).position(|w| w == mark.as_bytes());
                    match at {
                        Some(at) => {
                            found = true;
                            to_server.write_all(&seen[..at]).await?;
                            tokio::time::sleep(Duration::from_millis(300)).await;
                            release.send_replace(true);
                            tokio::time::sleep(Duration::from_millis(4000)).await;
                            to_server.write_all(&seen[at..]).await?;
                        }
                        None => {
                            let quiet = !seen.windows(5).any(|w| w == b"HPUB ");
                            let keep = if quiet { 0 } else { mark.len().min(seen.len()) };
                            let out = seen.len() - keep;
                            to_server.write_all(&seen[..out]).await?;
                            seen.drain(..out);
                        }
                    }
                }
            });
        }
    });
    Ok((url, silent))
}

async fn queue(url: String) -> Tested {
    let (direct, topic) = (connect(&url).await?, topic("queue"));
    create(&direct, &topic, 1).await?;
    let (through, silent) = way(url.trim_start_matches("nats://").to_owned(), topic.to_string()).await?;
    let config = NatsConfig::new([through]).with_publish_timeout(2 * PATIENCE);
    let backend = NatsBackend::connect(config).await?;
    let mut publisher = backend.publisher();
    let pad = "x".repeat(32 << 10);
    let message =
        |number: usize| Publish::new(topic.clone(), Message::new(format!("{number:08}{pad}")).with_key("k"));
    for number in 0..10 {
        publisher.publish(message(number)).await?;
    }
    silent.send_replace(true);
    let mut waiting = Vec::new();
    // 25 MiB: more than the kernel takes.
    for number in 10..800 {
        waiting.push(publisher.enqueue(message(number)).await?);
    }
    let mut ok = 0;
    for one in waiting {
        ok += usize::from(one.await.is_ok());
    }
    assert!(ok > 0, "what was not sent before goes on the next connection");
    let there = direct.describe_topic(&topic).await?.partitions.remove(0);
    let mut reader = direct.read(ReadRange::new(topic.clone(), 0, there.earliest, there.end)).await?;
    let (mut read, mut numbers) = (Vec::new(), Vec::<usize>::new());
    while reader.next(100, &mut read).await? > 0 {
        for (_, message) in read.drain(..) {
            numbers.push(std::str::from_utf8(&message.payload[..8])?.parse()?);
        }
    }
    assert!(numbers.len() >= ok + 10, "{ok} were acknowledged, {} are stored", numbers.len());
    let back: Vec<_> = numbers.windows(2).filter(|pair| pair[0] >= pair[1]).collect();
    assert!(back.is_empty(), "steps back: {back:?}");
    Ok(())
}

/// Publishes messages that are equal byte by byte, with their times, and says where.
async fn ticks(backend: Arc<NatsBackend>, topic: Topic, count: usize) -> Result<Vec<u64>, Error> {
    let (mut publisher, mut waiting, mut offsets) = (backend.publisher(), Vec::new(), Vec::new());
    for _ in 0..count {
        let message = Message::made_at(Timestamp::from_millis(1_700_000_000_000), "tick");
        waiting.push(publisher.enqueue(Publish::new(topic.clone(), message)).await?);
    }
    for one in waiting {
        if let Ok(receipt) = one.await {
            offsets.push(receipt.offset);
        }
    }
    Ok(offsets)
}

async fn equal(url: String) -> Tested {
    let (one, other, topic) =
        (Arc::new(connect(&url).await?), Arc::new(connect(&url).await?), topic("equal"));
    create(&one, &topic, 1).await?;
    let (mut seen, mut count) = (HashSet::new(), 0);
    for offset in ticks(one.clone(), topic.clone(), 2_000).await? {
        count += 1;
        seen.insert(offset);
    }
    for _ in 0..10 {
        let many = tokio::spawn(ticks(one.clone(), topic.clone(), 4_000));
        tokio::time::sleep(Duration::from_millis(3)).await; // in the middle of them, on most machines
        let few = tokio::spawn(ticks(other.clone(), topic.clone(), 300));
        for offset in many.await??.into_iter().chain(few.await??) {
            count += 1;
            seen.insert(offset);
        }
    }
    assert!(count > 10_000, "only {count} were acknowledged");
    assert_eq!(count - seen.len(), 0, "receipts of {count} name a place that another one names too");
    Ok(())
}

async fn remake(url: &str, topic: &Topic, partitions: u32) -> Result<NatsBackend, Failed> {
    jetstream::new(async_nats::connect(url).await?).delete_stream(topic.to_string()).await?;
    let backend = connect(url).await?;
    create(&backend, topic, partitions).await?;
    Ok(backend)
}

async fn anew(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("anew"));
    create(&backend, &topic, 2).await?;
    let mut publisher = backend.publisher();
    let message = |key: usize| Publish::new(topic.clone(), Message::new("m").with_key(format!("k{key}")));
    for key in 0..20 {
        publisher.publish(message(key)).await?;
    }
    let other = remake(&url, &topic, 4).await?;
    let mut other = other.publisher();
    // The first one after that shows by its offset what happened.
    publisher.publish(message(20)).await?;
    let (mut here, mut there) = (HashMap::new(), HashMap::new());
    for key in 0..20 {
        here.insert(key, publisher.publish(message(key)).await?.partition);
        there.insert(key, other.publish(message(key)).await?.partition);
    }
    assert_eq!(here, there, "one key, one partition");
    Ok(())
}

async fn fewer(url: String) -> Tested {
    let (direct, topic) = (connect(&url).await?, topic("fewer"));
    create(&direct, &topic, 8).await?;
    let proxy = Proxy::start(url.trim_start_matches("nats://"))?;
    let config = NatsConfig::new([proxy.url("nats")]).with_publish_timeout(PATIENCE);
    let backend = NatsBackend::connect(config).await?;
    let mut publisher = backend.publisher();
    let message = |number: usize| {
        Publish::new(topic.clone(), Message::new("m").with_key(format!("k{number}")))
            .with_id(format!("id-{number}"))
    };
    publisher.publish(message(1_000)).await?;
    proxy.stall();
    let mut waiting = Vec::new();
    for number in 0..20 {
        waiting.push(publisher.enqueue(message(number)).await?);
    }
    // They are written, on most machines; what is not goes to the new stream, or nowhere.
    tokio::time::sleep(Duration::from_millis(300)).await;
    proxy.cut();
    let _other = remake(&url, &topic, 1).await?;
    proxy.heal();
    let mut ok = 0;
    for one in waiting {
        match one.await {
            Ok(receipt) => ok += u64::from(receipt.partition == 0),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{error}");
            }
        }
    }
    assert_eq!(publisher.publish(message(2_000)).await?.partition, 0);
    let stored = direct.describe_topic(&topic).await?.partitions[0].end.0 - 1;
    assert_eq!(stored, ok + 1, "what was for the stream that is gone is in this one");
    Ok(())
}

/// A full stream refuses voids too.
async fn full(url: String) -> Tested {
    let (direct, topic) = (connect(&url).await?, topic("full"));
    create(&direct, &topic, 1).await?;
    let proxy = Proxy::start(url.trim_start_matches("nats://"))?;
    let config = NatsConfig::new([proxy.url("nats")]).with_publish_timeout(Duration::from_secs(3));
    let backend = NatsBackend::connect(config).await?;
    let mut publisher = backend.publisher();
    let message = || Publish::new(topic.clone(), Message::new("m").with_key("k"));
    publisher.publish(message()).await?;
    let js = jetstream::new(async_nats::connect(&url).await?);
    let mut stream = js.get_stream(topic.to_string()).await?;
    let mut limits = stream.info().await?.config.clone();
    limits.max_messages = 1;
    js.update_stream(limits.clone()).await?;
    let kind = |result: Result<_, Error>| result.map(drop).map_err(|error| error.kind());
    assert_eq!(kind(publisher.publish(message()).await), Err(ErrorKind::Overloaded), "before");
    proxy.stall();
    let waiting = publisher.enqueue(message()).await?;
    assert_eq!(kind(waiting.await), Err(ErrorKind::Timeout), "silent");
    proxy.cut();
    proxy.heal();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    // Until the connection is there again, it is not.
    while kind(publisher.publish(message()).await) != Err(ErrorKind::Overloaded) {
        assert!(tokio::time::Instant::now() < deadline, "the refusal is not told");
    }
    limits.max_messages = -1;
    js.update_stream(limits).await?;
    while publisher.publish(message()).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "it does not go on");
    }
    Ok(())
}
