//! G. Control: topics that are paused, handled late, or given up.

use ebus_core::Outcome;

use super::super::ctx::{Ctx, keys};
use super::super::failure::{Checked, Failure};

const KEYS: usize = 10;

/// Waits until what a member was told before has had its effect: it has passed through the driver, which told the source.
async fn is_heard(member: &super::super::member::Member) {
    let _ = member.state().await;
}

/// g02: pause and resume a topic, and the whole consumer.
pub(super) async fn g02_a_topic_and_all_pause_and_resume(ctx: &Ctx) -> Checked {
    let (one, two) = (ctx.topic("one", 2).await?, ctx.topic("two", 2).await?);
    let names = keys("k", KEYS);
    let member = ctx.member("m", &ctx.group("g"), &[&one, &two]).start().await?;
    member.until_it_owns(4).await?;
    let of = |topic: &ebus_core::Topic| ctx.log.count(|ran| ran.topic == topic.as_str());
    for topic in [&one, &two] {
        ctx.publish(topic, &names, 1..=1).await?;
    }
    ctx.until_handled(2 * KEYS).await?;

    member.pool().pause(&one)?;
    is_heard(&member).await;
    for topic in [&one, &two] {
        ctx.publish(topic, &names, 2..=5).await?;
    }
    ctx.until("the other topic goes on", || of(&two) == 5 * KEYS).await?;
    // What the source had read ahead may come; more of it came meanwhile than that.
    assert_eq!(of(&one), KEYS, "a topic that is paused was handled");
    let paused = member.state().await.partitions;
    assert!(
        paused.iter().all(|partition| partition.paused == (partition.partition.topic == one)),
        "{paused:?}"
    );

    member.pool().pause_all()?;
    is_heard(&member).await;
    member.pool().resume(&one)?;
    ctx.publish(&two, &names, 6..=6).await?;
    // A third topic tells that messages flow, but not to this member.
    let other = ctx.member("other", &ctx.group("other"), &[&two]).start().await?;
    ctx.until("another group is done", || ctx.log.count(|ran| ran.member == other.name()) == 6 * KEYS)
        .await?;
    let its = |topic: &ebus_core::Topic| {
        ctx.log.count(|ran| ran.topic == topic.as_str() && ran.member == member.name())
    };
    assert_eq!((its(&one), its(&two)), (KEYS, 5 * KEYS), "a consumer that is paused handled something");
    assert_eq!(member.owns().await, 4, "paused, it lost partitions");

    member.pool().resume_all()?;
    ctx.until("all goes on", || its(&one) == 5 * KEYS && its(&two) == 6 * KEYS).await
}

/// g02: a pause lasts over a rebalance.
pub(super) async fn g02_a_pause_lasts_over_a_rebalance(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("paused", 4).await?;
    let group = ctx.group("g");
    let names = keys("k", 4 * KEYS);
    let first = ctx.member("first", &group, &[&topic]).start().await?;
    first.until_it_owns(4).await?;
    first.pool().pause(&topic)?;
    is_heard(&first).await;
    let second = ctx.member("second", &group, &[&topic]).start().await?;
    second.until_it_owns(2).await?;
    let report = second.drain(ctx.patience()).await;
    assert!(report.committed.is_ok(), "{report:?}");
    // They come back to a member that is paused.
    first.until_it_owns(4).await?;
    is_heard(&first).await;
    ctx.publish(&topic, &names, 1..=3).await?;
    let other = ctx.member("other", &ctx.group("other"), &[&topic]).start().await?;
    ctx.until("another group is done", || ctx.log.count(|ran| ran.member == other.name()) == 3 * names.len())
        .await?;
    assert_eq!(ctx.log.count(|ran| ran.member == first.name()), 0, "the pause ended with the rebalance");
    first.pool().resume(&topic)?;
    ctx.until("it goes on", || ctx.log.count(|ran| ran.member == first.name()) == 3 * names.len()).await
}

/// g05: messages that arrive before a handler exists are held, not lost, not committed.
pub(super) async fn g05_what_comes_before_a_handler_is_held(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("early", 2).await?;
    let group = ctx.group("g");
    let names = keys("k", KEYS);
    ctx.publish(&topic, &names, 1..=5).await?;
    let member = ctx.member("m", &group, &[&topic]).without_handlers().start().await?;
    member.until_it_owns(2).await?;
    ctx.until_some("they are held", || async {
        Ok((member.state().await.held_messages == 5 * KEYS).then_some(()))
    })
    .await?;
    // Two commit intervals of a group that commits: nothing of this one.
    let other = ctx.member("other", &ctx.group("other"), &[&topic]).start().await?;
    ctx.until_some("another group commits", || async {
        Ok((ctx.finished(&ctx.group("other"), &topic).await? == 5 * KEYS).then_some(()))
    })
    .await?;
    assert_eq!(ctx.finished(&group, &topic).await?, 0, "committed before it was handled");
    assert_eq!(member.state().await.held_messages, 5 * KEYS);
    member.subscribe(ctx, &topic, |_| async { Outcome::Ack })?;
    let its = || ctx.log.count(|ran| ran.member == member.name());
    ctx.until("all that was held is handled", || its() == 5 * KEYS).await?;
    let _ = other.drain(ctx.patience()).await;
    Ok(())
}

/// g06: cancelling one subscription leaves the others running.
pub(super) async fn g06_one_subscription_ends_the_others_go_on(ctx: &Ctx) -> Checked {
    let (one, two) = (ctx.topic("given", 2).await?, ctx.topic("kept", 2).await?);
    let group = ctx.group("g");
    let names = keys("k", KEYS);
    let member = ctx.member("m", &group, &[&one, &two]).start().await?;
    for topic in [&one, &two] {
        ctx.publish(topic, &names, 1..=2).await?;
    }
    ctx.until_handled(4 * KEYS).await?;
    member.pool().unsubscribe(&one)?;
    ctx.until_some("its partitions are given up", || async {
        let partitions = member.state().await.partitions;
        Ok((!partitions.is_empty() && partitions.iter().all(|p| p.partition.topic == two)).then_some(()))
    })
    .await?;
    for topic in [&one, &two] {
        ctx.publish(topic, &names, 3..=4).await?;
    }
    let of = |topic: &ebus_core::Topic| ctx.log.count(|ran| ran.topic == topic.as_str());
    ctx.until("the other goes on", || of(&two) == 4 * KEYS).await?;
    assert_eq!(of(&one), 2 * KEYS, "a topic that was given up was handled");
    assert_eq!(ctx.finished(&group, &one).await?, 2 * KEYS, "what was handled of it was not committed");
    let ended = member.state().await.ended;
    if let Some(error) = ended {
        return Err(Failure::from(error));
    }
    // Taken up again, it goes on where it was.
    member.subscribe(ctx, &one, |_| async { Outcome::Ack })?;
    ctx.until_handled(8 * KEYS).await?;
    assert_eq!(ctx.log.all().len(), 8 * KEYS, "something ran twice");
    Ok(())
}
