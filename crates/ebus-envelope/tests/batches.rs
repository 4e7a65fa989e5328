//! Handlers of batches made of functions: what they are given, and what is said of each message (c04, c06, c21).
#![cfg(feature = "headers")]

use std::sync::Arc;

use ebus_core::{
    BatchHandler, BatchOutcome, Delivery, Epoch, ErrorKind, Failures, Message, Outcome, PartitionId, Topic,
};
use ebus_envelope::{BatchHandled, Envelope, Event, Format, Handled, HandlerError, raw, typed};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

#[derive(Serialize, Deserialize)]
struct OrderPlaced {
    total: u64,
}

fn delivery(offset: u64, message: Message) -> Delivery {
    let topic = Topic::new("orders").expect("legal");
    Delivery::new(Arc::new(PartitionId::new(topic, 0)), Epoch(7), offset, 1, message)
}

fn order(key: &str, total: u64) -> Message {
    Envelope::event(key, "order.placed", 1, &OrderPlaced { total })
        .and_then(|envelope| envelope.encode(Format::Headers))
        .expect("legal")
}

fn batch(messages: Vec<Message>) -> Vec<Delivery> {
    (0..).zip(messages).map(|(offset, message)| delivery(offset, message)).collect()
}

async fn run(mut handler: impl BatchHandler, messages: Vec<Message>) -> BatchOutcome {
    std::future::poll_fn(|cx| handler.poll_ready(cx)).await.map_err(Into::into).expect("always ready");
    handler.call(batch(messages)).await.map_err(Into::into).expect("never fails")
}

/// The places and the kinds of what was said.
fn said(outcome: BatchOutcome) -> Vec<(usize, &'static str)> {
    let BatchOutcome::Each(failures) = outcome else { panic!("{outcome:?}") };
    let kind = |outcome| match outcome {
        Outcome::Reject { error } if error.kind() == ErrorKind::Decode => "undecodable",
        Outcome::Reject { .. } => "reject",
        Outcome::Retry { .. } => "retry",
        Outcome::Ack => "ack",
    };
    let mut said: Vec<_> =
        failures.into_vec().into_iter().map(|(place, outcome)| (place, kind(outcome))).collect();
    said.sort_unstable();
    said
}

/// Names those whose total is 0 for good and those with 1 for now; with 9 the whole batch fails.
async fn judge(given: UnboundedSender<Vec<u64>>, orders: Vec<Event<OrderPlaced>>) -> BatchHandled {
    given.send(orders.iter().map(|order| order.offset()).collect())?;
    let mut failures = Failures::new();
    for (place, order) in orders.iter().enumerate() {
        match order.total {
            0 => failures.add(place, HandlerError::permanent("nothing to charge")),
            1 => failures.add(place, HandlerError::retry("not yet")),
            7 => failures.add(usize::MAX, HandlerError::retry("an index that went below 0")),
            8 => failures.add(orders.len() + 2, HandlerError::retry("nobody")),
            9 => return Err(HandlerError::permanent("the batch is too strange")),
            _ => {}
        }
    }
    Ok(failures)
}

#[tokio::test]
async fn c21_what_a_function_names_is_named() {
    let (given, mut batches) = unbounded_channel();
    let orders = vec![order("a", 5), order("b", 0), order("c", 1)];
    let outcome = run(typed(judge).with(given), orders).await;
    assert_eq!(said(outcome), [(1, "reject"), (2, "retry")]);
    assert_eq!(batches.recv().await, Some(vec![0, 1, 2]));
}

#[tokio::test]
async fn c06_what_cannot_be_decoded_is_rejected_with_what_follows_of_its_key_held_back() {
    let (given, mut batches) = unbounded_channel();
    let strange = |key: &str| Message::new("{").with_key(key);
    let orders = vec![
        strange("a"),
        order("a", 5),
        order("b", 5),
        order("c", 1),
        Message::new("no key and no envelope"),
        order("d", 0),
        strange("d"),
        order("d", 5),
    ];
    let outcome = run(typed(judge).with(given.clone()), orders).await;
    assert_eq!(batches.recv().await, Some(vec![2, 3, 5]), "not 1 and 7: they stand behind a dead letter");
    let expected = [(0, "undecodable"), (3, "retry"), (4, "undecodable"), (5, "reject"), (6, "undecodable")];
    assert_eq!(said(outcome), expected, "places are those of the batch");
    let outcome = run(typed(judge).with(given), vec![strange("a"), order("a", 5)]).await;
    assert_eq!(said(outcome), [(0, "undecodable")]);
    assert!(batches.try_recv().is_err(), "nothing was left to be handled");
}

#[tokio::test]
async fn p8_a_place_that_is_not_there_is_passed_on_as_such() {
    let (given, _batches) = unbounded_channel();
    let orders = vec![Message::new("{").with_key("a"), order("b", 8)];
    let outcome = run(typed(judge).with(given.clone()), orders).await;
    assert_eq!(said(outcome), [(0, "undecodable"), (4, "retry")], "the pool tells it");
    let orders = vec![Message::new("{").with_key("a"), order("b", 7)];
    let outcome = run(typed(judge).with(given), orders).await;
    assert_eq!(said(outcome), [(0, "undecodable"), (usize::MAX, "retry")]);
}

#[tokio::test]
async fn c04_a_batch_that_fails_for_good_is_tried_one_by_one_and_one_alone_is_rejected() {
    let (given, _batches) = unbounded_channel();
    let outcome = run(typed(judge).with(given.clone()), vec![order("a", 9), order("b", 5)]).await;
    assert!(matches!(outcome, BatchOutcome::Retry { after: None, .. }), "{outcome:?}");
    let undecodable = Message::new("{").with_key("b");
    let outcome = run(typed(judge).with(given.clone()), vec![order("a", 9), undecodable]).await;
    assert!(matches!(outcome, BatchOutcome::Retry { after: None, .. }), "{outcome:?}");
    let outcome = run(typed(judge).with(given), vec![order("a", 9)]).await;
    assert_eq!(said(outcome), [(0, "reject")]);
}

#[tokio::test]
async fn a_batch_that_is_done_as_a_whole_names_nobody() {
    async fn all(deliveries: Vec<Delivery>) -> Handled {
        if deliveries.len() > 2 {
            return Err(HandlerError::retry("too many").retry_after(std::time::Duration::from_secs(3)));
        }
        Ok(())
    }
    async fn all_typed(orders: Vec<Event<OrderPlaced>>) -> Handled {
        assert_eq!(orders.len(), 2);
        Ok(())
    }
    assert_eq!(said(run(raw(all), vec![order("a", 1), order("b", 1)]).await), []);
    assert_eq!(said(run(typed(all_typed), vec![order("a", 1), order("b", 1)]).await), []);
    let outcome = run(raw(all), vec![order("a", 1), order("b", 1), order("c", 1)]).await;
    assert!(
        matches!(outcome, BatchOutcome::Retry { after: Some(after), .. } if after.as_secs() == 3),
        "{outcome:?}"
    );
}
