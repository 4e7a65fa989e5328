//! C. Failure of a handler.

use std::time::Duration;

use ebus_core::{Error, ErrorKind, Outcome};

use super::super::ctx::{Ctx, keys};
use super::super::failure::Checked;

/// c01: fails once: the same message again, then its successors; other keys unaffected meanwhile.
pub(super) async fn c01_fails_once_then_goes_on(ctx: &Ctx) -> Checked {
    const OTHERS: usize = 20;
    let topic = ctx.topic("failing", 1).await?;
    let mut names = vec!["bad".to_owned()];
    names.extend(keys("good", OTHERS));
    ctx.publish(&topic, &names, 1..=3).await?;
    let log = ctx.log.clone();
    let _member = ctx
        .member("m", &ctx.group("g"), &[&topic])
        .handler(move |delivery| {
            let log = log.clone();
            async move {
                let is_bad = delivery.key().is_some_and(|key| key.as_bytes() == b"bad");
                if !is_bad || delivery.attempt() > 1 || log.count(|ran| ran.key == "bad" && ran.acked) > 0 {
                    return Outcome::Ack;
                }
                // The first attempt comes again only when the others have passed it.
                let after = Duration::from_millis(if log.acked() < 3 * OTHERS { 300 } else { 0 });
                Outcome::Retry { after: Some(after), error: Error::new(ErrorKind::Handler, "once") }
            }
        })
        .start()
        .await?;
    ctx.until_handled(3 * names.len()).await?;
    assert_eq!(ctx.log.versions("bad"), [1, 1, 2, 3]);
    let runs = ctx.log.all();
    let again = runs.iter().position(|ran| ran.key == "bad" && ran.attempt == 2).expect("it ran again");
    let before = runs[..again].iter().filter(|ran| ran.key != "bad").count();
    assert_eq!(before, 3 * OTHERS, "other keys waited for one that failed");
    Ok(())
}
