//! Groups on a real Apache Kafka, beyond the conformance suite: both group protocols, sessions, static members, consumers of
//! somebody else's, topics that begin, and topics that are made anew.

use std::time::Duration;

use ebus_core::{Group, SourceOptions, Topic};
use ebus_kafka::{GroupProtocol, KafkaBackend, KafkaConfig};
use ebus_testkit::brokers::{KafkaConfig as Broker, Need, Server, launch_kafka, private_trial, shared_trial};
use libtest_mimic::Trial;

#[path = "../support/log_faults.rs"]
mod log_faults;
#[path = "../support/raw.rs"]
mod raw;

mod begin;
mod child;
mod fixed;
mod foreign;
mod full;
mod hand_over;
mod session;

use raw::{Tested, block};

pub(crate) const SESSION: Duration = Duration::from_secs(6);

/// Both ways in which a group agrees on who has what.
pub(crate) const PROTOCOLS: [(GroupProtocol, &str); 2] =
    [(GroupProtocol::Classic, "classic"), (GroupProtocol::Consumer, "consumer")];

pub(crate) async fn connect(url: &str, protocol: GroupProtocol) -> Tested<KafkaBackend> {
    connect_with(url, protocol, |config| config).await
}

pub(crate) async fn connect_with(
    url: &str,
    protocol: GroupProtocol,
    change: impl FnOnce(KafkaConfig) -> KafkaConfig,
) -> Tested<KafkaBackend> {
    let config = KafkaConfig::from_url(url)?.with_session_timeout(SESSION).with_group_protocol(protocol);
    Ok(KafkaBackend::connect(change(config)).await?)
}

/// A member of the group that is named like its topic.
pub(crate) fn options(topic: &Topic) -> Tested<SourceOptions> {
    let group = Group::new(topic.as_str())?;
    Ok(SourceOptions::new(group, vec![topic.clone()]).with_commit_interval(Duration::from_millis(50)))
}

/// A broker of its own, whose sessions are as short with both protocols, and a way to it that can be cut.
pub(crate) fn short_sessions() -> Broker {
    let millis = SESSION.as_millis().to_string();
    Broker::default()
        .with_links(1)
        .with_property("group.consumer.session.timeout.ms", millis)
        .with_property("group.consumer.heartbeat.interval.ms", "1000")
}

/// A test on the shared broker, once with each protocol.
pub(crate) fn shared<F: Future<Output = Tested>>(
    name: &str,
    test: impl Fn(String, GroupProtocol) -> F + Clone + Send + 'static,
) -> Vec<Trial> {
    let each = |(protocol, label): (GroupProtocol, &str)| {
        let test = test.clone();
        shared_trial(format!("{name}@{label}"), Need::Kafka, move |url| block(test(url, protocol)))
    };
    PROTOCOLS.map(each).into()
}

/// A test with a broker of its own, once with each protocol.
pub(crate) fn private<F: Future<Output = Tested>>(
    name: &str,
    test: impl Fn(Server, GroupProtocol) -> F + Clone + Send + 'static,
) -> Vec<Trial> {
    let each = |(protocol, label): (GroupProtocol, &str)| {
        let test = test.clone();
        private_trial(format!("{name}@{label}"), Need::Kafka, move |home| {
            let server = launch_kafka(&home, short_sessions())?;
            block(test(server, protocol))
        })
    };
    PROTOCOLS.map(each).into()
}

fn main() {
    if let Some(role) = child::role() {
        return child::run(role);
    }
    let mut arguments = libtest_mimic::Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(3));
    let trials = [
        begin::trials(),
        fixed::trials(),
        foreign::trials(),
        full::trials(),
        hand_over::trials(),
        session::trials(),
    ];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit();
}
