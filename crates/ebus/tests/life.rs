//! One end for a bus and its consumers (i01 to i04).

use std::time::Duration;

use ebus::{Bus, Delivery, ErrorKind, Handled, Message, Publish, Topic, TopicSpec, raw};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

const SOON: Duration = Duration::from_secs(10);

async fn bus() -> Bus {
    Bus::connect("memory://").await.expect("memory is always there")
}

fn message(key: &str) -> Result<Publish, ebus::Error> {
    Publish::to("orders", Message::new("placed").with_key(key))
}

async fn ack(_: Delivery) -> Handled {
    Ok(())
}

#[test]
fn a_bus_can_be_shared() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    fn sent<T: Send>(_: &T) {}
    shared::<Bus>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let bus = bus().await;
        sent(&bus.publish(message("k")));
        sent(&bus.consumer("g").on("orders", raw(ack)).start());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i01_closed_from_many_tasks_there_is_one_result() {
    let bus = bus().await;
    bus.publish(message("k")).await.expect("is open");
    let closing: Vec<_> = (0..20)
        .map(|_| {
            let bus = bus.clone();
            tokio::spawn(async move { bus.close(SOON).await })
        })
        .collect();
    for one in closing {
        one.await.expect("no panic").expect("one result: all is well");
    }
    bus.close(Duration::ZERO).await.expect("again, the same");
}

#[tokio::test]
async fn i02_after_close_everything_says_closed() {
    let bus = bus().await;
    let consumer = bus.consumer("billing").on("orders", raw(ack)).start().await.expect("starts");
    let mut publisher = bus.publisher();
    bus.close(SOON).await.expect("nothing is open");

    let topic = Topic::new("users").expect("legal");
    let said = [
        bus.publish(message("k")).await.map(drop),
        bus.enqueue(message("k")).await.map(drop),
        publisher.publish(message("k").expect("legal")).await.map(drop),
        bus.clone().publisher().publish(message("k").expect("legal")).await.map(drop),
        bus.create_topic(&TopicSpec::new(topic.clone(), 1)).await.map(drop),
        bus.describe_topic(&topic).await.map(drop),
        bus.consumer("billing").on("orders", raw(ack)).start().await.map(drop),
        consumer.on("users", raw(ack)).await,
        consumer.pause("orders"),
        consumer.resume("orders"),
    ];
    for (index, said) in said.into_iter().enumerate() {
        assert_eq!(said.expect_err("is closed").kind(), ErrorKind::Closed, "the call of index {index}");
    }
    consumer.ended().await.committed.expect("it was drained");
}

#[tokio::test]
async fn g01_close_lets_what_runs_end_and_commits_it() {
    async fn slow(began: UnboundedSender<()>, _: Delivery) -> Handled {
        began.send(())?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(())
    }
    let bus = bus().await;
    let (began, mut begun) = unbounded_channel();
    let consumer = bus.consumer("billing").on("orders", raw(slow).with(began)).start().await.expect("starts");
    bus.publish(message("k")).await.expect("is open");
    begun.recv().await.expect("the run began");
    bus.close(SOON).await.expect("the run ends in time");
    let report = consumer.ended().await;
    assert_eq!((report.counters.handled, report.left.len()), (1, 0), "{report:?}");
    report.committed.expect("was accepted");
}

#[tokio::test]
async fn g01_a_handler_may_publish_while_the_bus_closes() {
    async fn forward((bus, began): (Bus, UnboundedSender<()>), _: Delivery) -> Handled {
        began.send(())?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        bus.publish(Publish::to("forwarded", Message::new("on"))).await?;
        Ok(())
    }
    let bus = bus().await;
    let (began, mut begun) = unbounded_channel();
    let handler = raw(forward).with((bus.clone(), began));
    let consumer = bus.consumer("billing").on("orders", handler).start().await.expect("starts");
    bus.publish(message("k")).await.expect("is open");
    begun.recv().await.expect("the run began");
    bus.close(SOON).await.expect("all ends in time");
    assert_eq!(consumer.counters().handled, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i03_publish_racing_with_close_never_hangs() {
    for round in 0..200 {
        let bus = bus().await;
        let publishing: Vec<_> = (0..4)
            .map(|_| {
                let bus = bus.clone();
                tokio::spawn(async move {
                    loop {
                        if let Err(error) = bus.publish(message("k")).await {
                            return error;
                        }
                    }
                })
            })
            .collect();
        let starting = {
            let bus = bus.clone();
            tokio::spawn(async move { bus.consumer("g").on("orders", raw(ack)).start().await })
        };
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        tokio::time::timeout(SOON, bus.close(Duration::from_secs(5)))
            .await
            .expect("in time")
            .expect("all is well");
        for one in publishing {
            let error = tokio::time::timeout(SOON, one).await.expect("in time").expect("no panic");
            assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
        }
        match tokio::time::timeout(SOON, starting).await.expect("in time").expect("no panic") {
            Ok(consumer) => {
                let ended = tokio::time::timeout(SOON, consumer.ended()).await;
                drop(ended.expect("a consumer that started ends with its bus"));
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Closed, "{error}"),
        }
    }
}

#[tokio::test]
async fn i04_a_close_that_is_dropped_can_be_called_again() {
    async fn slow(began: UnboundedSender<()>, _: Delivery) -> Handled {
        began.send(())?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(())
    }
    let bus = bus().await;
    let (began, mut begun) = unbounded_channel();
    let consumer = bus.consumer("billing").on("orders", raw(slow).with(began)).start().await.expect("starts");
    bus.publish(message("k")).await.expect("is open");
    begun.recv().await.expect("the run began");
    assert!(
        tokio::time::timeout(Duration::from_millis(1), bus.close(SOON)).await.is_err(),
        "the run lasts longer"
    );
    bus.close(SOON).await.expect("the run ends in time");
    assert_eq!(consumer.counters().handled, 1);
    assert_eq!(bus.publish(message("k")).await.expect_err("is closed").kind(), ErrorKind::Closed);
}
