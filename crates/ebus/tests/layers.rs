//! Layers on a bus: in which order, how often made, and who does not pass them.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebus::{Bus, Delivery, Error, ErrorKind, Handled, HandlerError, Message, Publish, Publisher, raw};
use tower::layer::layer_fn;
use tower::limit::ConcurrencyLimitLayer;
use tower::timeout::TimeoutLayer;
use tower::{Service, ServiceBuilder, ServiceExt};

type Passed = Arc<Mutex<Vec<(&'static str, String)>>>;

/// Notes what passes, under a name.
fn note(
    name: &'static str,
    passed: &Passed,
) -> impl tower::Layer<Publisher, Service: ebus::PublishService> + Send + Sync + 'static + use<> {
    let passed = passed.clone();
    layer_fn(move |inner: Publisher| {
        let passed = passed.clone();
        inner.map_request(move |publish: Publish| {
            passed.lock().expect("no panic").push((name, publish.topic.to_string()));
            publish
        })
    })
}

fn message() -> Result<Publish, Error> {
    Publish::to("orders", Message::new("placed").with_key("k"))
}

#[tokio::test]
async fn the_layer_that_is_added_first_is_the_outermost() {
    let passed = Passed::default();
    let bus = Bus::connect("memory://").await.expect("memory").layer(note("outer", &passed));
    let inner = bus.clone().layer(note("inner", &passed));
    inner.publish(message()).await.expect("is stored");
    let names: Vec<_> = std::mem::take(&mut *passed.lock().expect("no panic"));
    assert_eq!(names.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["outer", "inner"]);
    bus.publish(message()).await.expect("is stored");
    assert_eq!(passed.lock().expect("no panic").len(), 1, "the first bus stays as it was");
}

#[tokio::test]
async fn layers_are_put_together_once_for_all_clones() {
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let bus = Bus::connect("memory://").await.expect("memory").layer(layer_fn(move |inner: Publisher| {
        count.fetch_add(1, Relaxed);
        inner
    }));
    let clone = bus.clone();
    for bus in [&bus, &clone] {
        bus.publish(message()).await.expect("is stored");
        bus.publisher().publish(message().expect("legal")).await.expect("is stored");
    }
    assert_eq!(made.load(Relaxed), 1);
}

#[tokio::test]
async fn layers_of_tower_fit_and_their_limits_are_shared() {
    let bus = Bus::connect("memory://").await.expect("memory").layer(
        ServiceBuilder::new()
            .layer(TimeoutLayer::new(Duration::from_secs(5)))
            .layer(ConcurrencyLimitLayer::new(1)),
    );
    let mut first = bus.publisher();
    let ready = std::future::poll_fn(|cx| Service::<Publish>::poll_ready(&mut first, cx)).await;
    ready.expect("the only place");
    let waits = tokio::time::timeout(Duration::from_millis(50), bus.publish(message())).await;
    assert!(waits.is_err(), "the place is taken");
    drop(first);
    bus.publish(message()).await.expect("the place came back");
}

#[tokio::test]
async fn an_error_keeps_its_kind_through_layers_that_box_it() {
    let bus = Bus::connect("memory://?max_message_bytes=10").await.expect("memory");
    let bus = bus.layer(TimeoutLayer::new(Duration::from_secs(5)));
    let large = Publish::to("orders", Message::new("longer than ten bytes"));
    assert_eq!(bus.publish(large).await.expect_err("too large").kind(), ErrorKind::TooLarge);
    assert_eq!(
        bus.publish(Publish::to("a b", Message::new(""))).await.expect_err("illegal").kind(),
        ErrorKind::ConfigInvalid
    );
}

#[tokio::test]
async fn dead_letters_pass_no_layer() {
    async fn reject(_: Delivery) -> Handled {
        Err(HandlerError::permanent("never"))
    }
    let passed = Passed::default();
    let bus = Bus::connect("memory://").await.expect("memory").layer(note("layer", &passed));
    let consumer =
        bus.consumer("g").on("orders", raw(reject)).dead_letter("orders.dlq").start().await.expect("starts");
    bus.publish(message()).await.expect("is stored");
    let buried = tokio::time::timeout(Duration::from_secs(10), async {
        while consumer.counters().dead_letters == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    buried.await.expect("in time");
    assert_eq!(*passed.lock().expect("no panic"), [("layer", "orders".to_owned())]);
    consumer.drain(Duration::from_secs(5)).await.committed.expect("was accepted");
}
