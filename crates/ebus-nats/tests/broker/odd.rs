//! Messages of other make whose headers async-nats cannot read: they end its connection (c06, G1, G9).

use std::time::Duration;

use ebus_core::{Backend, Message, Publish, ReadRange, SourceOptions, StartPosition, Timestamp};
use libtest_mimic::{Failed, Trial};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::shared;
use crate::support::drive::{Driver, Tested, connect, create, group, publish, topic};
use crate::support::team::Team;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("c06_headers_that_are_no_text_stop_no_partition", |url| odd(url, NO_TEXT)),
        shared("c06_headers_that_make_the_client_panic_stop_no_partition", |url| odd(url, PANICS)),
        shared("c06_headers_that_are_no_text_stop_no_reader", |url| readers(url, NO_TEXT, b"\xff\xfe")),
        shared("c06_headers_that_make_the_client_panic_stop_no_reader", |url| {
            readers(url, PANICS, b"one\rtwo")
        }),
        shared("c06_a_group_starts_at_the_time_of_headers_that_are_no_text", |url| started(url, NO_TEXT)),
        shared("c06_a_group_starts_at_the_time_of_headers_that_make_the_client_panic", |url| {
            started(url, PANICS)
        }),
    ]
}

const NO_TEXT: &[u8] = b"NATS/1.0\r\nEbus-Key: odd\r\nBad: \xff\xfe\r\n\r\n";

/// The client's parser takes it, and its map of headers refuses it with a panic, which ends the client for good.
const PANICS: &[u8] = b"NATS/1.0\r\nEbus-Key: odd\r\nBad: one\rtwo\r\n\r\n";

/// Publishes as any client may that writes the protocol itself.
async fn publish_raw(url: &str, subject: &str, headers: &[u8], payload: &str) -> Tested {
    let mut socket = TcpStream::connect(url.trim_start_matches("nats://")).await?;
    let mut sent = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_vec();
    let (head, all) = (headers.len(), headers.len() + payload.len());
    sent.extend_from_slice(format!("HPUB {subject} {head} {all}\r\n").as_bytes());
    sent.extend_from_slice(headers);
    sent.extend_from_slice(payload.as_bytes());
    sent.extend_from_slice(b"\r\nPING\r\n");
    socket.write_all(&sent).await?;
    let mut answer = Vec::new();
    // The answer to the ping comes when the message was taken.
    while !answer.windows(4).any(|bytes| bytes == b"PONG") {
        if socket.read_buf(&mut answer).await? == 0 {
            return Err(Failed::from(String::from_utf8_lossy(&answer).into_owned()));
        }
    }
    Ok(())
}

async fn odd(url: String, headers: &[u8]) -> Tested {
    let (one, two, topic, group) = (connect(&url).await?, connect(&url).await?, topic("odd"), group("g"));
    create(&one, &topic, 4).await?;
    publish(&one, &topic, 40, 1..6).await?;
    publish_raw(&url, &format!("{topic}.0"), headers, "1").await?;
    publish_raw(&url, &format!("{topic}.2"), headers, "1").await?;
    publish(&one, &topic, 40, 6..11).await?;
    let mut team = Team::new(&group, &[&topic]);
    team.join("one", &one).await?;
    team.join("two", &two).await?;
    team.until("all of the past is run", |log| log.distinct().0 == 402).await?;
    team.until_even(4).await?;
    // More of them while the partitions are read, and others behind.
    for version in 11..16 {
        publish_raw(&url, &format!("{topic}.1"), headers, "1").await?;
        publish(&one, &topic, 40, version..version + 1).await?;
    }
    team.until("all is run", |log| log.distinct().0 == 607).await?;
    assert_eq!(team.log().lost.len(), 0, "{:?}", team.log().lost);
    assert_eq!(team.log().runs.iter().filter(|run| run.key == "odd").count(), 7, "a message ran twice");
    team.leave_all().await?;
    team.log().check()
}

async fn readers(url: String, headers: &[u8], bad: &[u8]) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("odd"));
    create(&backend, &topic, 1).await?;
    let mut publisher = backend.publisher();
    publisher.publish(Publish::new(topic.clone(), Message::new("before"))).await?;
    publish_raw(&url, &format!("{topic}.0"), headers, "odd").await?;
    let end = backend.describe_topic(&topic).await?.partitions[0].end;
    assert_eq!(end.0, 3, "what is described ends behind it");
    publisher.publish(Publish::new(topic.clone(), Message::new("behind"))).await?;
    let end = backend.describe_topic(&topic).await?.partitions[0].end;
    let mut reader = backend.read(ReadRange::new(topic.clone(), 0, 1, end)).await?;
    let mut found = Vec::new();
    while reader.next(10, &mut found).await? > 0 {}
    let payloads: Vec<_> = found.iter().map(|(_, message)| &message.payload[..]).collect();
    assert_eq!(payloads, [&b"before"[..], b"odd", b"behind"]);
    let odd = &found[1].1;
    assert_eq!(odd.key, Some("odd".into()));
    assert_eq!(odd.headers.first("Bad").map(|value| &value[..]), Some(bad));
    Ok(())
}

async fn started(url: String, headers: &[u8]) -> Tested {
    let (backend, topic, group) = (connect(&url).await?, topic("odd"), group("g"));
    create(&backend, &topic, 1).await?;
    publish(&backend, &topic, 4, 1..2).await?;
    tokio::time::sleep(Duration::from_millis(20)).await; // the server's clock has to move on
    let start = StartPosition::Time(Timestamp::now());
    publish_raw(&url, &format!("{topic}.0"), headers, "1").await?;
    let options = SourceOptions::new(group.clone(), vec![topic.clone()]).with_start(start);
    let source = backend.source(options).await?;
    let mut driver = Driver { source, heard: Default::default(), settle: true };
    driver.until("it is read", |heard| heard.messages.len() == 1).await?;
    assert_eq!(driver.heard.messages[0].0, "odd");
    driver.close().await?;
    Ok(())
}
