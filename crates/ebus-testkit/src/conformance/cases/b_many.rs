//! B. Many.

use std::time::Duration;

use ebus_core::Outcome;

use super::super::ctx::Ctx;
use super::super::failure::Checked;

/// b04: versions 1..n of one key are handled one at a time in order with the whole window in flight.
pub(super) async fn b04_versions_of_a_key_one_at_a_time_in_order(ctx: &Ctx) -> Checked {
    const VERSIONS: u64 = 500;
    let topic = ctx.topic("many", 4).await?;
    ctx.publish(&topic, &["order-1"], 1..=VERSIONS).await?;
    let nap = ctx.rng.below(400);
    let _member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .handler(move |delivery| async move {
            // Some runs last, so that a later version could pass.
            let micros = (delivery.offset().wrapping_mul(7_919) + nap) % 1_000;
            tokio::time::sleep(Duration::from_micros(micros)).await;
            Outcome::Ack
        })
        .start()
        .await?;
    ctx.until_handled(VERSIONS as usize).await?;
    assert_eq!(ctx.log.versions("order-1"), (1..=VERSIONS).collect::<Vec<_>>());
    Ok(())
}
