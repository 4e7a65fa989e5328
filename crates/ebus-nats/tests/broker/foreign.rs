//! Streams and messages that somebody else made.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use ebus_core::{Backend, ErrorKind, Message, Publish};
use ebus_testkit::proxy::Proxy;
use libtest_mimic::Trial;

use crate::shared;
use crate::support::drive::{Driver, Tested, connect, create, group, publish, refused, topic};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("a_stream_of_other_make_is_one_partition", foreign_stream),
        shared("work_queue_retention_is_refused", work_queue),
        shared("a_message_that_comes_late_surfaces_at_once", late_message),
        shared("p1_cut_connections_lose_nothing_and_keep_order", cut_connections),
    ]
}

async fn foreign_stream(url: String) -> Tested {
    let (backend, topic, group) = (connect(&url).await?, topic("foreign"), group("g"));
    let context = jetstream::new(async_nats::connect(&url).await?);
    context
        .create_stream(stream::Config {
            name: topic.to_string(),
            subjects: vec![format!("{topic}.>")],
            ..Default::default()
        })
        .await?;
    let mut headers = HeaderMap::new();
    headers.append("X-Trace", "t");
    context.publish_with_headers(format!("{topic}.eu.paid"), headers, "one".into()).await?.await?;
    context.publish(format!("{topic}.us"), "two".into()).await?.await?;
    assert_eq!(backend.describe_topic(&topic).await?.partitions.len(), 1);
    let mut driver = Driver::join(&backend, &group, &topic).await?;
    driver.until("both are read", |heard| heard.messages.len() == 2).await?;
    let payloads: Vec<&str> = driver.heard.messages.iter().map(|message| message.1.as_str()).collect();
    assert_eq!(payloads, ["one", "two"]);
    driver.close().await?;
    let failed = backend.publisher().publish(Publish::new(topic.clone(), Message::new("x"))).await;
    refused(failed, ErrorKind::Unsupported, "not one plain subject")
}

async fn work_queue(url: String) -> Tested {
    let (backend, topic) = (connect(&url).await?, topic("queue"));
    let context = jetstream::new(async_nats::connect(&url).await?);
    context
        .create_stream(stream::Config {
            name: topic.to_string(),
            retention: stream::RetentionPolicy::WorkQueue,
            ..Default::default()
        })
        .await?;
    refused(Driver::join(&backend, &group("g"), &topic).await.map(drop), ErrorKind::Unsupported, "retention")
}

async fn late_message(url: String) -> Tested {
    let (backend, topic, group) = (connect(&url).await?, topic("late"), group("g"));
    create(&backend, &topic, 1).await?;
    let mut driver = Driver::join(&backend, &group, &topic).await?;
    for version in 1..4 {
        driver.during(Duration::from_millis(2_500)).await?;
        let before = driver.heard.messages.len();
        publish(&backend, &topic, 1, version..version + 1).await?;
        let began = std::time::Instant::now();
        driver.until("it surfaces", |heard| heard.messages.len() == before + 1).await?;
        assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    }
    driver.close().await?;
    Ok(())
}

async fn cut_connections(url: String) -> Tested {
    let upstream = url.trim_start_matches("nats://").to_owned();
    let (direct, proxy) = (connect(&url).await?, Proxy::start(upstream)?);
    let (behind, topic, group) = (connect(&proxy.url("nats")).await?, topic("cut"), group("g"));
    create(&direct, &topic, 4).await?;
    let mut driver = Driver::join(&behind, &group, &topic).await?;
    let publishing = async {
        for version in 0..60 {
            publish(&direct, &topic, 100, version * 5 + 1..version * 5 + 6).await?;
        }
        Ok::<_, ebus_core::Error>(())
    };
    let cutting = async {
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            proxy.cut_for(Duration::from_millis(10)).await;
        }
    };
    let reading = driver.until("all is read", |heard| heard.messages.len() >= 30_000);
    let (published, (), read) = tokio::join!(publishing, cutting, reading);
    published?;
    read?;
    driver.during(Duration::from_millis(200)).await?;
    assert_eq!(driver.heard.messages.len(), 30_000, "nothing twice");
    driver.heard.check_order()?;
    driver.close().await?;
    Ok(())
}
