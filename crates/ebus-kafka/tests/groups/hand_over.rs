//! A hand-over that takes its time, and membership of a member that takes nothing.

use std::time::{Duration, Instant};

use ebus_core::{Backend, Message, Publish, TopicSpec};
use ebus_kafka::GroupProtocol;
use libtest_mimic::Trial;

use crate::raw::{Raw, Tested, fresh, until};
use crate::{connect, connect_with, options, shared};

pub(crate) fn trials() -> Vec<Trial> {
    [
        shared("d11_partitions_that_stay_flow_during_a_slow_hand_over", d11_partitions_that_stay_flow),
        shared(
            "c09_membership_is_kept_while_nothing_is_taken",
            c09_membership_is_kept_while_nothing_is_taken,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A run of 3 s holds a hand-over up; the partitions that stay have no gap of more than 500 ms meanwhile.
async fn d11_partitions_that_stay_flow(url: String, protocol: GroupProtocol) -> Tested {
    let (first, second) = (connect(&url, protocol).await?, connect(&url, protocol).await?);
    let topic = fresh("flow")?;
    first.create_topic(&TopicSpec::new(topic.clone(), 4)).await?;
    let mut one = Raw::join(&first, options(&topic)?).await?;
    until("one has all", [&mut one], |[one]| one.owned.len() == 4).await?;
    let mut publisher = first.publisher();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let to = topic.clone();
    let publishing = tokio::spawn(async move {
        let mut number = 0u64;
        while stopped.try_recv().is_err() {
            for _ in 0..8 {
                let message = Message::new("now").with_key(format!("k{number}"));
                drop(publisher.enqueue(Publish::new(to.clone(), message)).await);
                number += 1;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut two = Raw::join(&second, options(&topic)?).await?;
    until("partitions are revoked", [&mut one, &mut two], |[one, _]| !one.revoking.is_empty()).await?;
    let moved: Vec<u32> = one.revoking.iter().map(|owned| one.partition(*owned)).collect();
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    let begun = Instant::now();
    let mut released = false;
    while two.owned.len() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(40), "not handed over: {one:#?} {two:#?}");
        if begun.elapsed() >= Duration::from_secs(3) && !released {
            one.release();
            released = true;
        }
        one.inbound.clear();
        tokio::join!(one.look(), two.look());
        if one.inbound.iter().any(|(inbound, _)| !moved.contains(&one.partition(inbound.token.owned()))) {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
    }
    longest = longest.max(last.elapsed());
    let took = begun.elapsed();
    println!(
        "{protocol:?}: {} of 4 moved in {took:?}; the longest gap of those that stay: {longest:?}",
        moved.len()
    );
    assert!(took >= Duration::from_secs(3), "the other had them before they were let go");
    assert!(longest < Duration::from_millis(500), "a gap of {longest:?}");
    // Nobody waits for the publisher any more.
    let _ = stop.send(());
    publishing.await?;
    one.close().await?;
    two.close().await?;
    Ok(())
}

/// Handlers that are slower than every time-out, or a pool that is full: nothing is taken for longer than session and poll
/// interval. Membership is not the messages' affair.
async fn c09_membership_is_kept_while_nothing_is_taken(url: String, protocol: GroupProtocol) -> Tested {
    let short = |config: ebus_kafka::KafkaConfig| {
        let time = Duration::from_secs(3);
        config.with_session_timeout(time).with_max_poll_interval(time)
    };
    let backend = connect_with(&url, protocol, short).await?;
    let topic = fresh("slow")?;
    backend.create_topic(&TopicSpec::new(topic.clone(), 2)).await?;
    crate::raw::publish(&backend, &topic, 100).await?;
    let mut member = Raw::join(&backend, options(&topic)?).await?;
    until("it has both", [&mut member], |[member]| member.owned.len() == 2 && !member.inbound.is_empty())
        .await?;
    let owned: Vec<_> = member.owned.keys().copied().collect();
    member.source().pause(&owned[..1]);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        member.look_with(0).await;
        assert!(member.owned.values().all(|one| one.lease.is_current(Instant::now())), "{member:#?}");
    }
    assert!(
        member.lost.is_empty() && member.revoking.is_empty() && member.troubles.is_empty(),
        "{member:#?}"
    );
    member.source().resume(&owned[..1]);
    until("all of it comes", [&mut member], |[member]| member.inbound.len() == 100).await?;
    member.close().await?;
    Ok(())
}
