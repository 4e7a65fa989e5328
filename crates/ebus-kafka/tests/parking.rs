//! Parked keys on Kafka beyond the conformance suite: rights, the topic that they are in, and late writes.

use std::time::Duration;

use ebus_core::{Backend, Epoch, ErrorKind, Group, PartitionId, Topic, TopicSpec};
use ebus_kafka::{KafkaBackend, KafkaConfig};
use ebus_testkit::brokers::{Need, shared_trial};
use libtest_mimic::{Failed, Trial};
use rdkafka::types::RDKafkaApiKey;
use rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED as DENIED;
use rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART as UNKNOWN;

#[path = "support/mock.rs"]
mod mock;

use mock::{Mock, Mocked};

type Tested = Result<(), Failed>;

fn shared<F: Future<Output = Tested>>(name: &str, test: impl FnOnce(String) -> F + Send + 'static) -> Trial {
    shared_trial(name, Need::Kafka, move |url| {
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(test(url))
    })
}

fn mocked<F: Future<Output = Tested>>(name: &str, test: impl FnOnce(Mock) -> F + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let mock = Mock::start(1)?;
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(test(mock))
    })
}

fn fresh(what: &str) -> Result<Topic, Failed> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(Topic::new(format!("{what}-{:x}", now.as_nanos()))?)
}

async fn connect(url: &str, parked_topic: &Topic) -> Result<KafkaBackend, Failed> {
    let config = KafkaConfig::from_url(url)?.with_parked_topic(parked_topic.as_str());
    Ok(KafkaBackend::connect(config).await?)
}

/// A topic that forgets by time would forget which keys are parked.
async fn a_topic_that_is_not_compacted_is_refused(url: String) -> Tested {
    let topic = fresh("forgetful")?;
    let backend = connect(&url, &topic).await?;
    backend.create_topic(&TopicSpec::new(topic.clone(), 1)).await?;
    let refused = backend.parking(&Group::new("g")?).await.err().expect("it is not compacted");
    assert_eq!(refused.kind(), ErrorKind::ConfigInvalid, "{refused}");
    assert!(refused.to_string().contains("cleanup.policy=compact"), "{refused}");
    Ok(backend.close(Duration::from_secs(5)).await?)
}

/// Who only looks, and may mistype the name of a group, leaves nothing behind.
async fn who_looks_creates_no_topic(url: String) -> Tested {
    let topic = fresh("unparked")?;
    let backend = connect(&url, &topic).await?;
    for _ in 0..2 {
        let refused = backend.existing_parking(&Group::new("g")?).await.err().expect("nobody parked keys");
        assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    }
    let refused = backend.describe_topic(&topic).await.expect_err("it was not created");
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    Ok(backend.close(Duration::from_secs(5)).await?)
}

/// Without the right to write.
async fn who_looks_writes_nothing(mock: Mock) -> Tested {
    mock.create_topic("ebus-parked", 1)?;
    mock.create_topic("orders", 1)?;
    let (group, place) = (Group::new("g")?, PartitionId::new(Topic::new("orders")?, 0));
    let owner = Mocked::connect(&mock, |config| config).await?;
    let owners = owner.parking(&group).await?;
    owners.claim(&place, Epoch(1)).await?;
    owners.keep(&place, Epoch(1), "parked".into()).await?;
    mock.with(|cluster| cluster.request_errors(RDKafkaApiKey::Produce, &[DENIED]));
    let backend = Mocked::connect(&mock, |config| config).await?;
    let looks = backend.existing_parking(&group).await?;
    assert_eq!(looks.read(&place).await?, Some("parked".into()));
    let refused = looks.ask(&place, "redrive a".into()).await.expect_err("the denial was not used up before");
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
    Ok(())
}

/// Made at the first use, by several at once; what was kept is there for a connection that has read nothing yet.
async fn what_is_kept_outlives_its_connection(url: String) -> Tested {
    let (topic, orders, group) = (fresh("parked")?, fresh("orders")?, Group::new("g")?);
    let place = PartitionId::new(orders.clone(), 0);
    {
        let (one, two) = (connect(&url, &topic).await?, connect(&url, &topic).await?);
        one.create_topic(&TopicSpec::new(orders.clone(), 1)).await?;
        let (first, second) = tokio::join!(one.parking(&group), two.parking(&group));
        let (first, second) = (first?, second?);
        first.claim(&place, Epoch(3)).await?;
        for number in 0..20 {
            first.keep(&place, Epoch(3), format!("value {number}").into()).await?;
        }
        assert_eq!(second.read(&place).await?, Some("value 19".into()));
        first.ask(&place, "redrive a".into()).await?;
        one.close(Duration::from_secs(5)).await?;
        let closed = first.keep(&place, Epoch(3), "late".into()).await.expect_err("it is closed");
        assert_eq!(closed.kind(), ErrorKind::Closed, "{closed}");
        two.close(Duration::from_secs(5)).await?;
    }
    let later = connect(&url, &topic).await?;
    let parking = later.parking(&group).await?;
    assert_eq!(parking.claim(&place, Epoch(4)).await?, Some("value 19".into()));
    assert_eq!(parking.asked(&place).await?, ["redrive a"]);
    Ok(later.close(Duration::from_secs(5)).await?)
}

/// Its record is one of its own, whenever it comes.
async fn a_late_write_of_a_former_owner_replaces_nothing(url: String) -> Tested {
    let (topic, orders, group) = (fresh("parked")?, fresh("orders")?, Group::new("g")?);
    let place = PartitionId::new(orders.clone(), 0);
    let (one, two) = (connect(&url, &topic).await?, connect(&url, &topic).await?);
    one.create_topic(&TopicSpec::new(orders.clone(), 1)).await?;
    let (former, later) = (one.parking(&group).await?, two.parking(&group).await?);
    former.claim(&place, Epoch(1)).await?;
    former.keep(&place, Epoch(1), "parked: a".into()).await?;
    assert_eq!(later.claim(&place, Epoch(2)).await?, Some("parked: a".into()));
    later.keep(&place, Epoch(2), "parked: a, b".into()).await?;
    former.keep(&place, Epoch(1), "late".into()).await?;
    for backend in [&one, &two] {
        assert_eq!(backend.parking(&group).await?.read(&place).await?, Some("parked: a, b".into()));
    }
    let third = connect(&url, &topic).await?;
    assert_eq!(third.parking(&group).await?.claim(&place, Epoch(3)).await?, Some("parked: a, b".into()));
    for backend in [one, two, third] {
        backend.close(Duration::from_secs(5)).await?;
    }
    Ok(())
}

/// Nobody may find out at the first dead letter that it cannot be written down.
async fn without_the_right_to_write_it_does_not_open(mock: Mock) -> Tested {
    let backend = Mocked::connect(&mock, |config| config).await?;
    mock.create_topic("ebus-parked", 1)?;
    mock.with(|cluster| cluster.request_errors(RDKafkaApiKey::Produce, &[DENIED]));
    let refused = backend.parking(&Group::new("g")?).await.err().expect("it may not write");
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
    // Once it has the right, without a new connection.
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    while let Err(error) = backend.parking(&Group::new("g")?).await {
        assert!(error.kind() == ErrorKind::Denied && tokio::time::Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// After a restart brokers learn one by one what there is: a member that started then was told to create the topic, and ended.
async fn a_topic_that_is_not_known_everywhere_is_waited_for(mock: Mock) -> Tested {
    let backend = Mocked::connect(&mock, |config| config).await?;
    mock.create_topic("ebus-parked", 1)?;
    mock.with(|cluster| cluster.request_errors(RDKafkaApiKey::ListOffsets, &[UNKNOWN; 2]));
    let _parking = backend.parking(&Group::new("g")?).await?;
    Ok(())
}

/// A write that is not answered in time keeps its place: what is written next is the last that anybody reads.
async fn a_write_that_is_late_is_not_overtaken(mock: Mock) -> Tested {
    let change = |config: KafkaConfig| config.with_request_timeout(Duration::from_secs(2));
    let backend = Mocked::connect(&mock, change).await?;
    mock.create_topic("orders", 1)?;
    let (group, place) = (Group::new("g")?, PartitionId::new(Topic::new("orders")?, 0));
    let parking = backend.parking(&group).await?;
    parking.claim(&place, Epoch(1)).await?;
    mock.with(|cluster| cluster.broker_round_trip_time(1, Duration::from_secs(5)))?;
    let late = parking.keep(&place, Epoch(1), "first".into()).await.expect_err("the broker is slow");
    assert_eq!(late.kind(), ErrorKind::Timeout, "{late}");
    mock.with(|cluster| cluster.broker_round_trip_time(1, Duration::ZERO))?;
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    while let Err(error) = parking.keep(&place, Epoch(1), "second".into()).await {
        assert!(tokio::time::Instant::now() < end, "{error}");
    }
    assert_eq!(parking.read(&place).await?, Some("second".into()));
    let other = Mocked::connect(&mock, |config| config).await?;
    assert_eq!(other.parking(&group).await?.claim(&place, Epoch(2)).await?, Some("second".into()));
    Ok(())
}

fn main() {
    let trials = vec![
        shared("p8_a_topic_that_is_not_compacted_is_refused", a_topic_that_is_not_compacted_is_refused),
        shared("p8_who_looks_creates_no_topic", who_looks_creates_no_topic),
        mocked("p8_who_looks_writes_nothing", who_looks_writes_nothing),
        shared("p1_what_is_kept_outlives_its_connection", what_is_kept_outlives_its_connection),
        shared(
            "p3_a_late_write_of_a_former_owner_replaces_nothing",
            a_late_write_of_a_former_owner_replaces_nothing,
        ),
        mocked("p2_without_the_right_to_write_it_does_not_open", without_the_right_to_write_it_does_not_open),
        mocked(
            "p9_a_topic_that_is_not_known_everywhere_is_waited_for",
            a_topic_that_is_not_known_everywhere_is_waited_for,
        ),
        mocked("p1_a_write_that_is_late_is_not_overtaken", a_write_that_is_late_is_not_overtaken),
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit()
}
