//! Handlers made of functions: what they decode, and which outcome they give (c01, c04, c06).
#![cfg(all(feature = "headers", feature = "json"))]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ebus_core::{Delivery, Epoch, ErrorKind, Handler, Message, Outcome, PartitionId, Topic};
use ebus_envelope::{Envelope, Event, Format, Handled, HandlerError, raw, typed};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct OrderPlaced {
    total: u64,
}

#[derive(Clone, Default)]
struct Till(Arc<AtomicU64>);

#[derive(Debug)]
struct Broke;

impl std::fmt::Display for Broke {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no money")
    }
}

impl std::error::Error for Broke {}

async fn charge(till: Till, event: Event<OrderPlaced>) -> Handled {
    match event.total {
        0 => return Err(HandlerError::permanent("nothing to charge")),
        1 => Err(Broke)?,
        2 => return Err(HandlerError::from(Broke).retry_after(Duration::from_secs(9))),
        total => till.0.fetch_add(total, Ordering::Relaxed),
    };
    assert_eq!((event.key(), event.event_type(), event.event_version()), ("order-42", "order.placed", 3));
    assert_eq!((event.offset(), event.attempt(), event.epoch()), (5, 1, Epoch(7)));
    assert_eq!(event.topic().as_str(), "orders");
    Ok(())
}

fn delivery(message: Message) -> Delivery {
    let topic = Topic::new("orders").expect("legal");
    Delivery::new(Arc::new(PartitionId::new(topic, 0)), Epoch(7), 5, 1, message)
}

fn order(total: u64, format: Format) -> Message {
    Envelope::event("order-42", "order.placed", 3, &OrderPlaced { total })
        .and_then(|envelope| envelope.encode(format))
        .expect("legal")
}

async fn run(mut handler: impl Handler, message: Message) -> Outcome {
    std::future::poll_fn(|cx| handler.poll_ready(cx)).await.map_err(Into::into).expect("always ready");
    handler.call(delivery(message)).await.map_err(Into::into).expect("never fails")
}

#[tokio::test]
async fn a_typed_handler_gets_the_event_and_its_state() {
    let till = Till::default();
    for format in [Format::Headers, Format::Json] {
        assert!(matches!(run(typed(charge).with(till.clone()), order(50, format)).await, Outcome::Ack));
    }
    assert_eq!(till.0.load(Ordering::Relaxed), 100);
}

#[tokio::test]
async fn failures_become_outcomes() {
    let handler = typed(charge).with(Till::default());
    let outcome = run(handler.clone(), order(0, Format::Headers)).await;
    assert!(
        matches!(&outcome, Outcome::Reject { error } if error.kind() == ErrorKind::Handler),
        "{outcome:?}"
    );
    let outcome = run(handler.clone(), order(1, Format::Headers)).await;
    assert!(
        matches!(&outcome, Outcome::Retry { after: None, error } if error.message() == "no money"),
        "{outcome:?}"
    );
    let outcome = run(handler, order(2, Format::Headers)).await;
    assert!(matches!(outcome, Outcome::Retry { after: Some(wait), .. } if wait == Duration::from_secs(9)));
}

#[tokio::test]
async fn c06_what_cannot_be_decoded_is_rejected_without_a_run() {
    async fn never(_: Event<OrderPlaced>) -> Handled {
        panic!("ran")
    }
    let wrong_form = Envelope::event("order-42", "order.placed", 1, &"seven").unwrap();
    let not_json = Envelope::of_bytes("order-42", "order.placed", 1, "image/png", vec![137]).unwrap();
    for message in [
        Message::new("no envelope"),
        Message::new(vec![0xff]).with_header("Content-Type", "image/png"),
        order(9, Format::Headers).with_header("X-Event-ID", "again"),
        wrong_form.encode(Format::Headers).unwrap(),
        not_json.encode(Format::Headers).unwrap(),
    ] {
        let Outcome::Reject { error } = run(typed(never), message).await else { panic!("not rejected") };
        assert_eq!(error.kind(), ErrorKind::Decode);
    }
}

#[tokio::test]
async fn a_raw_handler_gets_the_delivery() {
    async fn length(till: Till, delivery: Delivery) -> Handled {
        std::str::from_utf8(delivery.payload())?;
        till.0.fetch_add(delivery.payload().len() as u64, Ordering::Relaxed);
        Ok(())
    }
    let till = Till::default();
    let handler = raw(length).with(till.clone());
    assert!(matches!(run(handler.clone(), Message::new("four")).await, Outcome::Ack));
    assert!(matches!(run(handler, Message::new(vec![255])).await, Outcome::Retry { .. }));
    assert_eq!(till.0.load(Ordering::Relaxed), 4);
    assert!(matches!(run(raw(async |_: Delivery| Ok(())), Message::new("")).await, Outcome::Ack));
}

#[test]
fn a_publish_carries_key_and_id() {
    let envelope = Envelope::event("order-42", "order.placed", 1, &1).unwrap();
    let id = envelope.event_id().to_string();
    let publish = envelope.to("orders").unwrap();
    assert_eq!((publish.id.as_deref(), publish.message.key), (Some(id.as_str()), Some("order-42".into())));
    let refused = Envelope::event("order-42", "order.placed", 1, &1).unwrap().to("no topic").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConfigInvalid);
}
