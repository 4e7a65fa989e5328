//! What the wrappers record of a real bus: everything, in the words of the history.

use std::sync::Arc;
use std::time::Duration;

use ebus_core::{
    Backend, Delivery, Error, ErrorKind, Group, Message, Outcome, Publish, SourceOptions, Topic,
};
use ebus_memory::{MemoryBroker, MemoryConfig};
use ebus_pool::{Handlers, Pool, PoolConfig, RetryPolicy};
use ebus_testkit::history::{Event, History, Kind, Outcome as Ended};
use ebus_testkit::oracle::{Rules, judge};
use ebus_testkit::record::{Recorded, RecordedHandler, VERSION_HEADER};
use futures_util::future::BoxFuture;
use tower_service::Service;

/// Does what the version of a message says.
#[derive(Clone)]
struct AsTold;

impl Service<Delivery> for AsTold {
    type Response = Outcome;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Outcome, Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, delivery: Delivery) -> Self::Future {
        let first = delivery.attempt() == 1;
        let error = || Error::new(ErrorKind::Handler, "as told");
        match delivery.payload() {
            b"panics at once" if first => panic!("as told, at once"),
            b"panics later" if first => Box::pin(async {
                tokio::task::yield_now().await;
                panic!("as told, later")
            }),
            b"retry" if first => Box::pin(async move { Ok(Outcome::Retry { after: None, error: error() }) }),
            b"error" if first => Box::pin(async move { Err(error()) }),
            b"reject" => Box::pin(async move { Ok(Outcome::Reject { error: error() }) }),
            b"for ever" => Box::pin(std::future::pending()),
            _ => Box::pin(async { Ok(Outcome::Ack) }),
        }
    }
}

fn backend(broker: &MemoryBroker, history: &History, member: &str) -> Arc<dyn Backend> {
    Arc::new(Recorded::new(Arc::new(broker.connect()), history.clone(), member))
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn member(broker: &MemoryBroker, history: &History, name: &str, topic: &Topic) -> Pool {
    let backend = backend(broker, history, name);
    let group = Group::new("g").expect("legal");
    let source = backend.source(SourceOptions::new(group.clone(), vec![topic.clone()])).await.expect("joins");
    let config = PoolConfig::new(group.clone())
        .with_retry(RetryPolicy::fixed(Duration::from_millis(1)))
        .with_dead_letter(Topic::new("dead").expect("legal"), backend.publisher());
    let handler = RecordedHandler::new(AsTold, history.clone(), &group, name);
    Pool::start_with(source, config, Handlers::new().on(topic.clone(), handler)).expect("valid")
}

fn ends(events: &[Event], outcome: Ended) -> usize {
    events.iter().filter(|event| event.kind == Kind::End && event.outcome == Some(outcome)).count()
}

#[tokio::test]
async fn everything_that_happens_is_recorded_and_passes() {
    let broker = MemoryBroker::new(MemoryConfig::default()).expect("valid");
    let history = History::new();
    let topic = Topic::new("t").expect("legal");
    let mut publisher = backend(&broker, &history, "p").publisher();
    let told = ["ack", "panics at once", "panics later", "retry", "error", "reject"];
    for (version, payload) in (1u64..).zip(told) {
        let message = Message::new(payload).with_key("k").with_header(VERSION_HEADER, version.to_string());
        publisher.publish(Publish::new(topic.clone(), message)).await.expect("is stored");
    }
    let refused = Message::new(vec![0; 5 << 20]).with_key("k");
    publisher.publish(Publish::new(topic.clone(), refused)).await.expect_err("is too large");
    let pool = member(&broker, &history, "m", &topic).await;
    until("the dead letter", || history.events().iter().any(|event| event.kind == Kind::DeadLetter)).await;
    let control = backend(&broker, &history, "control");
    let group = Group::new("g").expect("legal");
    let _ = pool.drain(Duration::from_secs(5)).await;
    control.committed(&group, &topic).await.expect("is there");

    let events = history.events();
    let verdict = judge(&events, &Rules::new());
    assert!(verdict.kept(), "{verdict}");
    assert_eq!((verdict.published, verdict.stored, verdict.failed), (8, 7, 1));
    assert_eq!((verdict.handled, verdict.retries, verdict.dead_letters), (5, 4, 1));
    assert_eq!((ends(&events, Ended::Ack), ends(&events, Ended::Reject)), (5, 1));
    assert_eq!((ends(&events, Ended::Panic), ends(&events, Ended::Retry)), (2, 2));
    let letter = events.iter().find(|event| event.kind == Kind::DeadLetter).expect("was waited for");
    assert_eq!((letter.key.as_deref(), letter.attempt), (Some("k"), Some(1)));
    let settled = events.iter().filter(|event| event.kind == Kind::Settle).count();
    assert_eq!(settled, told.len());
    assert!(events.iter().any(|event| event.kind == Kind::Assigned && event.epoch.is_some()));
    assert!(
        events.iter().any(|event| event.kind == Kind::Released && event.outcome == Some(Ended::Accepted))
    );
    assert!(events.iter().any(|event| event.kind == Kind::Committed));
}

#[tokio::test]
async fn a_member_that_is_dropped_lost_what_it_owned_and_its_runs_were_cancelled() {
    let broker = MemoryBroker::new(MemoryConfig::default()).expect("valid");
    let history = History::new();
    let topic = Topic::new("t").expect("legal");
    let mut publisher = backend(&broker, &history, "p").publisher();
    let message = Message::new("for ever").with_key("k");
    publisher.publish(Publish::new(topic.clone(), message)).await.expect("is stored");
    let pool = member(&broker, &history, "m", &topic).await;
    until("the run", || history.events().iter().any(|event| event.kind == Kind::Start)).await;
    drop(pool);
    until("the loss", || history.events().iter().any(|event| event.kind == Kind::Lost)).await;
    until("the end of the run", || ends(&history.events(), Ended::Cancelled) == 1).await;
    let verdict = judge(&history.events(), &Rules::new().unfinished_ok("g"));
    assert!(verdict.kept(), "{verdict}");
    assert_eq!(judge(&history.events(), &Rules::new()).lost, 1);
}
