//! What is counted, under which labels, and that nothing that began goes uncounted.
#![cfg(feature = "metrics")]

mod common;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Probe, delivery, publish, readiness_is_respected};
use ebus_core::{Delivery, Error, ErrorKind, Message, Outcome, Publish, Receipt};
use ebus_layers::MetricsLayer;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;

/// Runs it under a recorder of its own; what was recorded, as `name{labels}` and number.
fn recorded<F: Future<Output = ()>>(run: impl FnOnce() -> F) -> BTreeMap<String, Vec<f64>> {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    metrics::with_local_recorder(&recorder, || runtime.block_on(run()));
    let entries = snapshotter.snapshot().into_vec().into_iter();
    entries
        .map(|(key, _, _, value)| {
            let key = key.key();
            let labels: Vec<_> =
                key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let value = match value {
                DebugValue::Counter(count) => vec![count as f64],
                DebugValue::Gauge(value) => vec![value.into_inner()],
                DebugValue::Histogram(values) => values.into_iter().map(|value| value.into_inner()).collect(),
            };
            (format!("{}{{{}}}", key.name(), labels.join(",")), value)
        })
        .collect()
}

fn to(topic: &str) -> Publish {
    Publish::to(topic, Message::new("m")).expect("legal")
}

#[test]
fn calls_reach_the_inner_service_ready() {
    recorded(|| async {
        let probe = Probe::default();
        readiness_is_respected::<_, Publish>(MetricsLayer::new().layer(probe.clone()), || publish("k", 1))
            .await;
        readiness_is_respected::<_, Delivery>(MetricsLayer::new().layer(probe.clone()), delivery).await;
        assert_eq!(probe.calls().load(Ordering::Relaxed), 8);
    });
}

#[test]
fn publishes_are_counted_by_their_end() {
    let recorded = recorded(|| async {
        let backend = service_fn(|publish: Publish| async move {
            match publish.topic.as_str() {
                "slow" => tokio::time::sleep(Duration::from_secs(2)).await,
                "denied" => return Err(Error::new(ErrorKind::Denied, "no")),
                "panic" => panic!("on purpose"),
                _ => {}
            }
            Ok(Receipt::new(publish.topic, 0, 0))
        });
        let service = MetricsLayer::new().layer(backend);
        for topic in ["orders", "orders", "slow", "denied"] {
            let _ = service.clone().oneshot(to(topic)).await;
        }
        drop(service.clone().oneshot(to("never.begun")));
        let mut ready = service.clone();
        drop(ready.ready().await.expect("ready").call(to("orders")));
        assert!(tokio::spawn(service.oneshot(to("panic"))).await.is_err());
    });
    let counts: Vec<_> =
        recorded.iter().map(|(name, value)| (name.as_str(), value.len(), value[0])).collect();
    assert_eq!(
        counts,
        [
            ("ebus_publish_seconds{topic=denied}", 1, 0.0),
            ("ebus_publish_seconds{topic=orders}", 3, 0.0),
            ("ebus_publish_seconds{topic=panic}", 1, 0.0),
            ("ebus_publish_seconds{topic=slow}", 1, 2.0),
            ("ebus_published_total{topic=denied,outcome=denied}", 1, 1.0),
            ("ebus_published_total{topic=denied,outcome=stored}", 1, 0.0),
            ("ebus_published_total{topic=orders,outcome=dropped}", 1, 1.0),
            ("ebus_published_total{topic=orders,outcome=stored}", 1, 2.0),
            ("ebus_published_total{topic=panic,outcome=panic}", 1, 1.0),
            ("ebus_published_total{topic=panic,outcome=stored}", 1, 0.0),
            ("ebus_published_total{topic=slow,outcome=stored}", 1, 1.0),
        ]
    );
}

#[test]
fn runs_are_counted_by_their_outcome() {
    let recorded = recorded(|| async {
        let outcomes = [
            Ok(Outcome::Ack),
            Ok(Outcome::Retry { after: None, error: Error::new(ErrorKind::Handler, "again") }),
            Ok(Outcome::Reject { error: Error::new(ErrorKind::Decode, "what") }),
            Err(Error::new(ErrorKind::Overloaded, "full")),
        ];
        for outcome in outcomes {
            let handler = service_fn(|_: Delivery| std::future::ready(outcome.clone()));
            let _ = MetricsLayer::new().layer(handler).oneshot(delivery()).await;
        }
        let handler = service_fn(|_: Delivery| std::future::pending::<Result<Outcome, Error>>());
        let run = MetricsLayer::new().layer(handler).oneshot(delivery());
        assert!(tokio::time::timeout(Duration::from_millis(1_500), run).await.is_err());
    });
    for outcome in ["ack", "retry", "reject", "error", "cancelled"] {
        assert_eq!(
            recorded[&format!("ebus_handled_total{{topic=orders,outcome={outcome}}}")],
            [1.0],
            "{outcome}"
        );
    }
    let seconds = &recorded["ebus_handle_seconds{topic=orders}"];
    assert_eq!((seconds.len(), seconds[4]), (5, 1.5));
}

#[test]
fn topics_above_the_limit_share_a_label() {
    let recorded = recorded(|| async {
        let backend =
            service_fn(|publish: Publish| async { Ok::<_, Error>(Receipt::new(publish.topic, 0, 0)) });
        let service = MetricsLayer::with_max_topics(2).layer(backend);
        for topic in ["a", "b", "c", "d", "a"] {
            service.clone().oneshot(to(topic)).await.expect("stored");
        }
    });
    let counts: Vec<_> =
        recorded.iter().filter(|(name, _)| name.contains("total")).map(|(n, v)| (n.as_str(), v[0])).collect();
    assert_eq!(
        counts,
        [
            ("ebus_published_total{topic=a,outcome=stored}", 2.0),
            ("ebus_published_total{topic=b,outcome=stored}", 1.0),
            ("ebus_published_total{topic=other,outcome=stored}", 2.0),
        ]
    );
}
