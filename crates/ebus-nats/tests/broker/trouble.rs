//! Servers that stop, are killed or freeze, and servers that ask who we are.

use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ebus_core::{
    Backend, Epoch, ErrorKind, Message, NextOffset, PartitionId, Publish, ReadRange, SourceOptions,
    StartPosition, Timestamp, Topic, TopicSpec,
};
use ebus_nats::{NatsBackend, NatsConfig};
use ebus_testkit::brokers::{Home, NatsConfig as Server, Server as Running, launch_nats};
use libtest_mimic::Failed;

use crate::batches;
use crate::support::drive::{
    Driver, PATIENCE, Tested, config, connect, create, group, publish, refused, topic,
};

type Test = Box<dyn FnOnce(Home) -> Pin<Box<dyn Future<Output = Tested>>> + Send>;

pub(crate) fn trials() -> Vec<(&'static str, Test)> {
    vec![
        ("h01_a_killed_server_loses_nothing_and_both_sides_go_on", Box::new(|home| Box::pin(killed(home)))),
        (
            "h04_a_cluster_loses_nothing_when_each_node_is_killed_in_turn",
            Box::new(|home| Box::pin(cluster(home))),
        ),
        (
            "p1_a_server_that_is_killed_within_batches_loses_nothing_that_was_acknowledged",
            Box::new(|home| Box::pin(batches::killed(home))),
        ),
        (
            "p1_a_leader_that_is_killed_within_batches_loses_nothing_that_was_acknowledged",
            Box::new(|home| Box::pin(batches::leader_killed(home))),
        ),
        (
            "p3_a_frozen_server_ends_ownership_within_two_thirds_of_the_lease",
            Box::new(|home| Box::pin(frozen(home))),
        ),
        ("i05_credentials_work_or_are_refused", Box::new(|home| Box::pin(credentials(home)))),
        ("the_permissions_of_a_member_are_enough", Box::new(|home| Box::pin(permissions(home)))),
        ("g8_what_is_not_permitted_is_denied_in_time", Box::new(|home| Box::pin(denials(home)))),
    ]
}

async fn killed(home: Home) -> Tested {
    let mut server = launch_nats(&home, Server::default())?;
    let (backend, topic, group) = (connect(&server.url()).await?, topic("killed"), group("g"));
    create(&backend, &topic, 3).await?;
    publish(&backend, &topic, 20, 1..6).await?;
    let mut driver = Driver::join(&backend, &group, &topic).await?;
    driver.until("the first are read", |heard| heard.messages.len() == 100).await?;
    driver.during(Duration::from_millis(300)).await?;
    for round in 0..2u64 {
        server.kill()?;
        driver.during(Duration::from_millis(500)).await?;
        server.start()?;
        let versions = 6 + round * 5..11 + round * 5;
        let deadline = Instant::now() + PATIENCE;
        // What is refused while the server starts is published again, in order.
        for version in versions {
            for key in 0..20 {
                let message = Message::new(version.to_string()).with_key(format!("k{key}"));
                let publish = Publish::new(topic.clone(), message);
                while let Err(error) = backend.publisher().publish(publish.clone()).await {
                    assert!(Instant::now() < deadline, "publishing does not go on: {error:?}");
                    driver.during(Duration::from_millis(20)).await?;
                }
            }
        }
        let expected = 200 + round as usize * 100;
        driver.until("it goes on", |heard| heard.messages.len() >= expected).await?;
    }
    driver.close().await?;
    Ok(())
}

async fn cluster(home: Home) -> Tested {
    let mut server = launch_nats(&home, Server::default().with_nodes(3))?;
    let (backend, topic, group) = (connect(&server.url()).await?, topic("cluster"), group("g"));
    backend.create_topic(&TopicSpec::new(topic.clone(), 3).with_replicas(3)).await?;
    let mut driver = Driver::join(&backend, &group, &topic).await?;
    let mut version = 0u64;
    for node in 0..3 {
        server.nodes()[node].kill()?;
        let deadline = Instant::now() + PATIENCE;
        for _ in 0..5 {
            version += 1;
            for key in 0..10 {
                // An id, because what timed out may have been stored.
                let message = Message::new(version.to_string()).with_key(format!("k{key}"));
                let publish =
                    Publish::new(topic.clone(), message).with_id(format!("{topic}-{key}-{version}"));
                while let Err(error) = backend.publisher().publish(publish.clone()).await {
                    assert!(Instant::now() < deadline, "publishing does not go on: {error:?}");
                    driver.during(Duration::from_millis(50)).await?;
                }
            }
        }
        let expected = version as usize * 10;
        driver.until("it goes on", |heard| heard.messages.len() >= expected).await?;
        server.nodes()[node].start()?;
        driver.during(Duration::from_secs(2)).await?;
    }
    driver.during(Duration::from_secs(1)).await?;
    if driver.heard.lost == 0 {
        assert_eq!(driver.heard.messages.len(), version as usize * 10, "nothing twice");
        driver.heard.check_order()?;
    }
    driver.close().await?;
    Ok(())
}

async fn frozen(home: Home) -> Tested {
    const LEASE: Duration = Duration::from_secs(3);
    let mut server = launch_nats(&home, Server::default())?;
    let backend = NatsBackend::connect(config(&server.url()).with_lease(LEASE)).await?;
    let (topic, group) = (topic("frozen"), group("g"));
    create(&backend, &topic, 2).await?;
    publish(&backend, &topic, 4, 1..3).await?;
    let mut driver = Driver::join(&backend, &group, &topic).await?;
    driver.until("all is read", |heard| heard.messages.len() == 8).await?;
    driver.during(Duration::from_millis(300)).await?;
    server.freeze()?;
    let began = Instant::now();
    driver.until("it is lost", |heard| heard.lost == 2).await?;
    assert!(began.elapsed() <= LEASE * 2 / 3 + Duration::from_millis(500), "{:?}", began.elapsed());
    server.thaw()?;
    driver.until("it is owned again", |heard| heard.epochs.len() == 4).await?;
    publish(&backend, &topic, 4, 3..4).await?;
    driver.until("it goes on", |heard| heard.messages.len() >= 12).await?;
    driver.during(Duration::from_millis(200)).await?;
    assert_eq!(driver.heard.messages.len(), 12, "all had been committed");
    driver.heard.check_order()?;
    driver.close().await?;
    Ok(())
}

async fn credentials(home: Home) -> Tested {
    let extra = r#"authorization { users: [ { user: "me", password: "s3cr3t" } ] }"#;
    let server = match launch_nats(&home, Server::default().with_extra(extra)) {
        Ok(server) => server,
        // The launcher's own probe may not be let in.
        Err(error) => return Err(format!("no server with users: {error}").into()),
    };
    let url = server.url();
    let began = Instant::now();
    for wrong in [config(&url), config(&url).with_user("me", "wr0ng"), config(&url).with_token("wr0ng")] {
        let failed = NatsBackend::connect(wrong).await;
        if let Err(error) = &failed {
            assert!(!format!("{error:?} {}", error.chain()).contains("wr0ng"), "{error:?}");
        }
        refused(failed, ErrorKind::Denied, "credentials")?;
    }
    assert!(began.elapsed() < Duration::from_secs(15));
    NatsBackend::connect(config(&url).with_user("me", "s3cr3t")).await?;
    let with_user = url.replace("nats://", "nats://me:s3cr3t@");
    NatsBackend::connect(NatsConfig::from_url(&with_user)?).await?;
    refused(
        NatsBackend::connect(config(&url).with_user("me", "s3cr3t").with_tls()).await,
        ErrorKind::Denied,
        "TLS",
    )
}

/// What the documentation says that a member of a group needs.
fn permitted(topic: &Topic) -> Vec<String> {
    vec![
        format!("{topic}.*"),
        format!("{topic}.void=.*"),
        format!("$JS.API.STREAM.INFO.{topic}"),
        format!("$JS.API.CONSUMER.CREATE.{topic}.>"),
        format!("$JS.API.CONSUMER.DELETE.{topic}.*"),
        format!("$JS.API.CONSUMER.INFO.{topic}.*"),
        format!("$JS.API.CONSUMER.MSG.NEXT.{topic}.*"),
        format!("$JS.API.STREAM.MSG.GET.{topic}"),
        "$JS.API.STREAM.INFO.KV_ebus".to_owned(),
        "$JS.API.STREAM.MSG.GET.KV_ebus".to_owned(),
        "$KV.ebus.>".to_owned(),
    ]
}

fn user(name: &str, publish: &[String]) -> String {
    let list = publish.iter().map(|subject| format!("{subject:?}")).collect::<Vec<_>>().join(", ");
    format!(
        r#"{{ user: "{name}", password: "p", permissions: {{ publish: [{list}], subscribe: ["_INBOX.>"] }} }}"#
    )
}

/// A server with an administrator and these users, on which the topic and the bucket exist.
async fn with_users(home: &Home, topic: &Topic, users: &[String]) -> Result<(Running, NatsBackend), Failed> {
    let extra =
        format!(r#"authorization {{ users: [ {{ user: "admin", password: "p" }}, {} ] }}"#, users.join(", "));
    let server = launch_nats(home, Server::default().with_extra(extra))?;
    let admin = NatsBackend::connect(config(&server.url()).with_user("admin", "p")).await?;
    create(&admin, topic, 2).await?;
    // The bucket is made by whoever may: a group that joins once.
    Driver::join(&admin, &group("admin"), topic).await?.close().await?;
    Ok((server, admin))
}

/// What docs say that a member needs, and nothing else.
async fn permissions(home: Home) -> Tested {
    let (topic, group) = (topic("allowed"), group("g"));
    let (server, _admin) = with_users(&home, &topic, &[user("member", &permitted(&topic))]).await?;
    let member = NatsBackend::connect(config(&server.url()).with_user("member", "p")).await?;
    publish(&member, &topic, 4, 1..4).await?;
    let mut driver = Driver::join(&member, &group, &topic).await?;
    driver.until("all is read", |heard| heard.messages.len() == 12).await?;
    driver.close().await?;
    assert_eq!(member.committed(&group, &topic).await?.len(), 2);
    assert_eq!(member.describe_topic(&topic).await?.partitions.len(), 2);
    // A start by time, a reader, and parked keys.
    let start = StartPosition::Time(Timestamp::from_millis(0));
    let by_time =
        SourceOptions::new(crate::support::drive::group("t"), vec![topic.clone()]).with_start(start);
    member.source(by_time).await?.close(PATIENCE).await?;
    let (mut found, end) = (Vec::new(), NextOffset(100));
    let mut reader = member.read(ReadRange::new(topic.clone(), 0, 1, end)).await?;
    while reader.next(100, &mut found).await? > 0 {}
    assert!(!found.is_empty());
    let partition = PartitionId::new(topic.clone(), 0);
    let parking = member.parking(&group).await?;
    let (epoch, request) = (Epoch(100), Bytes::from_static(b"request"));
    assert_eq!(parking.claim(&partition, epoch).await?, None);
    parking.keep(&partition, epoch, Bytes::from_static(b"list")).await?;
    assert_eq!(parking.read(&partition).await?, Some(Bytes::from_static(b"list")));
    parking.ask(&partition, request.clone()).await?;
    assert_eq!(parking.asked(&partition).await?, std::slice::from_ref(&request));
    parking.answered(&partition, &request).await?;
    assert_eq!(parking.asked(&partition).await?.len(), 0);
    Ok(())
}

/// What is lacking is said as such, and before a time-out where something is asked.
async fn denials(home: Home) -> Tested {
    let topic = topic("denied");
    let all = permitted(&topic);
    let without = |what: &str| {
        let lacking: Vec<_> = all.iter().filter(|subject| !subject.starts_with(what)).cloned().collect();
        assert_eq!(lacking.len() + 1, all.len(), "{what}");
        lacking
    };
    let lacks = [
        ("info", format!("$JS.API.STREAM.INFO.{topic}")),
        ("publish", format!("{topic}.*")),
        ("consumer", "$JS.API.CONSUMER.CREATE".to_owned()),
        ("next", "$JS.API.CONSUMER.MSG.NEXT".to_owned()),
        ("state", "$KV.ebus".to_owned()),
        ("records", "$JS.API.STREAM.MSG.GET.KV_ebus".to_owned()),
    ];
    let users: Vec<_> = lacks.iter().map(|(name, what)| user(name, &without(what))).collect();
    let (server, admin) = with_users(&home, &topic, &users).await?;
    publish(&admin, &topic, 4, 1..4).await?;
    let as_user = |name: &str| {
        let config = config(&server.url()).with_user(name, "p").with_publish_timeout(Duration::from_secs(2));
        NatsBackend::connect(config)
    };
    let began = Instant::now();
    let message = || Publish::new(topic.clone(), Message::new("x"));
    let backend = as_user("info").await?;
    refused(backend.describe_topic(&topic).await, ErrorKind::Denied, "does not allow")?;
    refused(backend.publisher().publish(message()).await, ErrorKind::Denied, "does not allow")?;
    let backend = as_user("state").await?;
    refused(Driver::join(&backend, &group("g"), &topic).await, ErrorKind::Denied, "does not allow")?;
    refused(backend.parking(&group("g")).await, ErrorKind::Denied, "does not allow")?;
    // Who only looks writes nothing.
    let parks = group("g");
    refused(backend.existing_parking(&parks).await, ErrorKind::NotFound, "check its name")?;
    admin.parking(&parks).await?;
    let looks = backend.existing_parking(&parks).await?;
    let partition = PartitionId::new(topic.clone(), 0);
    assert_eq!(looks.read(&partition).await?, None);
    refused(looks.ask(&partition, "request".into()).await, ErrorKind::Denied, "does not allow")?;
    let backend = as_user("records").await?;
    refused(Driver::join(&backend, &group("g"), &topic).await, ErrorKind::Denied, "does not allow")?;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "all before the time-out of one request: {:?}",
        began.elapsed()
    );
    let backend = as_user("publish").await?;
    refused(backend.publisher().publish(message()).await, ErrorKind::Denied, "does not allow")?;
    for name in ["consumer", "next"] {
        let mut driver = Driver::join(&as_user(name).await?, &group("g"), &topic).await?;
        driver.until(name, |heard| heard.trouble.iter().any(|e| e.kind() == ErrorKind::Denied)).await?;
        assert_eq!(driver.heard.messages.len(), 0);
        driver.close().await?;
    }
    Ok(())
}
