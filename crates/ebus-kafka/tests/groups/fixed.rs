//! Static members (KIP-345): a restart moves nothing, and two of one name are not both at work.

use std::time::{Duration, Instant};

use ebus_core::{Backend, ErrorKind, Group, TopicSpec};
use ebus_kafka::GroupProtocol;
use libtest_mimic::Trial;

use crate::raw::{Raw, Tested, fresh, go_on, publish, until};
use crate::{connect, connect_with, options, shared};

pub(crate) fn trials() -> Vec<Trial> {
    [
        shared("d02_a_static_member_restarts_without_moving_anything", d02_a_static_member_restarts),
        shared("g03_a_second_process_of_one_name_is_told_or_fences_the_first", a_second_of_one_name),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Clean leave and return within the session: the other member is not disturbed, and nothing runs again.
async fn d02_a_static_member_restarts(url: String, protocol: GroupProtocol) -> Tested {
    // Longer than the other takes to hear that somebody has left.
    const AWAY: Duration = Duration::from_secs(8);
    let named = |name: &'static str| {
        move |config: ebus_kafka::KafkaConfig| config.with_instance_id(name).with_session_timeout(4 * AWAY)
    };
    let (first, second) =
        (connect_with(&url, protocol, named("a")).await?, connect_with(&url, protocol, named("b")).await?);
    let topic = fresh("static")?;
    first.create_topic(&TopicSpec::new(topic.clone(), 4)).await?;
    let (mut one, mut two) =
        (Raw::join(&first, options(&topic)?).await?, Raw::join(&second, options(&topic)?).await?);
    until("they share", [&mut one, &mut two], |[one, two]| {
        for member in [&mut **one, &mut **two] {
            if !member.revoking.is_empty() {
                member.release();
            }
        }
        one.owned.len() == 2 && two.owned.len() == 2
    })
    .await?;
    publish(&first, &topic, 200).await?;
    until("all is read", [&mut one, &mut two], |[one, two]| one.inbound.len() + two.inbound.len() == 200)
        .await?;
    let had = one.partitions();
    let (kept, before) = (two.partitions(), two.owned.len() + two.lost.len() + two.released.len());
    let finished = one.finish(|_| true);
    assert!(finished > 0);
    one.close().await?;
    go_on([&mut two], AWAY).await;
    assert_eq!(two.partitions(), kept, "what the first had was given to the other: {two:#?}");
    let again = connect_with(&url, protocol, named("a")).await?;
    let mut one = Raw::join(&again, options(&topic)?).await?;
    until("it has its partitions again", [&mut one, &mut two], |[one, _]| one.owned.len() == 2).await?;
    go_on([&mut one, &mut two], Duration::from_secs(1)).await;
    assert_eq!(one.partitions(), had);
    assert_eq!(two.partitions(), kept);
    assert!(
        two.revoking.is_empty() && two.owned.len() + two.lost.len() + two.released.len() == before,
        "{two:#?}"
    );
    assert!(one.inbound.is_empty(), "{} runs again after a clean leave", one.inbound.len());
    one.close().await?;
    two.close().await?;
    Ok(())
}

/// Classic: the second fences the first, whose source ends with that error after all is lost. Consumer protocol: the second is
/// refused while the first is there. Either way they are not both at work, and whoever is not is told by a typed error.
async fn a_second_of_one_name(url: String, protocol: GroupProtocol) -> Tested {
    let named = |config: ebus_kafka::KafkaConfig| config.with_instance_id("same");
    let (first, second) =
        (connect_with(&url, protocol, named).await?, connect_with(&url, protocol, named).await?);
    let topic = fresh("twins")?;
    first.create_topic(&TopicSpec::new(topic.clone(), 2)).await?;
    publish(&first, &topic, 40).await?;
    let mut one = Raw::join(&first, options(&topic)?).await?;
    until("the first reads all", [&mut one], |[one]| one.inbound.len() == 40).await?;
    let mut two = Raw::join(&second, options(&topic)?).await?;
    let ended = |member: &Raw| member.ended.as_ref().is_some_and(|error| error.kind() == ErrorKind::Fenced);
    until("one of them ends", [&mut one, &mut two], |[one, two]| ended(one) || ended(two)).await?;
    let (gone, stays) = if ended(&one) { (&mut one, &mut two) } else { (&mut two, &mut one) };
    assert!(gone.owned.is_empty(), "what it owned is lost: {gone:#?}");
    let text = gone.ended.as_ref().map(ToString::to_string).unwrap_or_default();
    assert!(text.contains("instance"), "it does not say why: {text}");
    println!("{text}");
    until("the other has it all", [&mut *stays], |[stays]| {
        stays.partitions() == [0, 1] && stays.inbound.len() >= 40
    })
    .await?;
    stays.finish(|_| true);
    let group = Group::new(topic.as_str())?;
    let begun = Instant::now();
    let control = connect(&url, protocol).await?;
    loop {
        go_on([&mut *stays], Duration::from_millis(100)).await;
        let committed = control.committed(&group, &topic).await?;
        let sum: u64 =
            committed.iter().filter_map(|one| one.position.as_ref()).map(|at| at.watermark.0).sum();
        if sum == 40 {
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "the other's commits are not accepted: {stays:#?}"
        );
    }
    stays.close().await?;
    // Closing what has ended hangs on nothing.
    let begun = Instant::now();
    let _ = gone.close_within(Duration::from_secs(2)).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "closing took {:?}", begun.elapsed());
    Ok(())
}
