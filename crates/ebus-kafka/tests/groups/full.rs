//! A position that is full: of what finished above an unfinished message no more fits into the text that is committed.

use std::time::Duration;

use ebus_core::{Backend, ErrorKind, LedgerLimits, PartitionId, TopicSpec};
use ebus_kafka::GroupProtocol;
use ebus_testkit::conformance::LogFaults;
use libtest_mimic::Trial;

use crate::log_faults::KafkaLogFaults;
use crate::raw::{Raw, Tested, fresh, go_on, publish, until};
use crate::{connect, options, shared};

pub(crate) fn trials() -> Vec<Trial> {
    shared("p8_a_partition_that_waits_for_its_position_says_so", p8_a_partition_that_waits_says_so)
}

/// Gaps between the offsets let the text grow before the span does. That the partition is then not read on is told, once, and it
/// goes on by itself.
async fn p8_a_partition_that_waits_says_so(url: String, protocol: GroupProtocol) -> Tested {
    const MESSAGES: usize = 60;
    let backend = connect(&url, protocol).await?;
    let topic = fresh("full")?;
    backend.create_topic(&TopicSpec::new(topic.clone(), 1)).await?;
    let (partition, faults) = (PartitionId::new(topic.clone(), 0), KafkaLogFaults::new(&url));
    for _ in 0..MESSAGES {
        publish(&backend, &topic, 1).await?;
        faults.skip_offsets(&partition, 20).await?;
    }
    let limits = LedgerLimits::default().with_max_position_len(140);
    let mut member = Raw::join(&backend, options(&topic)?.with_limits(limits)).await?;
    let full =
        |member: &Raw| member.troubles.iter().filter(|error| error.kind() == ErrorKind::Overloaded).count();
    until("it is told that the partition waits", [&mut member], |[member]| {
        member.finish(|inbound| inbound.token.offset() > 0);
        full(member) > 0
    })
    .await?;
    let text = member.troubles.iter().find(|error| error.kind() == ErrorKind::Overloaded);
    assert!(text.is_some_and(|error| error.to_string().contains(&format!("{topic}/0"))), "{member:#?}");
    go_on([&mut member], Duration::from_millis(500)).await;
    // The oldest is finished, and what comes then as soon as it comes.
    let last = publish(&backend, &topic, 1).await?[0].1;
    let mut done = false;
    until("the rest is read", [&mut member], |[member]| {
        member.finish(|inbound| {
            done |= inbound.token.offset() == last;
            true
        });
        done
    })
    .await?;
    assert_eq!(full(&member), 1, "it was told again and again: {member:#?}");
    member.close().await?;
    Ok(())
}
