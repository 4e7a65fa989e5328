//! What ownership is about in the conformance suite, once more with `group.protocol=consumer` (KIP-848) on a real Apache Kafka.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{Backend, Error};
use ebus_kafka::{GroupProtocol, KafkaBackend, KafkaConfig};
use ebus_testkit::brokers::Need;
use ebus_testkit::conformance::{self, Harness, LogFaults, Setup};

#[path = "support/lacks.rs"]
mod lacks;
#[path = "support/log_faults.rs"]
mod log_faults;

use log_faults::KafkaLogFaults;

/// Groups of cases in which members come, go, and hand over. All others do not depend on the protocol.
const CASES: [&str; 8] = ["b02", "c09", "d", "e", "f01", "f02", "g", "i01"];

struct Consumer {
    url: String,
}

#[async_trait]
impl Harness for Consumer {
    async fn connect(&self) -> Result<Arc<dyn Backend>, Error> {
        let config = KafkaConfig::from_url(&self.url)?
            .with_group_protocol(GroupProtocol::Consumer)
            .with_session_timeout(Duration::from_secs(6));
        Ok(Arc::new(KafkaBackend::connect(config).await?))
    }

    fn log_faults(&self) -> Option<Arc<dyn LogFaults>> {
        Some(Arc::new(KafkaLogFaults::new(&self.url)))
    }

    fn lacks(&self, case: &str) -> Option<String> {
        lacks::on_request(case)
    }

    /// A heartbeat is the broker's to set, 5 s by default, and each hand-over takes one or two.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

fn main() {
    let only = |case: &str| CASES.iter().any(|begin| case.starts_with(begin));
    conformance::run_only("consumer", only, || Setup::shared(Need::Kafka, |url| Consumer { url }));
}
