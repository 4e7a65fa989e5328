//! D. Ownership: a member that cannot reach the broker any more, and does not know it.

use std::time::Duration;

use ebus_core::Outcome;

use super::super::ctx::{Ctx, keys};
use super::super::failure::{Checked, Failure};
use super::super::link::Break;
use super::super::wait::Gate;

/// d12: an owner is cut off past its lease and comes back: another took over, the settlements of the first are void, and its runs
/// are cancelled: where there are leases by its own clock, before anybody takes over.
pub(super) async fn d12_cut_off_past_its_lease_it_is_fenced(ctx: &Ctx) -> Checked {
    const SLOW: usize = 16;
    const QUICK: usize = 40;
    ctx.rules(|rules| {
        let rules = rules.only_faults_excuse(Duration::from_secs(30));
        if ctx.harness.has_leases() { rules.leases() } else { rules }
    });
    let topic = ctx.topic("fenced", 4).await?;
    let group = ctx.group("g");
    ctx.publish(&topic, &keys("slow", SLOW), 1..=2).await?;
    ctx.publish(&topic, &keys("k", QUICK), 1..=5).await?;
    let gate = Gate::closed();
    let waits = gate.clone();
    let first = ctx
        .member("first", &group, &[&topic])
        .mortal()
        .handler(move |delivery| {
            let waits = waits.clone();
            async move {
                if delivery.key().and_then(|key| key.as_str()).is_some_and(|key| key.starts_with("slow")) {
                    waits.pass().await;
                }
                Outcome::Ack
            }
        })
        .start()
        .await?;
    ctx.until_handled(QUICK * 5).await?;
    ctx.until_some("the slow ones run", || async {
        Ok((first.state().await.in_flight == SLOW).then_some(()))
    })
    .await?;
    // Recorded: none of these may run again.
    ctx.until_some("what finished is committed", || async {
        Ok((ctx.finished(&group, &topic).await? == QUICK * 5).then_some(()))
    })
    .await?;
    let wire = first.wire().ok_or_else(|| Failure::new("it has no network of its own"))?;
    wire.fail(Break::Stalled);
    let second = ctx.member("second", &group, &[&topic]).start().await?;
    second.until_it_owns(4).await?;
    // The second runs them again while the first, for all that it can know, still has them open.
    ctx.until_handled(QUICK * 5 + 2 * SLOW).await?;
    let position = ctx.finished(&group, &topic).await?;
    if ctx.harness.has_leases() {
        assert_eq!(first.state().await.in_flight, 0, "a lease ended and its runs did not");
    }
    // What runs there still, ends in success now; that is nobody's business any more.
    gate.open();
    wire.heal();
    ctx.publish(&topic, &keys("slow", SLOW), 3..=4).await?;
    ctx.publish(&topic, &keys("k", QUICK), 6..=10).await?;
    ctx.until_handled(QUICK * 10 + 4 * SLOW).await?;
    assert!(ctx.finished(&group, &topic).await? >= position, "a void settlement moved a position back");
    // Both are members again, and share the work.
    first.until_it_owns(1).await?;
    second.until_it_owns(1).await?;
    ctx.publish(&topic, &keys("k", QUICK), 11..=12).await?;
    ctx.until_handled(QUICK * 12 + 4 * SLOW).await
}
