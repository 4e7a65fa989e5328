//! Several members of one group.

use std::time::{Duration, Instant};

use async_nats::jetstream::{self, kv};
use ebus_core::Topic;
use ebus_nats::NatsBackend;
use ebus_testkit::proxy::Proxy;
use futures_util::TryStreamExt;
use libtest_mimic::Trial;

use crate::shared;
use crate::support::drive::{PATIENCE, Tested, config, connect, create, group, publish, topic};
use crate::support::team::{Team, is_even};

const LEASE: Duration = Duration::from_secs(3);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("p3_members_share_evenly_and_move_no_more_than_needed", share_evenly),
        shared("p3_many_topics_and_partitions_are_shared_evenly", many_partitions),
        shared("p3_a_member_without_a_partition_waits_and_takes_over", without_partition),
        shared("p6_a_clean_leave_is_taken_over_at_once_without_duplicates", clean_leave),
        shared("p3_a_killed_member_is_taken_over_after_its_lease", killed),
        shared("p3_a_member_that_is_cut_off_stops_before_its_lease_ends", cut_off),
        shared("p9_closing_while_cut_off_ends_with_the_lease_not_the_deadline", close_cut_off),
        shared("d12_a_frozen_member_is_fenced_and_joins_again", frozen),
        shared("d11_a_slow_hand_over_stalls_nothing_else", slow_hand_over),
        shared("p3_lost_replies_cost_no_ownership_with_several_members", lost_replies),
        shared("p5_heartbeats_of_members_that_left_or_died_are_removed", heartbeats_are_removed),
        shared("d10_random_joins_leaves_and_kills", random),
    ]
}

async fn quick(url: &str) -> Result<NatsBackend, ebus_core::Error> {
    NatsBackend::connect(config(url).with_lease(LEASE)).await
}

fn behind(url: &str) -> Result<Proxy, libtest_mimic::Failed> {
    Ok(Proxy::start(url.trim_start_matches("nats://"))?)
}

async fn bucket(url: &str) -> Result<kv::Store, libtest_mimic::Failed> {
    Ok(jetstream::new(async_nats::connect(url).await?).get_key_value("ebus").await?)
}

/// A team on one topic.
async fn team(
    url: &str,
    name: &str,
    partitions: u32,
) -> Result<(Team, NatsBackend, Topic), libtest_mimic::Failed> {
    let (backend, topic, group) = (quick(url).await?, topic(name), group("g"));
    create(&backend, &topic, partitions).await?;
    Ok((Team::new(&group, &[&topic]), backend, topic))
}

async fn share_evenly(url: String) -> Tested {
    let (mut team, backend, topic) = team(&url, "even", 8).await?;
    team.join("a", &backend).await?;
    team.until_even(8).await?;
    let mut moved = 8;
    for (name, moves, most) in [("b", 4, 4), ("c", 2, 3), ("d", 2, 2)] {
        team.join(name, &backend).await?;
        let took = team.until_even(8).await?;
        println!("{name} has its share after {took:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
        moved += moves;
        assert_eq!(team.log().assigned, moved, "no partition moves that need not");
        assert_eq!(team.log().owned.values().map(|owned| owned.len()).max(), Some(most));
    }
    for (name, moves) in [("a", 2), ("c", 3)] {
        team.leave(name).await?;
        let took = team.until_even(8).await?;
        println!("what {name} had is taken over after {took:?}");
        moved += moves;
        let assigned = team.log().assigned;
        assert!(assigned <= moved, "{assigned} moves instead of {moved}");
    }
    publish(&backend, &topic, 50, 1..11).await?;
    team.until("all is run", |log| log.distinct().0 == 500).await?;
    team.leave_all().await?;
    assert_eq!(team.log().distinct(), (500, 0));
    team.quiet()?;
    team.log().check()
}

async fn many_partitions(url: String) -> Tested {
    let (backend, group) = (quick(&url).await?, group("g"));
    let topics = [topic("many-a"), topic("many-b"), topic("many-c")];
    for (topic, partitions) in topics.iter().zip([100, 61, 40]) {
        create(&backend, topic, partitions).await?;
    }
    let mut team = Team::new(&group, &topics.iter().collect::<Vec<_>>());
    for name in ["a", "b", "c", "d"] {
        team.join(name, &backend).await?;
        let took = team.until_even(201).await?;
        println!("{name}: 201 partitions are shared after {took:?}");
    }
    for topic in &topics {
        let log = team.log();
        let of_topic = |name: &str| log.owned[name].iter().filter(|id| id.topic == *topic).count();
        let counts: Vec<usize> = ["a", "b", "c", "d"].iter().map(|name| of_topic(name)).collect();
        assert!(
            counts.iter().max().unwrap_or(&0) - counts.iter().min().unwrap_or(&0) <= 1,
            "{topic}: {counts:?}"
        );
    }
    team.quiet()?;
    team.leave_all().await
}

async fn without_partition(url: String) -> Tested {
    let (mut team, backend, topic) = team(&url, "waits", 1).await?;
    team.join("a", &backend).await?;
    team.until_even(1).await?;
    team.join("b", &backend).await?;
    publish(&backend, &topic, 1, 1..4).await?;
    team.until("it is run", |log| log.runs.len() == 3).await?;
    tokio::time::sleep(LEASE + Duration::from_millis(500)).await; // nothing may happen in all that time
    assert_eq!(team.counts("b"), (1, 0, 0));
    team.leave("a").await?;
    team.until_even(1).await?;
    publish(&backend, &topic, 1, 4..6).await?;
    team.until("it goes on", |log| log.runs.len() == 5).await?;
    team.leave_all().await?;
    team.log().check()
}

async fn clean_leave(url: String) -> Tested {
    let (mut team, backend, topic) = team(&url, "leave", 6).await?;
    for name in ["a", "b", "c"] {
        team.join(name, &backend).await?;
    }
    team.until_even(6).await?;
    publish(&backend, &topic, 60, 1..21).await?;
    team.until("all is run", |log| log.runs.len() == 1_200).await?;
    for name in ["b", "a"] {
        let began = Instant::now();
        team.leave(name).await?;
        let left = began.elapsed();
        team.until_even(6).await?;
        println!("left in {left:?}, taken over {:?} after the call", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    publish(&backend, &topic, 60, 21..31).await?;
    team.until("all is run", |log| log.distinct().0 == 1_800).await?;
    team.leave_all().await?;
    assert_eq!(team.log().distinct(), (1_800, 0), "no duplicates");
    team.log().check()
}

async fn killed(url: String) -> Tested {
    let (mut team, backend, topic) = team(&url, "killed", 6).await?;
    let proxy = behind(&url)?;
    let cut = NatsBackend::connect(config(&format!("nats://{}", proxy.addr())).with_lease(LEASE)).await?;
    team.join("a", &backend).await?;
    team.join("dead", &cut).await?;
    team.until_even(6).await?;
    publish(&backend, &topic, 60, 1..11).await?;
    team.until("all is run", |log| log.runs.len() == 600).await?;
    tokio::time::sleep(Duration::from_millis(200)).await; // the last commits
    proxy.cut();
    team.kill("dead").await;
    let took = team.until_even(6).await?;
    println!("taken over {took:?} after the kill, with a lease of {LEASE:?}");
    assert!(took >= LEASE * 2 / 3, "before the owner had to stop: {took:?}");
    assert!(took < LEASE + Duration::from_secs(5), "{took:?}");
    publish(&backend, &topic, 60, 11..16).await?;
    team.until("all is run", |log| log.distinct().0 == 900).await?;
    team.leave_all().await?;
    assert_eq!(team.log().distinct(), (900, 0), "all had been committed");
    team.log().check()
}

async fn cut_off(url: String) -> Tested {
    let (mut team, backend, topic) = team(&url, "cut-off", 4).await?;
    let proxy = behind(&url)?;
    let cut = NatsBackend::connect(config(&format!("nats://{}", proxy.addr())).with_lease(LEASE)).await?;
    team.join("a", &backend).await?;
    team.join("b", &cut).await?;
    team.until_even(4).await?;
    publish(&backend, &topic, 40, 1..6).await?;
    team.until("all is run", |log| log.runs.len() == 200).await?;
    let began = Instant::now();
    proxy.stall();
    team.until("it stops", |log| log.lost.len() == 2).await?;
    let stopped = began.elapsed();
    println!("stopped {stopped:?} after it was cut off");
    assert!(stopped <= LEASE * 2 / 3 + Duration::from_millis(500), "{stopped:?}");
    assert!(team.log().lost.iter().all(|(name, ..)| *name == "b"));
    team.until("the other has all", |log| log.holds("a") == 4).await?;
    println!("taken over {:?} after it was cut off", began.elapsed());
    assert!(began.elapsed() < LEASE + Duration::from_secs(5));
    publish(&backend, &topic, 40, 6..11).await?;
    // Runs that were cut off repeat.
    team.until("all is run", |log| log.distinct().0 == 400).await?;
    proxy.heal();
    let took = team.until_even(4).await?;
    println!("shared again {took:?} after it could speak again");
    publish(&backend, &topic, 40, 11..16).await?;
    team.until("all is run", |log| log.distinct().0 == 600).await?;
    team.leave_all().await?;
    team.log().check()
}

/// A member that could not be heard went on with heartbeats until the deadline of its close.
async fn close_cut_off(url: String) -> Tested {
    let (mut team, backend, _) = team(&url, "close-cut", 4).await?;
    let proxy = behind(&url)?;
    let cut = NatsBackend::connect(config(&format!("nats://{}", proxy.addr())).with_lease(LEASE)).await?;
    team.join("a", &backend).await?;
    team.join("b", &cut).await?;
    team.until_even(4).await?;
    proxy.stall();
    let began = Instant::now();
    team.leave("b").await?;
    let took = began.elapsed();
    println!("closed in {took:?}");
    assert!(took < LEASE * 2, "{took:?}");
    team.until_even(4).await?;
    team.leave_all().await
}

async fn frozen(url: String) -> Tested {
    let (mut team, backend, topic) = team(&url, "frozen", 6).await?;
    let other = quick(&url).await?;
    team.join("a", &backend).await?;
    team.join("b", &other).await?;
    team.until_even(6).await?;
    for round in 0..2u64 {
        let before = team.log().lost.len();
        team.freeze("b", LEASE * 3);
        publish(&backend, &topic, 60, round * 10 + 1..round * 10 + 11).await?;
        team.until("the other has all", |log| log.holds("a") == 6).await?;
        team.until("all is run", |log| log.distinct().0 as u64 == (round + 1) * 600).await?;
        team.until("it learns of it", |log| log.lost.len() == before + 3).await?;
        let took = team.until_even(6).await?;
        println!("shared again {took:?} after it was thawed");
    }
    assert!(team.log().lost.iter().all(|(name, ..)| *name == "b"), "it takes nothing from others");
    team.leave_all().await?;
    team.log().check()
}

async fn slow_hand_over(url: String) -> Tested {
    const LINGER: Duration = Duration::from_secs(3);
    let (mut team, backend, topic) = team(&url, "slow", 6).await?;
    team.join("a", &backend).await?;
    team.until_even(6).await?;
    team.linger("a", LINGER);
    let stop = tokio::sync::Notify::new();
    let publishing = async {
        let mut version = 0;
        loop {
            version += 1;
            publish(&backend, &topic, 60, version..version + 1).await?;
            tokio::select! {
                () = stop.notified() => return Ok::<_, ebus_core::Error>(version),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    };
    let joining = async {
        let other = quick(&url).await?;
        team.until("it runs", |log| log.runs.len() > 600).await?;
        let began = Instant::now();
        team.join("b", &other).await?;
        let took = team.until("the other has its share", |log| is_even(log, 6)).await?;
        Ok::<_, libtest_mimic::Failed>((began, took))
    };
    let joining = async {
        let joined = joining.await;
        stop.notify_one();
        joined
    };
    let (published, joined) = tokio::join!(publishing, joining);
    let (versions, (began, took)) = (published?, joined?);
    assert!(took >= LINGER, "{took:?}");
    assert!(took < LINGER + Duration::from_secs(3), "{took:?}");
    team.until("all is run", |log| log.runs.len() as u64 >= versions * 60).await?;
    {
        let log = team.log();
        let kept = &log.owned["a"];
        assert_eq!(kept.len(), 3);
        let mut longest = Duration::ZERO;
        for partition in kept {
            let runs: Vec<Instant> = log
                .runs
                .iter()
                .filter(|run| run.partition == *partition && run.at >= began)
                .map(|run| run.at)
                .collect();
            for pair in runs.windows(2) {
                longest = longest.max(pair[1] - pair[0]);
            }
        }
        println!("hand-over in {took:?}, longest gap of what stays {longest:?}");
        assert!(longest < Duration::from_millis(500), "{longest:?}");
    }
    team.linger("a", Duration::ZERO);
    team.leave_all().await?;
    assert_eq!(team.log().distinct().1, 0, "no duplicates");
    team.log().check()
}

async fn lost_replies(url: String) -> Tested {
    let lease = Duration::from_secs(6);
    let proxy = behind(&url)?;
    let muted = NatsBackend::connect(config(&format!("nats://{}", proxy.addr())).with_lease(lease)).await?;
    let direct = NatsBackend::connect(config(&url).with_lease(lease)).await?;
    let (topic, group) = (topic("replies"), group("g"));
    create(&direct, &topic, 6).await?;
    let mut team = Team::new(&group, &[&topic]);
    team.join("a", &direct).await?;
    team.join("b", &muted).await?;
    team.until_even(6).await?;
    let assigned = team.log().assigned;
    for round in 0..5u64 {
        // Its commits and heartbeats arrive and nothing comes back.
        proxy.mute();
        publish(&direct, &topic, 60, round * 2 + 1..round * 2 + 3).await?;
        tokio::time::sleep(Duration::from_millis(400)).await;
        proxy.cut();
        proxy.heal();
        team.until("all is run", |log| log.distinct().0 as u64 == (round + 1) * 120).await?;
    }
    assert_eq!(team.counts("b"), (assigned, 3, 0));
    team.leave_all().await?;
    assert_eq!(team.log().distinct(), (600, 0));
    team.log().check()
}

async fn heartbeats_are_removed(url: String) -> Tested {
    let (mut team, backend, _) = team(&url, "cleaned", 3).await?;
    let bucket = bucket(&url).await?;
    let prefix = format!("h.{}.", team.group);
    let count = || async {
        let context = jetstream::new(async_nats::connect(&url).await?);
        let stream = context.get_stream("KV_ebus").await?;
        let subjects = stream.info_with_subjects(format!("$KV.ebus.{prefix}>")).await?;
        Ok::<_, libtest_mimic::Failed>(subjects.try_collect::<Vec<_>>().await?.len())
    };
    team.join("a", &backend).await?;
    team.until_even(3).await?;
    for round in 0..3 {
        for name in ["b", "c"] {
            team.join(name, &backend).await?;
        }
        team.until_even(3).await?;
        team.leave("b").await?;
        team.kill("c").await;
        team.until_even(3).await?;
        assert!(count().await? >= 1, "{round}");
    }
    let began = Instant::now();
    while count().await? > 1 {
        assert!(began.elapsed() < PATIENCE, "{} keys are left", count().await?);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let keys: Vec<String> = bucket
        .keys()
        .await?
        .try_filter(|key| std::future::ready(key.starts_with(&prefix)))
        .try_collect()
        .await?;
    assert_eq!(keys.len(), 1, "its own");
    team.leave_all().await
}

/// Members that come and go by chance, while messages are published all the time.
async fn random(url: String) -> Tested {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    const KEYS: usize = 60;
    let seed = std::env::var("EBUS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed
        .unwrap_or_else(|| Instant::now().elapsed().subsec_nanos() as u64 ^ u64::from(std::process::id()));
    println!("EBUS_SEED={seed}");
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let lease = Duration::from_secs(1);
    let (topic, group, direct) = (topic("random"), group("g"), connect(&url).await?);
    create(&direct, &topic, 7).await?;
    let mut team = Team::new(&group, &[&topic]);
    let stop = tokio::sync::Notify::new();
    let publishing = async {
        let mut version = 0;
        loop {
            version += 1;
            publish(&direct, &topic, KEYS, version..version + 1).await?;
            tokio::select! {
                () = stop.notified() => return Ok::<_, ebus_core::Error>(version),
                () = tokio::time::sleep(Duration::from_millis(40)) => {}
            }
        }
    };
    let changing = async {
        let began = Instant::now();
        let mut here: Vec<(&'static str, Proxy)> = Vec::new();
        let mut story = Vec::new();
        let mut killed = 0;
        for _ in 0..20 {
            let absent: Vec<_> =
                NAMES.into_iter().filter(|name| !here.iter().any(|(n, _)| n == name)).collect();
            let what = next(10);
            if here.is_empty() || (what < 4 && !absent.is_empty()) {
                let name = absent[next(absent.len() as u64) as usize];
                let proxy = behind(&url)?;
                let backend =
                    NatsBackend::connect(config(&format!("nats://{}", proxy.addr())).with_lease(lease))
                        .await?;
                team.join(name, &backend).await?;
                here.push((name, proxy));
                story.push(format!("{name} joins"));
            } else {
                let at = next(here.len() as u64) as usize;
                let name = here[at].0;
                match what {
                    4..=6 => {
                        story.push(format!("{name} leaves"));
                        team.leave(name).await?;
                        here.remove(at);
                    }
                    7 => {
                        story.push(format!("{name} is killed"));
                        here.remove(at).1.cut();
                        team.kill(name).await;
                        killed += 1;
                    }
                    8 => {
                        story.push(format!("{name} freezes"));
                        team.freeze(name, Duration::from_millis(500 + next(2_000)));
                    }
                    _ => {
                        story.push(format!("{name} is cut off for a while"));
                        here[at].1.stall();
                        tokio::time::sleep(Duration::from_millis(next(1_500))).await;
                        here[at].1.heal();
                    }
                }
            }
            println!("{:?} {}", began.elapsed(), story.last().map_or("", |last| last));
            tokio::time::sleep(Duration::from_millis(next(1_200))).await;
        }
        if here.is_empty() {
            team.join("a", &quick(&url).await?).await?;
        }
        let took = team.until_even(7).await.map_err(|why| format!("{story:?}: {why:?}"))?;
        println!("{story:?}; even {took:?} after that, {killed} killed");
        Ok::<_, libtest_mimic::Failed>(here)
    };
    let changing = async {
        let changed = changing.await;
        stop.notify_one();
        changed
    };
    let (published, changed) = tokio::join!(publishing, changing);
    let proxies = changed?;
    let expected = published? as usize * KEYS;
    team.until("all is run", |log| log.distinct().0 == expected).await?;
    team.leave_all().await?;
    drop(proxies);
    let (runs, duplicates) = team.log().distinct();
    println!("{runs} messages, {duplicates} of them twice, {} lost", team.log().lost.len());
    team.log().check()
}
