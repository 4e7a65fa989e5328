//! The metrics of one side, publishing or handling, per topic.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ebus_core::Topic;
use metrics::{Counter, Histogram, SharedString};

/// The label of all topics above the limit.
const OTHER: &str = "other";

/// The names of one side's metrics.
pub(super) struct Names {
    pub(super) total: &'static str,
    pub(super) seconds: &'static str,
    /// The outcome of nearly all messages.
    pub(super) good: &'static str,
    /// The outcome of a future that was dropped.
    pub(super) dropped: &'static str,
}

pub(super) const PUBLISH: Names = Names {
    total: "ebus_published_total",
    seconds: "ebus_publish_seconds",
    good: "stored",
    dropped: "dropped",
};

pub(super) const HANDLE: Names =
    Names { total: "ebus_handled_total", seconds: "ebus_handle_seconds", good: "ack", dropped: "cancelled" };

pub(super) struct Side {
    pub(super) names: Names,
    max_topics: usize,
    topics: ArcSwap<HashMap<Topic, Arc<OfTopic>>>,
}

/// The metrics of one topic. What is counted for nearly every message is looked up once; the rest when it happens.
pub(super) struct OfTopic {
    topic: SharedString,
    good: Counter,
    seconds: Histogram,
}

impl Side {
    pub(super) fn new(names: Names, max_topics: usize) -> Self {
        Self { names, max_topics, topics: ArcSwap::default() }
    }

    pub(super) fn of(&self, topic: &Topic) -> Arc<OfTopic> {
        if let Some(known) = self.topics.load().get(topic) {
            return known.clone();
        }
        self.topics.rcu(|topics| {
            let mut topics = HashMap::clone(topics);
            let known = topics.len();
            topics.entry(topic.clone()).or_insert_with(|| Arc::new(self.register(topic, known)));
            topics
        });
        self.topics.load().get(topic).cloned().unwrap_or_else(|| Arc::new(self.register(topic, usize::MAX)))
    }

    fn register(&self, topic: &Topic, known: usize) -> OfTopic {
        let topic: SharedString =
            if known < self.max_topics { topic.as_str().to_owned().into() } else { OTHER.into() };
        OfTopic {
            good: metrics::counter!(self.names.total, "topic" => topic.clone(), "outcome" => self.names.good),
            seconds: metrics::histogram!(self.names.seconds, "topic" => topic.clone()),
            topic,
        }
    }
}

impl OfTopic {
    pub(super) fn record(&self, names: &Names, outcome: &'static str, took: Duration) {
        self.seconds.record(took);
        if outcome == names.good {
            self.good.increment(1);
        } else {
            metrics::counter!(names.total, "topic" => self.topic.clone(), "outcome" => outcome).increment(1);
        }
    }
}
