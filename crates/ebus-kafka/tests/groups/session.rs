//! Sessions: an owner that is frozen past its session, one that is killed while the group moves, a late commit.

use std::time::{Duration, Instant};

use ebus_core::{Backend, Group};
use ebus_kafka::GroupProtocol;
use ebus_testkit::brokers::Server;
use libtest_mimic::Trial;

use crate::child::{Member, now};
use crate::raw::{Raw, Tested, fresh, go_on, publish, until};
use crate::{SESSION, connect, connect_with, options, private};

pub(crate) fn trials() -> Vec<Trial> {
    [
        private("d12_a_frozen_owner_starts_nothing_stale", d12_a_frozen_owner_starts_nothing_stale),
        private("d01_a_member_killed_while_another_joins", d01_a_member_killed_while_another_joins),
        private("p6_a_late_commit_overwrites_nothing", p6_a_late_commit_overwrites_nothing),
        private(
            "p3_a_frozen_broker_is_noticed_by_our_own_clock",
            p3_a_frozen_broker_is_noticed_by_our_own_clock,
        ),
        private(
            "h01_a_broker_that_was_away_for_a_session_finds_its_members",
            h01_a_broker_that_was_away_for_a_session,
        ),
        private("d02_a_member_that_has_just_joined_leaves_nobody_behind", d02_a_member_that_has_just_joined),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// SIGSTOP past the session, take-over by another member, SIGCONT: by its own clock the thawed process knows before it starts
/// anything that its time was up; then it is a member again and goes on.
async fn d12_a_frozen_owner_starts_nothing_stale(server: Server, protocol: GroupProtocol) -> Tested {
    let url = server.url();
    let backend = connect(&url, protocol).await?;
    let topic = fresh("frozen")?;
    backend.create_topic(&ebus_core::TopicSpec::new(topic.clone(), 2)).await?;
    publish(&backend, &topic, 2_000).await?;
    let frozen = Member::start(&url, &topic, protocol)?;
    frozen.until("it runs", |member| member.lines("run").len() > 50).await?;
    frozen.signal("STOP")?;
    let mut other = Raw::join(&backend, options(&topic)?).await?;
    until("the other has both partitions, and all that is left", [&mut other], |[other]| {
        other.partitions() == [0, 1] && other.inbound.len() > 1_500
    })
    .await?;
    other.finish(|_| true);
    let epochs: Vec<(u32, u64)> =
        other.owned.iter().map(|(owned, one)| (one.partition.partition, owned.epoch.0)).collect();
    let thawed = now();
    frozen.signal("CONT")?;
    let begun = Instant::now();
    while frozen.lines("lost").len() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(10), "it did not notice: {:?}", frozen.lines("lost"));
        go_on([&mut other], Duration::from_millis(20)).await;
    }
    println!("noticed {:?} after the thaw", begun.elapsed());
    // It is a member again, gets its share, and works on it.
    let begun = Instant::now();
    let of = |partition: u32| epochs.iter().find(|one| one.0 == partition).map_or(0, |one| one.1);
    let again = |member: &Member| {
        let later = |line: &&crate::child::Line| line.epoch > of(line.partition);
        member.lines("run").iter().any(|line| later(&line))
    };
    while !again(&frozen) {
        assert!(begun.elapsed() < Duration::from_secs(40), "it does not go on: {other:#?}");
        go_on([&mut other], Duration::from_millis(50)).await;
        other.finish(|_| true);
        if !other.revoking.is_empty() {
            other.release();
        }
        publish(&backend, &topic, 20).await?;
    }
    let stale: Vec<_> = frozen
        .lines("run")
        .into_iter()
        .filter(|run| run.at > thawed && run.epoch <= of(run.partition))
        .collect();
    assert!(stale.is_empty(), "{} stale runs after the thaw: {stale:?}", stale.len());
    other.close().await?;
    Ok(())
}

/// A member is killed, and another joins before the broker has taken the first one for dead: the rebalance waits for that, and
/// with the classic protocol nothing is answered to the members meanwhile. Those that live lose nothing.
async fn d01_a_member_killed_while_another_joins(server: Server, protocol: GroupProtocol) -> Tested {
    let url = server.url();
    // Short enough for the rebalance to outlast it: the group waits for the session that the killed member asked for.
    let backend = connect_with(&url, protocol, |config| config.with_session_timeout(SESSION / 2)).await?;
    let topic = fresh("waiting")?;
    backend.create_topic(&ebus_core::TopicSpec::new(topic.clone(), 6)).await?;
    let mut one = Raw::join(&backend, options(&topic)?).await?;
    until("one has all", [&mut one], |[one]| one.owned.len() == 6).await?;
    let killed = Member::start(&url, &topic, protocol)?;
    until("two share", [&mut one], |[one]| {
        if !one.revoking.is_empty() {
            one.release();
        }
        one.owned.len() == 3 && killed.lines("own").len() == 3
    })
    .await?;
    killed.signal("KILL")?;
    let mut joining = connect(&url, protocol).await?.source(options(&topic)?).await.map(Raw::of)?;
    let begun = Instant::now();
    until("the killed one is taken for dead", [&mut one, &mut joining], |[one, joining]| {
        one.finish(|_| true);
        for member in [&mut **one, &mut **joining] {
            if !member.revoking.is_empty() {
                member.release();
            }
        }
        begun.elapsed() > SESSION * 3 / 2
    })
    .await?;
    until("two share again", [&mut one, &mut joining], |[one, joining]| {
        for member in [&mut **one, &mut **joining] {
            if !member.revoking.is_empty() {
                member.release();
            }
        }
        one.owned.len() == 3 && joining.owned.len() == 3
    })
    .await?;
    println!("shared again {:?} after the kill", begun.elapsed());
    assert!(one.lost.is_empty(), "a member that lives lost partitions: {one:#?}");
    assert!(one.owned.values().all(|owned| owned.lease.is_current(Instant::now())));
    one.close().await?;
    joining.close().await?;
    Ok(())
}

/// The last commit of a hand-over is sent while the coordinator is away, and the deadline passes: librdkafka keeps it, and sends
/// it when the coordinator is back. It must not write over what the next owner commits.
async fn p6_a_late_commit_overwrites_nothing(mut server: Server, protocol: GroupProtocol) -> Tested {
    let url = server.url();
    // A session that outlasts the restart, so that nothing is lost by it.
    let long = |config: ebus_kafka::KafkaConfig| config.with_session_timeout(Duration::from_secs(30));
    let (first, second) =
        (connect_with(&url, protocol, long).await?, connect_with(&url, protocol, long).await?);
    let topic = fresh("late")?;
    first.create_topic(&ebus_core::TopicSpec::new(topic.clone(), 2)).await?;
    publish(&first, &topic, 100).await?;
    let options = options(&topic)?.with_revoke_within(Duration::from_secs(4));
    let mut one = Raw::join(&first, options.clone()).await?;
    until("one has all messages", [&mut one], |[one]| one.inbound.len() == 100).await?;
    let mut two = Raw::join(&second, options).await?;
    until("a partition is revoked", [&mut one, &mut two], |[one, _]| !one.revoking.is_empty()).await?;
    let moved = one.partition(one.revoking[0]);
    let old = one.revoking[0];
    server.kill()?;
    // Half of it is finished, and can be committed nowhere.
    let half = one.offsets(moved).len() as u64 / 2;
    one.finish(|inbound| inbound.token.owned() == old && inbound.token.offset() < half);
    one.release();
    until("it is released at the deadline", [&mut one, &mut two], |[one, _]| !one.released.is_empty())
        .await?;
    assert!(one.released.iter().any(|(owned, committed)| *owned == old && committed.is_err()), "{one:#?}");
    server.start()?;
    until("the other has the partition", [&mut one, &mut two], |[_, two]| !two.offsets(moved).is_empty())
        .await?;
    let begins = two.offsets(moved)[0];
    assert!(begins == 0 || begins == half, "{begins}: neither the last commit nor the one before");
    until("the other has all of it", [&mut one, &mut two], |[_, two]| {
        two.offsets(moved).last() == Some(&(half * 2 - 1)) || two.offsets(moved).len() as u64 >= half
    })
    .await?;
    two.finish(|_| true);
    let group = Group::new(topic.as_str())?;
    let all = async || -> Tested<bool> {
        let committed = first.committed(&group, &topic).await?;
        let of = committed.iter().find(|one| one.partition == moved).and_then(|one| one.position.clone());
        Ok(of.is_some_and(|position| position.watermark.0 >= half * 2 - 1))
    };
    let begun = Instant::now();
    while !all().await? {
        assert!(begun.elapsed() < Duration::from_secs(20), "the other's commit is not there: {two:#?}");
        go_on([&mut one, &mut two], Duration::from_millis(100)).await;
        two.finish(|_| true);
    }
    // As long as librdkafka may keep a commit.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(8) {
        go_on([&mut one, &mut two], Duration::from_millis(200)).await;
        assert!(all().await?, "a late commit wrote over the other's");
    }
    one.close().await?;
    two.close().await?;
    Ok(())
}

/// The broker answers nothing any more and keeps its connections: what a cut network looks like. Runs end before the session
/// does, with both protocols, and all comes back with the broker.
async fn p3_a_frozen_broker_is_noticed_by_our_own_clock(
    mut server: Server,
    protocol: GroupProtocol,
) -> Tested {
    let backend = connect(&server.url(), protocol).await?;
    let topic = fresh("silent")?;
    backend.create_topic(&ebus_core::TopicSpec::new(topic.clone(), 2)).await?;
    publish(&backend, &topic, 100).await?;
    let mut member = Raw::join(&backend, options(&topic)?).await?;
    until("it has all messages", [&mut member], |[member]| member.inbound.len() == 100).await?;
    go_on([&mut member], SESSION + Duration::from_secs(2)).await;
    assert!(member.lost.is_empty(), "idle is no loss: {member:#?}");
    let leases: Vec<_> = member.owned.values().map(|owned| owned.lease.clone()).collect();
    assert!(leases.iter().all(|lease| lease.is_current(Instant::now())));
    server.freeze()?;
    let begun = Instant::now();
    until("both are lost", [&mut member], |[member]| member.lost.len() == 2).await?;
    println!("lost {:?} after the last answer at most", begun.elapsed());
    assert!(begun.elapsed() < SESSION, "others could have the partitions: {:?}", begun.elapsed());
    assert!(leases.iter().all(|lease| !lease.is_current(Instant::now())));
    server.thaw()?;
    until("all of it is there again", [&mut member], |[member]| {
        member.partitions() == [0, 1] && member.inbound.len() == 200
    })
    .await?;
    member.close().await?;
    Ok(())
}

/// The broker is away for longer than the session: all members have lost their partitions, and librdkafka has forgotten who
/// they are. Its log has them, and waits for nobody: they go on as soon as it has read it, and not a session later. Topics that were
/// subscribed meanwhile are among what they get.
async fn h01_a_broker_that_was_away_for_a_session(mut server: Server, protocol: GroupProtocol) -> Tested {
    let url = server.url();
    let (first, second) = (connect(&url, protocol).await?, connect(&url, protocol).await?);
    let (topic, later) = (fresh("away")?, fresh("away-later")?);
    for topic in [&topic, &later] {
        first.create_topic(&ebus_core::TopicSpec::new(topic.clone(), 4)).await?;
    }
    let mut one = Raw::join(&first, options(&topic)?).await?;
    let mut two = Raw::join(&second, options(&topic)?).await?;
    let give = |members: &mut [&mut Raw; 2]| {
        members.iter_mut().filter(|member| !member.revoking.is_empty()).for_each(|member| member.release());
    };
    until("they share", [&mut one, &mut two], |members| {
        give(members);
        members.iter().all(|member| member.owned.len() == 2)
    })
    .await?;
    server.kill()?;
    go_on([&mut one, &mut two], SESSION * 5 / 3).await;
    assert!(one.owned.is_empty() && two.owned.is_empty(), "the session is over: {one:#?} {two:#?}");
    for member in [&mut one, &mut two] {
        member.source().subscribe(&[topic.clone(), later.clone()]);
    }
    server.start()?;
    let begun = Instant::now();
    until("they share what they had", [&mut one, &mut two], |members| {
        give(members);
        members.iter().map(|member| member.of_topic(&topic)).sum::<usize>() == 4
    })
    .await?;
    let again = begun.elapsed();
    println!("at work again {again:?} after the broker");
    until("they share the other topic too", [&mut one, &mut two], |members| {
        give(members);
        members.iter().map(|member| member.owned.len()).sum::<usize>() == 8
    })
    .await?;
    println!("and on both topics {:?} after it", begun.elapsed());
    assert!(again < SESSION, "the group waited for members that nobody is any more: {again:?}");
    one.close().await?;
    two.close().await?;
    Ok(())
}

/// A member that ends while its first join is still under way is not waited for when that is answered.
async fn d02_a_member_that_has_just_joined(server: Server, protocol: GroupProtocol) -> Tested {
    let url = server.url();
    let long = |config: ebus_kafka::KafkaConfig| config.with_session_timeout(Duration::from_secs(30));
    let (first, second) =
        (connect_with(&url, protocol, long).await?, connect_with(&url, protocol, long).await?);
    let topic = fresh("short")?;
    first.create_topic(&ebus_core::TopicSpec::new(topic.clone(), 4)).await?;
    let mut one = Raw::join(&first, options(&topic)?).await?;
    until("one has all", [&mut one], |[one]| one.owned.len() == 4).await?;
    let mut short = Raw::join(&second, options(&topic)?).await?;
    // It has sent its join, which the other answers with its next heartbeat.
    go_on([&mut short], Duration::from_millis(300)).await;
    let begun = Instant::now();
    let (closed, ()) = tokio::join!(short.close(), go_on([&mut one], Duration::from_secs(1)));
    closed?;
    until("the first has all, whatever it gave up", [&mut one], |[one]| {
        if !one.revoking.is_empty() {
            one.release();
        }
        begun.elapsed() > Duration::from_secs(4) && one.owned.len() == 4
    })
    .await?;
    println!("all again {:?} after", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(15), "the group waited for it: {:?}", begun.elapsed());
    one.close().await?;
    Ok(())
}
