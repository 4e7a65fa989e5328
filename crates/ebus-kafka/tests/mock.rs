//! The conformance suite on librdkafka's mock cluster, as far as that goes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{Backend, Error};
use ebus_testkit::conformance::{self, Harness, Setup};

#[path = "support/lacks.rs"]
mod lacks;
#[path = "support/mock.rs"]
mod support;

use support::{Mock, Mocked};

struct OnMock {
    mock: Mock,
}

#[async_trait]
impl Harness for OnMock {
    async fn connect(&self) -> Result<Arc<dyn Backend>, Error> {
        Ok(Mocked::connect(&self.mock, |config| config).await?)
    }

    fn lacks(&self, case: &str) -> Option<String> {
        let one_of = |cases: &[&str]| cases.iter().any(|begin| case.starts_with(begin));
        if one_of(&["e03", "e04", "e06"]) {
            let why = "the mock removes no records and no topics, gives out what was aborted, and lets only members commit";
            return Some(why.into());
        }
        let moves =
            one_of(&["c10_at_most_once_is_handed_over", "d05", "d06", "d09", "d11", "d14", "d15", "g06"]);
        moves
            .then(|| {
                "a rebalance of the mock takes a session less a second, in which it answers no commit and cannot be asked \
                who is a member: that outlasts the lease"
                    .into()
            })
            .or_else(|| lacks::on_request(case))
    }

    /// The mock waits 3 s before the first rebalance of a group, and cannot be told otherwise.
    fn patience(&self) -> Duration {
        Duration::from_secs(45)
    }
}

fn main() {
    conformance::run_only(
        "mock",
        |_| true,
        || match Mock::start(1) {
            Ok(mock) => Setup::Ready(Arc::new(OnMock { mock })),
            Err(error) => Setup::Missing { reason: error.to_string(), required: true },
        },
    );
}
