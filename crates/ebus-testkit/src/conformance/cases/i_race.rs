//! I. Life cycle: races and futures that are dropped.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ebus_core::{
    Backend, ErrorKind, Message, PartitionId, Publish, ReadRange, Settlement, SourceEvent, SourceOptions,
    Topic, TopicSpec,
};
use futures_util::future::join_all;

use super::super::ctx::{Ctx, keys, message, send};
use super::super::failure::{Checked, Failure};

/// i03: publish racing with close in a loop: never a panic, never a hang.
pub(super) async fn i03_publish_racing_with_close(ctx: &Ctx) -> Checked {
    const ROUNDS: u64 = 15;
    const PUBLISHERS: usize = 3;
    let topic = ctx.topic("raced", 2).await?;
    let mut stored = 0;
    for round in 0..ROUNDS {
        let (backend, ..) = ctx.connect("raced").await?;
        let publishing = (0..PUBLISHERS).map(|number| {
            let (mut publisher, topic) = (backend.publisher(), topic.clone());
            tokio::spawn(async move {
                let (mut waiting, mut refused) = (Vec::new(), None);
                let key = format!("r{round}p{number}");
                for version in 1.. {
                    match send(&mut publisher, &topic, &key, version).await {
                        Ok(sent) => waiting.push(sent),
                        Err(error) => {
                            refused = Some(error);
                            break;
                        }
                    }
                    tokio::task::yield_now().await;
                }
                (join_all(waiting).await, refused)
            })
        });
        let publishing: Vec<_> = publishing.collect();
        for _ in 0..ctx.rng.below(50) {
            tokio::task::yield_now().await;
        }
        let (closed, ended) = tokio::join!(
            tokio::time::timeout(ctx.patience(), backend.close(ctx.patience())),
            tokio::time::timeout(ctx.patience(), join_all(publishing)),
        );
        closed.map_err(|_| Failure::new("close hangs"))??;
        for ended in ended.map_err(|_| Failure::new("a publish hangs"))? {
            let (answers, refused) = ended?;
            stored += answers.iter().filter(|answer| answer.is_ok()).count();
            for error in answers.into_iter().filter_map(Result::err).chain(refused) {
                let expected = [ErrorKind::Closed, ErrorKind::Unavailable, ErrorKind::Timeout];
                assert!(expected.contains(&error.kind()), "{:?}: {error}", error.kind());
            }
        }
    }
    let there = ctx.count(&topic).await?;
    assert!(there >= stored, "{stored} were acknowledged, {there} are there");
    assert!(stored > 0);
    Ok(())
}

/// Polls `future` until it has been pending `times` times, or for 50 ms, then drops it.
async fn cut<F: Future>(future: F, times: usize) -> Option<F::Output> {
    if times == 0 {
        return None;
    }
    let mut future = pin!(future);
    let mut pending = 0;
    let polled = std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => {
            pending += 1;
            if pending < times { Poll::Pending } else { Poll::Ready(None) }
        }
    });
    tokio::time::timeout(Duration::from_millis(50), polled).await.unwrap_or_default()
}

/// Drops what `make` gives after it has been pending 0, 1, 2, ... times, until it ends by itself, or is pending for ever.
async fn dropped_everywhere<F: Future>(mut make: impl FnMut() -> F) {
    const MOST: usize = 12;
    for times in 0..MOST {
        if cut(make(), times).await.is_some() {
            return;
        }
    }
}

/// i04: dropping any public future at any await leaves the object usable: what was published is stored and handled, a place in
/// flight is given back, and nobody is left behind in a group. What there is to see of it on every backend; each await of each
/// future is gone through where nothing is far away, in the tests of the facade and of the in-process broker.
pub(super) async fn i04_dropped_futures_leave_it_usable(ctx: &Ctx) -> Checked {
    let topic = ctx.topic("dropped", 2).await?;
    let group = ctx.group("g");
    let backend = ctx.another("dropped").await?;
    dropped_publishes(ctx, &topic, &backend).await?;
    for times in 0..4 {
        // A member that was given up while it joined holds nothing.
        drop(cut(backend.source(SourceOptions::new(group.clone(), vec![topic.clone()])), times).await);
    }
    let spec = TopicSpec::new(topic.clone(), 2);
    dropped_everywhere(|| backend.create_topic(&spec)).await;
    dropped_everywhere(|| backend.describe_topic(&topic)).await;
    dropped_everywhere(|| backend.committed(&group, &topic)).await;
    dropped_reads(ctx, &topic, &backend).await?;
    if backend.capability().parks_keys {
        dropped_everywhere(|| backend.parking(&group)).await;
        let parking = backend.parking(&group).await?;
        dropped_everywhere(|| backend.existing_parking(&group)).await;
        let partition = PartitionId::new(topic.clone(), 0);
        dropped_everywhere(|| parking.read(&partition)).await;
        dropped_everywhere(|| parking.asked(&partition)).await;
        assert_eq!(parking.read(&partition).await?, None, "nothing was kept");
    }
    let member = ctx.member("m", &group, &[&topic]).start().await?;
    dropped_everywhere(|| member.state()).await;
    let there = ctx.count(&topic).await?;
    ctx.until_handled(there).await?;
    let pool = member.pool();
    for times in 0..3 {
        // The first that is polled begins it.
        drop(cut(pool.drain(ctx.patience()), times).await);
    }
    let report = pool.drain(ctx.patience()).await;
    assert!(report.committed.is_ok(), "{report:?}");
    drop(pool);
    let _ = member.drain(ctx.patience()).await;
    dropped_recv(ctx).await?;
    for times in 0..3 {
        drop(cut(backend.close(ctx.patience()), times).await);
    }
    backend.close(ctx.patience()).await?;
    Ok(())
}

/// A reader goes on where it was, whenever its `next` was dropped.
async fn dropped_reads(ctx: &Ctx, topic: &Topic, backend: &Arc<dyn Backend>) -> Checked {
    let info = backend.describe_topic(topic).await?;
    let end = info.partitions[0].end;
    dropped_everywhere(|| backend.read(ReadRange::new(topic.clone(), 0, 0, end))).await;
    let mut whole = ctx.control.read(ReadRange::new(topic.clone(), 0, 0, end)).await?;
    let mut expected = Vec::new();
    while whole.next(500, &mut expected).await? > 0 {}
    let mut reader = backend.read(ReadRange::new(topic.clone(), 0, 0, end)).await?;
    let mut read = Vec::new();
    let deadline = tokio::time::Instant::now() + ctx.patience();
    for times in 1.. {
        if let Some(count) = cut(reader.next(500, &mut read), times % 4).await
            && count? == 0
        {
            break;
        }
        if tokio::time::Instant::now() > deadline {
            return Err(Failure::new(format!("{} of {} messages were read", read.len(), expected.len())));
        }
    }
    let offsets = |read: &[(u64, Message)]| read.iter().map(|(offset, _)| *offset).collect::<Vec<_>>();
    assert_eq!(offsets(&read), offsets(&expected), "each once, in order");
    Ok(())
}

async fn dropped_publishes(ctx: &Ctx, topic: &Topic, backend: &Arc<dyn Backend>) -> Checked {
    let mut publisher = backend.publisher();
    let mut sent = 0;
    // More than any bound in flight that a permit which is never given back would use up.
    for version in 1..=20_000 {
        let publish = Publish::new(topic.clone(), message("k", version));
        if version % 100 != 0 {
            drop(publisher.clone().enqueue(publish));
            continue;
        }
        match version / 100 % 3 {
            0 => drop(cut(publisher.publish(publish), 1).await),
            1 => drop(cut(publisher.enqueue(publish), 1).await),
            _ => {
                // Dropped after the call, it is sent all the same.
                drop(publisher.enqueue(publish).await?);
                sent += 1;
            }
        }
    }
    let answered = tokio::time::timeout(ctx.patience(), async {
        for version in 20_001..=20_100 {
            publisher.publish(Publish::new(topic.clone(), message("k", version))).await?;
        }
        Ok::<_, Failure>(())
    });
    answered.await.map_err(|_| Failure::new("publishing does not go on"))??;
    let there = ctx.count(topic).await?;
    assert!(there >= sent + 100, "{} of {sent} messages are there whose futures were dropped", there - 100);
    Ok(())
}

/// Every message comes once, however often `recv` is dropped.
async fn dropped_recv(ctx: &Ctx) -> Checked {
    const MESSAGES: usize = 300;
    let topic = ctx.topic("recv", 2).await?;
    ctx.publish(&topic, &keys("k", 10), 1..=30).await?;
    // Not recorded: there are no runs that the oracle could see.
    let backend = ctx.harness.connect().await?;
    let group = ctx.group("recv");
    let mut source = backend.source(SourceOptions::new(group.clone(), vec![topic.clone()])).await?;
    let (mut events, mut settled, mut places) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut came = 0;
    let deadline = tokio::time::Instant::now() + ctx.patience();
    let mut times = 0;
    while came < MESSAGES {
        times += 1;
        if let Some(received) = cut(source.recv(16, &mut events), times % 4).await {
            received?;
        }
        for event in events.drain(..) {
            if let SourceEvent::Message(inbound) = event {
                came += 1;
                places.insert((inbound.token.owned().slot, inbound.token.offset()));
                settled.push((inbound.token, Settlement::Finished));
            }
        }
        if tokio::time::Instant::now() > deadline {
            return Err(Failure::new(format!("{came} of {MESSAGES} messages came")));
        }
    }
    assert_eq!((came, places.len()), (MESSAGES, MESSAGES), "a message came twice");
    source.settle(&mut settled);
    source.close(ctx.patience()).await?;
    let committed = backend.committed(&group, &topic).await?;
    assert_eq!(ctx.finished_in(&topic, &committed), MESSAGES, "{committed:?}");
    backend.close(ctx.patience()).await?;
    Ok(())
}
