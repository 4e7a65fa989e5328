//! What others write into the state of a group while several members run (e06, G1, G3).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, kv};
use ebus_core::{Backend, Committed};
use ebus_nats::NatsBackend;
use futures_util::TryStreamExt;
use libtest_mimic::{Failed, Trial};

use crate::shared;
use crate::support::drive::{Tested, config, create, group, publish, topic};
use crate::support::team::{Team, is_even};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("e06_a_damaged_record_costs_its_owner_the_partition_and_nobody_a_message", record),
        shared("p3_damaged_heartbeats_cost_no_ownership", heartbeats),
        shared("p3_a_record_that_names_a_member_which_does_not_run_it_is_claimed_by_it", orphan),
    ]
}

/// Long enough for what waits for it to be told from what does not.
const LEASE: Duration = Duration::from_secs(9);

/// Two members of four partitions, of which all was read.
async fn two_members(url: &str, name: &str) -> Result<(Team, NatsBackend, kv::Store), Failed> {
    let backend = members_backend(url).await?;
    let topic = topic(name);
    create(&backend, &topic, 4).await?;
    publish(&backend, &topic, 20, 1..6).await?;
    let mut team = Team::new(&group("g"), &[&topic]);
    team.join("a", &backend).await?;
    team.join("b", &members_backend(url).await?).await?;
    team.until_even(4).await?;
    team.until("all is read", |log| log.distinct().0 == 100).await?;
    let deadline = Instant::now() + LEASE;
    while !is_committed(&backend, &team).await? {
        assert!(Instant::now() < deadline, "what is read is not committed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let bucket = jetstream::new(async_nats::connect(url).await?).get_key_value("ebus").await?;
    Ok((team, backend, bucket))
}

async fn is_committed(backend: &NatsBackend, team: &Team) -> Result<bool, Failed> {
    let topic = &team.topics[0];
    let ends = backend.describe_topic(topic).await?.partitions;
    let committed = backend.committed(&team.group, topic).await?;
    let watermark = |one: &Committed| one.position.as_ref().map(|position| position.watermark);
    Ok(committed.iter().zip(ends).all(|(one, there)| watermark(one) == Some(there.end)))
}

async fn members_backend(url: &str) -> Result<NatsBackend, ebus_core::Error> {
    NatsBackend::connect(config(url).with_lease(LEASE)).await
}

/// The keys of the members' heartbeats.
async fn heartbeat_keys(team: &Team, bucket: &kv::Store) -> Result<BTreeSet<String>, Failed> {
    let prefix = format!("h.{}.", team.group);
    let keys: Vec<String> = bucket.keys().await?.try_collect().await?;
    Ok(keys.into_iter().filter(|key| key.starts_with(&prefix)).collect())
}

async fn record(url: String) -> Tested {
    let (mut team, backend, bucket) = two_members(&url, "damaged-of-two").await?;
    let topic = team.topics[0].clone();
    bucket.put(format!("p.{}.{topic}.0", team.group), "\u{0}nonsense".into()).await?;
    team.until("its owner is told", |log| log.lost.len() == 1).await?;
    team.until("somebody goes on with it", |log| {
        is_even(log, 4) && log.trouble.iter().any(|text| text.contains("the group's record is damaged"))
    })
    .await?;
    publish(&backend, &topic, 20, 6..9).await?;
    team.until("what follows is read", |log| log.distinct().0 == 160).await?;
    {
        let log = team.log();
        assert_eq!(log.lost[0].1.partition, 0);
        let again: BTreeSet<u32> =
            log.runs[100..].iter().filter(|run| run.version < 6).map(|run| run.partition.partition).collect();
        assert!(
            again.iter().all(|partition| *partition == 0),
            "only what was damaged is repeated: {again:?}"
        );
    }
    team.leave_all().await?;
    team.log().check()
}

async fn heartbeats(url: String) -> Tested {
    let (mut team, backend, bucket) = two_members(&url, "damaged-beats").await?;
    let keys = heartbeat_keys(&team, &bucket).await?;
    assert_eq!(keys.len(), 2);
    let ghost = format!("h.{}.ghost", team.group);
    for round in 6..12 {
        for key in keys.iter().chain([&ghost]) {
            bucket.put(key, "\u{0}nonsense".into()).await?;
        }
        publish(&backend, &team.topics[0], 20, round..round + 1).await?;
        team.until("it is read", |log| log.distinct().0 == 20 * round as usize).await?;
    }
    // Each says again what it is; nobody takes the one of whom nothing is known for a reader.
    for key in &keys {
        let deadline = Instant::now() + LEASE;
        while bucket.get(key).await?.is_some_and(|value| !value.starts_with(b"{")) {
            assert!(Instant::now() < deadline, "{key} stays damaged");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert!(is_even(&team.log(), 4));
    team.quiet()?;
    assert_eq!(team.log().distinct().1, 0, "nothing runs twice");
    team.leave_all().await?;
    team.log().check()
}

/// As when a claim is applied after its member has given up waiting for it.
async fn orphan(url: String) -> Tested {
    let (mut team, backend, bucket) = two_members(&url, "orphan").await?;
    let topic = team.topics[0].clone();
    let mut owners = Vec::new();
    for partition in 0..4 {
        let value = bucket.get(format!("p.{}.{topic}.{partition}", team.group)).await?.ok_or("no record")?;
        let record: serde_json::Value = serde_json::from_slice(&value)?;
        owners.push((record["owner"].as_str().ok_or("no owner")?.to_owned(), record));
    }
    let (before, mut record) = owners.remove(0);
    let (other, _) = owners.iter().find(|(owner, _)| *owner != before).ok_or("one member has all")?;
    record["owner"] = other.clone().into();
    record["epoch"] = (record["epoch"].as_u64().ok_or("no epoch")? + 1).into();
    let key = format!("p.{}.{topic}.0", team.group);
    bucket.put(&key, serde_json::to_vec(&record)?.into()).await?;
    let began = Instant::now();
    team.until("its owner is told", |log| log.lost.len() == 1).await?;
    team.until("the one it names takes it", |log| log.owned.values().map(BTreeSet::len).sum::<usize>() == 4)
        .await?;
    assert!(began.elapsed() < LEASE * 2 / 3, "nobody's lease has to end for that: {:?}", began.elapsed());
    publish(&backend, &topic, 20, 6..9).await?;
    team.until("what follows is read", |log| log.distinct().0 == 160).await?;
    assert_eq!(team.log().distinct().1, 0, "nothing runs twice");
    team.leave_all().await?;
    team.log().check()
}
