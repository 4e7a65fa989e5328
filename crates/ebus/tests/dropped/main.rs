//! i04: every future that a user holds can be dropped at each of its awaits.
//!
//! Each is polled k times and dropped, for k = 0, 1, 2, ... until it ends by itself; each time in a world of its own, on a
//! backend that gives way at every call. After that everything must go on: what is stored is handled, once and in order; what was
//! reserved is free again (there is one place in flight); everything ends, and no task is left.

mod world;
mod yielding;

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use ebus::{Batch, BatchHandled, Bus, Delivery, Failures, TopicSpec, raw};
use world::{SOON, World, handle, topic};

/// More awaits than any of them has.
const MOST: usize = 500;

/// What came of a future that was polled so often at most.
struct Cut<T> {
    output: Option<T>,
    polls: usize,
}

/// Polls `future` `times` times at most, each time that it is woken; waits ten seconds at most.
async fn cut<F: Future>(future: F, times: usize) -> Cut<F::Output> {
    let mut polls = 0;
    let mut future = pin!(future);
    let polled = poll_fn(|cx| {
        if polls == times {
            return Poll::Ready(None);
        }
        polls += 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polls == times => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    });
    let output = tokio::time::timeout(Duration::from_secs(10), polled).await.unwrap_or_default();
    Cut { output, polls }
}

/// Drops the future of `call` everywhere. `call` says in how many polls it ended, or was dropped, and whether it ended.
fn everywhere(least: usize, call: impl AsyncFn(&mut World, usize) -> (usize, bool)) {
    for times in 0..MOST {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime");
        let (polls, ended) = runtime.block_on(async {
            let checked = tokio::time::timeout(Duration::from_secs(3_600), async {
                let mut world = World::new().await;
                let called = call(&mut world, times).await;
                world.goes_on().await;
                called
            });
            let called = checked.await.unwrap_or_else(|_| panic!("hangs after {times} polls"));
            for _ in 0..1_000 {
                tokio::task::yield_now().await;
            }
            // Longer than the time that a state waits for a shard.
            tokio::time::sleep(Duration::from_secs(2)).await;
            let left = tokio::runtime::Handle::current().metrics().num_alive_tasks();
            assert_eq!(left, 0, "tasks are left after {times} polls");
            called
        });
        if ended || polls < times {
            assert!(polls > least, "it has fewer awaits than it is taken to have: ended in poll {polls}");
            return;
        }
    }
    panic!("not ended after {MOST} polls");
}

#[test]
fn i04_connect() {
    everywhere(0, async |_, times| {
        let cut = cut(Bus::connect("memory://"), times).await;
        (cut.polls, cut.output.is_some_and(|connected| connected.is_ok()))
    });
}

#[test]
fn i04_publish() {
    everywhere(3, async |world, times| {
        let before = world.stored().await;
        let cut = cut(world.bus.publish(world.message("k0")), times).await;
        let stored = world.stored().await - before;
        match cut.output {
            Some(receipt) => assert_eq!((receipt.is_ok(), stored), (true, 1)),
            None => assert!(stored <= 1, "{stored} of one"),
        }
        (cut.polls, stored == 1 && cut.polls < times)
    });
}

#[test]
fn i04_enqueue() {
    everywhere(1, async |world, times| {
        let before = world.stored().await;
        let cut = cut(world.bus.enqueue(world.message("k0")), times).await;
        let ended = cut.output.is_some();
        if let Some(receipt) = cut.output {
            // It is on its way, whether somebody waits for it or not.
            drop(receipt.expect("a place was free"));
        }
        assert_eq!(world.stored().await - before, usize::from(ended));
        (cut.polls, ended)
    });
}

#[test]
fn i04_a_receipt() {
    everywhere(2, async |world, times| {
        let before = world.stored().await;
        let receipt = world.bus.enqueue(world.message("k0")).await.expect("a place is free");
        let cut = cut(receipt, times).await;
        assert_eq!(world.stored().await - before, 1, "dropping it does not un-publish");
        (cut.polls, cut.output.is_some_and(|receipt| receipt.is_ok()))
    });
}

#[test]
fn i04_publish_by_a_publisher_that_is_used_again() {
    everywhere(3, async |world, times| {
        let mut publisher = world.bus.publisher();
        let cut = cut(publisher.publish(world.message("k0").expect("legal")), times).await;
        publisher.publish(world.message("k0").expect("legal")).await.expect("it has its place, or gets one");
        (cut.polls, cut.output.is_some_and(|receipt| receipt.is_ok()))
    });
}

#[test]
fn i04_topics() {
    everywhere(2, async |world, times| {
        let spec = TopicSpec::new(topic("more"), 3);
        let created = cut(world.bus.create_topic(&spec), times).await;
        let again = world.bus.create_topic(&spec).await.expect("made, or found as it should be");
        assert_eq!(again.partitions.len(), 3);
        let described = cut(world.bus.describe_topic("more"), times).await;
        assert_eq!(world.bus.describe_topic("more").await.expect("is there").partitions.len(), 3);
        let polls = created.polls.max(described.polls);
        (polls, created.output.is_some() && described.output.is_some_and(|described| described.is_ok()))
    });
}

#[test]
fn i04_parked_and_redrive() {
    everywhere(6, async |world, times| {
        let parked = cut(world.bus.parked("g", "orders"), times).await;
        world.let_pass();
        let asked = cut(world.bus.redrive("g", "orders", "bad"), times).await;
        // Asked for or not, it can be asked for again.
        world.redrive().await;
        let polls = parked.polls.max(asked.polls);
        (polls, parked.output.is_some() && asked.output.is_some_and(|asked| asked.is_ok()))
    });
}

#[test]
fn i04_start_in_another_group() {
    everywhere(6, async |world, times| {
        let (seen, mut handled) = tokio::sync::mpsc::unbounded_channel();
        let builder = || world.bus.consumer("late").on("orders", raw(world::see).with(seen.clone()));
        let parking = || builder().dead_letter("late.dlq").park_keys(10);
        let started = cut(parking().start(), times).await;
        let ended = started.output.is_some_and(|started| started.is_ok());
        // Whoever began and was dropped has left at once, not when it was missed: this one reads all.
        let late = builder().start().await.expect("starts");
        let all = async {
            for _ in 0..world.stored().await {
                handled.recv().await.expect("the consumer lives");
            }
        };
        tokio::time::timeout(Duration::from_secs(5), all).await.expect("nobody else is in the group");
        late.drain(SOON).await.committed.expect("accepted");
        (started.polls, ended)
    });
}

#[test]
fn i04_start_in_the_same_group() {
    everywhere(6, async |world, times| {
        let started = cut(world.consumer_on(&world.bus).start(), times).await;
        let ended = started.output.is_some();
        if let Some(consumer) = started.output {
            consumer.expect("starts").drain(SOON).await.committed.expect("accepted");
        }
        world.handles_within(Duration::from_secs(5)).await;
        (started.polls, ended)
    });
}

#[test]
fn i04_one_topic_more() {
    async fn all(_: Vec<Delivery>) -> BatchHandled {
        Ok(Failures::new())
    }
    everywhere(2, async |world, times| {
        let on = cut(world.consumer.on("users", world.handler()), times).await;
        let batch = Batch::of(3).max_age(Duration::from_millis(5));
        let in_batches = cut(world.consumer.batch("bills", batch, raw(all)), times).await;
        world.consumer.on("users", raw(handle).with(world.handled.clone())).await.expect("is there");
        let ended = on.output.is_some() && in_batches.output.is_some_and(|on| on.is_ok());
        (on.polls.max(in_batches.polls), ended)
    });
}

#[test]
fn i04_state() {
    everywhere(1, async |world, times| {
        let state = cut(world.consumer.state(), times).await;
        let again = world.consumer.state().await;
        assert!(again.blocked_shards == 0 && again.ended.is_none(), "{again:?}");
        (state.polls, state.output.is_some())
    });
}

#[test]
fn i04_drain_goes_on_when_its_future_is_dropped() {
    everywhere(1, async |world, times| {
        world.publish_some().await;
        let drained = cut(world.consumer.drain(SOON), times).await;
        if times > 0 {
            world.consumer.ended().await.committed.expect("accepted");
        }
        (drained.polls, drained.output.is_some())
    });
}

#[test]
fn i04_ended() {
    everywhere(1, async |world, times| {
        let ended = cut(world.consumer.ended(), times).await;
        assert!(ended.output.is_none(), "it has not ended");
        (ended.polls, false)
    });
}

#[test]
fn i04_close() {
    everywhere(3, async |world, times| {
        world.publish_some().await;
        let closed = cut(world.bus.close(SOON), times).await;
        (closed.polls, closed.output.is_some_and(|closed| closed.is_ok()))
    });
}
