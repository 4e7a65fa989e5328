//! E. Watermark and restart: logs with gaps, and positions that do not fit their log.

use std::time::Duration;

use ebus_core::{
    Epoch, Group, LedgerLimits, LogMark, NextOffset, OffsetSet, Outcome, PartitionId, Position, Publish,
    StartPosition, Topic,
};

use super::super::ctx::{Ctx, keys, message};
use super::super::failure::Checked;
use super::super::wait::Gate;

/// e03: offset gaps, of a million and alternately finished and unfinished over the whole span, do not stop commits, nor does a
/// position outgrow its limit: intake stops before.
pub(super) async fn e03_gaps_do_not_stop_commits(ctx: &Ctx) -> Checked {
    const LIMIT: usize = 160;
    const PAIRS: u64 = 200;
    let topic = ctx.topic("gaps", 1).await?;
    let partition = PartitionId::new(topic.clone(), 0);
    let group = ctx.group("g");
    let faults = ctx.log_faults();
    for version in 1..=PAIRS {
        ctx.publish(&topic, &["quick", "held"], version..=version).await?;
        faults.skip_offsets(&partition, if version % 20 == 0 { 1_000_000 } else { version % 5 }).await?;
    }
    // A head that is gone before anybody came.
    faults.trim(&partition, 2).await?;
    ctx.rules(|rules| rules.begins_at(group.as_str(), topic.as_str(), 0, 2));
    let gate = Gate::closed();
    let passes = gate.clone();
    let limits = LedgerLimits::default().with_max_position_len(LIMIT);
    let member = ctx
        .member("m", &group, &[&topic])
        .options(move |options| options.with_limits(limits).with_commit_interval(Duration::from_millis(20)))
        .handler(move |delivery| {
            let passes = passes.clone();
            async move {
                if delivery.key().is_some_and(|key| key.as_bytes() == b"held") {
                    passes.pass().await;
                }
                Outcome::Ack
            }
        })
        .start()
        .await?;
    let position = || async {
        let committed = ctx.committed(&group, &topic).await?;
        let one = committed.into_iter().next().and_then(|one| Some((one.position?, one.epoch)));
        if let Some((position, epoch)) = &one {
            let text = position.encode(LogMark(u128::MAX), *epoch);
            assert!(text.len() <= LIMIT, "{} characters, {LIMIT} allowed: {text}", text.len());
        }
        Checked::Ok(one.map(|(position, _)| position))
    };
    // The first of the held ones is never done, and everything quick before the bound is.
    ctx.until_some("what is finished above the watermark is committed", || async {
        Ok(position().await?.filter(|position| position.finished.runs().len() > 5))
    })
    .await?;
    let mut before = None;
    ctx.until_some("intake stops", || {
        let now = (ctx.log.acked(), before.replace(ctx.log.acked()));
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok((Some(now.0) == now.1).then_some(()))
        }
    })
    .await?;
    assert!(ctx.log.acked() < PAIRS as usize - 1, "intake was not stopped by the limit of the position");
    gate.open();
    let all = 2 * PAIRS as usize - 2;
    ctx.until_some("all is handled, and the position stays within its limit", || async {
        position().await?;
        Ok((ctx.log.handled() >= all).then_some(()))
    })
    .await?;
    let report = member.drain(ctx.patience()).await;
    assert!(report.committed.is_ok(), "{report:?}");
    assert_eq!(ctx.finished(&group, &topic).await?, all + 2, "commits stopped at a gap");
    Ok(())
}

/// Comes to the group and goes: it has a position then, at the beginning or at the end.
async fn has_been_there(ctx: &Ctx, group: &Group, topic: &Topic, start: StartPosition) -> Checked {
    let member =
        ctx.member("before", group, &[topic]).options(|options| options.with_start(start)).start().await?;
    member.until_it_owns(1).await?;
    let report = member.drain(ctx.patience()).await;
    assert!(report.committed.is_ok(), "{report:?}");
    Ok(())
}

/// Messages that no history knows: the group begins behind them.
async fn unrecorded(ctx: &Ctx, topic: &Topic, count: u64) -> Checked {
    let backend = ctx.harness.connect().await?;
    let mut publisher = backend.publisher();
    for version in 1..=count {
        publisher.publish(Publish::new(topic.clone(), message("unrecorded", version))).await?;
    }
    backend.close(ctx.patience()).await?;
    Ok(())
}

/// e04: committed offset below the log, above it, or of another log: the documented reset, never a silent skip.
pub(super) async fn e04_a_position_without_its_log_is_reset(ctx: &Ctx) -> Checked {
    let faults = ctx.log_faults();
    let mut handled = 0;

    // Below: what is gone is gone, and the first that is there comes next.
    let (topic, group) = (ctx.topic("below", 1).await?, ctx.group("below"));
    let partition = PartitionId::new(topic.clone(), 0);
    has_been_there(ctx, &group, &topic, StartPosition::Earliest).await?;
    let receipts = ctx.publish(&topic, &["k"], 1..=10).await?;
    faults.trim(&partition, receipts[4].offset).await?;
    ctx.rules(|rules| rules.begins_at(group.as_str(), topic.as_str(), 0, receipts[4].offset));
    let member = ctx.member("m", &group, &[&topic]).start().await?;
    handled += 6;
    ctx.until_handled(handled).await?;
    assert_eq!(ctx.log.versions("k"), [5, 6, 7, 8, 9, 10]);
    assert!(member.state().await.trouble.is_some(), "what is gone was passed over in silence");

    // Above: the beginning.
    let (topic, group) = (ctx.topic("above", 1).await?, ctx.group("above"));
    let partition = PartitionId::new(topic.clone(), 0);
    has_been_there(ctx, &group, &topic, StartPosition::Earliest).await?;
    ctx.publish(&topic, &["above"], 1..=10).await?;
    faults.overwrite_position(&group, &partition, NextOffset(1_000_000), b"").await?;
    let member = ctx.member("m", &group, &[&topic]).start().await?;
    handled += 10;
    ctx.until_handled(handled).await?;
    assert!(member.state().await.trouble.is_some(), "a position above the log was accepted in silence");

    // Another log of that name, which has grown beyond the position: only the mark tells.
    let (topic, group) = (ctx.topic("anew", 1).await?, ctx.group("anew"));
    unrecorded(ctx, &topic, 10).await?;
    has_been_there(ctx, &group, &topic, StartPosition::Latest).await?;
    faults.remake_topic(&topic).await?;
    // Not recorded: what is committed is of the log that is gone.
    let committed = ctx.harness.connect().await?.committed(&group, &topic).await?;
    if committed.iter().all(|one| one.position.is_none()) {
        // This broker forgets positions together with their topic; one that is mirrored from elsewhere is there all the same.
        let partition = PartitionId::new(topic.clone(), 0);
        let mirrored = Position::at(NextOffset(10)).encode(LogMark(42), Epoch(1));
        faults.overwrite_position(&group, &partition, NextOffset(10), mirrored.as_bytes()).await?;
    }
    ctx.publish(&topic, &["anew"], 1..=20).await?;
    let member = ctx.member("m", &group, &[&topic]).start().await?;
    handled += 20;
    ctx.until_handled(handled).await?;
    assert!(member.state().await.trouble.is_some(), "another log was accepted in silence");
    Ok(())
}

/// e06: damaged, foreign (binary, of another log, beside another offset) or missing position metadata: duplicates, never a loss,
/// never a panic.
pub(super) async fn e06_damaged_metadata_loses_nothing(ctx: &Ctx) -> Checked {
    const COUNT: usize = 20;
    let topic = ctx.topic("damaged", 1).await?;
    let partition = PartitionId::new(topic.clone(), 0);
    // Each claims that all is finished, or nothing that can be read.
    let mut finished = OffsetSet::new();
    finished.push(0, 1_000);
    let claim = |watermark: u64| Position { watermark: NextOffset(watermark), finished: finished.clone() };
    let foreign = claim(0).encode(LogMark(42), Epoch(1)).into_bytes();
    let elsewhere = claim(7).encode(LogMark(42), Epoch(1)).into_bytes();
    let mut damaged = foreign.clone();
    damaged[6] ^= 1;
    let cut = foreign[..foreign.len() / 2].to_vec();
    let texts: [(&str, Vec<u8>); 8] = [
        ("missing", Vec::new()),
        ("binary", vec![0xff, 0xfe, 0x00, 0x80]),
        ("text", b"written by somebody else".to_vec()),
        ("version", b"e9.0.1.0.-.00000000".to_vec()),
        ("log", foreign),
        ("offset", elsewhere),
        ("damaged", damaged),
        ("cut", cut),
    ];
    for (label, _) in &texts {
        has_been_there(ctx, &ctx.group(label), &topic, StartPosition::Earliest).await?;
    }
    ctx.publish(&topic, &keys("k", COUNT), 1..=1).await?;
    let mut members = Vec::new();
    for (at, (label, text)) in texts.iter().enumerate() {
        let group = ctx.group(label);
        ctx.log_faults().overwrite_position(&group, &partition, NextOffset(0), text).await?;
        let member = ctx.member(label, &group, &[&topic]).start().await?;
        let what = format!("with metadata {label:?} all is handled");
        ctx.until(&what, || ctx.log.acked() == (at + 1) * COUNT).await?;
        // Without any metadata an offset is what every other client commits: there is nothing to tell.
        let told = text.is_empty() || member.state().await.trouble.is_some();
        assert!(told, "{label}: what was ignored was not told");
        members.push(member);
    }
    for member in members {
        let report = member.drain(ctx.patience()).await;
        assert!(report.committed.is_ok(), "{report:?}");
    }
    Ok(())
}
