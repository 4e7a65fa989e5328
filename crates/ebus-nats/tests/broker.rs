//! What this backend does on a real nats-server beyond the conformance suite.

use ebus_testkit::brokers::{Need, private_trial, shared_trial};
use libtest_mimic::Trial;

#[path = "broker/batches.rs"]
mod batches;
#[path = "broker/damage.rs"]
mod damage;
#[path = "broker/foreign.rs"]
mod foreign;
#[path = "broker/group.rs"]
mod group;
#[path = "broker/late.rs"]
mod late;
#[path = "broker/left.rs"]
mod left;
#[path = "broker/members.rs"]
mod members;
#[path = "broker/odd.rs"]
mod odd;
#[path = "broker/publish.rs"]
mod publish;
#[path = "broker/remains.rs"]
mod remains;
mod support;
#[path = "broker/trouble.rs"]
mod trouble;

use support::drive::{Tested, run};

/// A test on the shared server.
fn shared<F: Future<Output = Tested>>(name: &str, test: impl FnOnce(String) -> F + Send + 'static) -> Trial {
    shared_trial(name, Need::Nats, move |url| run(test(url)))
}

fn main() {
    let args = libtest_mimic::Arguments::from_args();
    let mut trials = Vec::new();
    trials.extend(group::trials());
    trials.extend(members::trials());
    trials.extend(publish::trials());
    trials.extend(batches::trials());
    trials.extend(late::trials());
    trials.extend(left::trials());
    trials.extend(remains::trials());
    trials.extend(damage::trials());
    trials.extend(foreign::trials());
    trials.extend(odd::trials());
    trials.extend(
        trouble::trials()
            .into_iter()
            .map(|(name, test)| private_trial(name, Need::Nats, move |home| run(test(home)))),
    );
    libtest_mimic::run(&args, trials).exit();
}
