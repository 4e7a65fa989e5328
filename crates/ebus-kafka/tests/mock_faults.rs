//! Ownership while a coordinator fails in every way that librdkafka's mock cluster can, and receipts of brokers that say less.

use std::time::{Duration, Instant};

use ebus_core::{Backend, ErrorKind, Group, Message, Publish, SourceOptions, Topic};
use libtest_mimic::Trial;
use rdkafka::types::RDKafkaApiKey as Api;
use rdkafka::types::RDKafkaRespErr::{self as Code, *};

#[path = "support/mock.rs"]
mod mock;
#[path = "support/raw.rs"]
mod raw;

use mock::{Mock, Mocked};
use raw::{Raw, Tested, block, fresh, go_on, publish, until};

/// What a broker or the connection may answer to a commit while groups and coordinators move.
const ANSWERS: [Code; 9] = [
    RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
    RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
    RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
    RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID,
    RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
    RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
    RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
    RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
    RD_KAFKA_RESP_ERR__TRANSPORT,
];

fn trial<F: Future<Output = Tested>>(name: &str, test: impl FnOnce(Mock) -> F + Send + 'static) -> Trial {
    Trial::test(name, move || block(test(Mock::start(1)?)))
}

fn options(topic: &Topic) -> Tested<SourceOptions> {
    Ok(SourceOptions::new(Group::new(topic.as_str())?, vec![topic.clone()])
        .with_commit_interval(Duration::from_millis(20))
        .with_revoke_within(Duration::from_secs(20)))
}

/// Two partitions, 40 messages, and one member that has them all.
async fn one_member(mock: &Mock, what: &str, session: u64) -> Tested<(std::sync::Arc<Mocked>, Topic, Raw)> {
    let session = Duration::from_secs(session);
    let backend = Mocked::connect(mock, |config| config.with_session_timeout(session)).await?;
    let topic = fresh(what)?;
    mock.create_topic(topic.as_str(), 2)?;
    publish(&*backend, &topic, 40).await?;
    let mut member = Raw::join(&*backend, options(&topic)?).await?;
    until("all messages are there", [&mut member], |[member]| member.inbound.len() == 40).await?;
    Ok((backend, topic, member))
}

/// A second member has joined, and the first one holds a revocation.
async fn at_a_hand_over(mock: &Mock, what: &str) -> Tested<([std::sync::Arc<Mocked>; 2], Topic, [Raw; 2])> {
    // To the mock a rebalance takes a second less than a session. What is then left until the member's own clock says that all is lost
    // can pass on a busy machine.
    for _ in 0..5 {
        let (backend, topic, mut first) = one_member(mock, what, 3).await?;
        let other = Mocked::connect(mock, |config| config).await?;
        let mut second = Raw::join(&*other, options(&topic)?).await?;
        until("a partition is revoked or lost", [&mut first, &mut second], |[first, _]| {
            !first.revoking.is_empty() || !first.lost.is_empty()
        })
        .await?;
        if first.lost.is_empty() {
            return Ok(([backend, other], topic, [first, second]));
        }
    }
    Err("no hand-over in five tries: all was lost before".into())
}

async fn finished(backend: &dyn Backend, topic: &Topic) -> Tested<u64> {
    let committed = backend.committed(&Group::new(topic.as_str())?, topic).await?;
    Ok(committed.iter().filter_map(|one| one.position.as_ref()).map(|position| position.watermark.0).sum())
}

/// A commit is refused three times in a row, for any reason that passes: the member lives, and what finished is committed.
async fn a_refused_commit_is_made_again(mock: Mock, code: Code) -> Tested {
    let (backend, topic, mut member) = one_member(&mock, "refused", 3).await?;
    mock.with(move |cluster| cluster.request_errors(Api::OffsetCommit, &[code; 3]));
    member.finish(|_| true);
    // Where membership was over, all of it comes again.
    let end = Instant::now() + raw::PATIENCE;
    while finished(&*backend, &topic).await? < 40 {
        assert!(Instant::now() < end, "not in time: everything is committed: {member:#?}");
        go_on([&mut member], Duration::from_millis(100)).await;
        member.finish(|_| true);
    }
    assert!(member.ended.is_none(), "{member:#?}");
    assert_eq!(member.partitions(), [0, 1]);
    member.close().await?;
    Ok(())
}

/// The same while a revocation is held, and its last commit is among the refused: the next owner begins where it ended, or, where
/// the first was told that it is no member any more, repeats.
async fn a_commit_refused_at_a_hand_over(mock: Mock, code: Code) -> Tested {
    let ([backend, _other], topic, [mut first, mut second]) = at_a_hand_over(&mock, "handed").await?;
    mock.with(move |cluster| cluster.request_errors(Api::OffsetCommit, &[code; 2]));
    first.finish(|_| true);
    first.release();
    until("both have one", [&mut first, &mut second], |[first, second]| {
        first.finish(|_| true);
        if !first.revoking.is_empty() {
            first.release();
        }
        first.owned.len() == 1 && second.owned.len() == 1
    })
    .await?;
    go_on([&mut first, &mut second], Duration::from_millis(300)).await;
    first.finish(|_| true);
    second.finish(|_| true);
    let end = Instant::now() + raw::PATIENCE;
    while finished(&*backend, &topic).await? < 40 {
        assert!(Instant::now() < end, "not in time: everything is committed: {first:#?} {second:#?}");
        go_on([&mut first, &mut second], Duration::from_millis(100)).await;
        first.finish(|_| true);
        second.finish(|_| true);
    }
    assert!(first.ended.is_none() && second.ended.is_none(), "{first:#?} {second:#?}");
    first.close().await?;
    second.close().await?;
    Ok(())
}

/// librdkafka gives a handle up that is told so. The name was this member's own, so it goes on under another.
async fn p9_a_member_that_is_fenced_goes_on_under_another_name(mock: Mock) -> Tested {
    let (backend, topic, mut member) = one_member(&mock, "fenced", 3).await?;
    mock.with(|cluster| cluster.request_errors(Api::Heartbeat, &[RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID]));
    until("both are lost", [&mut member], |[member]| member.lost.len() == 2).await?;
    assert!(member.troubles.iter().any(|error| error.kind() == ErrorKind::Fenced), "{member:#?}");
    until("both are there again", [&mut member], |[member]| {
        member.partitions() == [0, 1] && member.inbound.len() == 80
    })
    .await?;
    let end = Instant::now() + raw::PATIENCE;
    while finished(&*backend, &topic).await? < 40 {
        assert!(Instant::now() < end, "not in time: everything is committed: {member:#?}");
        member.finish(|_| true);
        go_on([&mut member], Duration::from_millis(100)).await;
    }
    assert!(member.ended.is_none(), "{member:#?}");
    member.close().await?;
    Ok(())
}

/// librdkafka is silent about a lost membership while a revocation is held: the answer to our own probe tells.
async fn p3_membership_that_is_lost_while_a_revocation_is_held_is_seen(mock: Mock) -> Tested {
    let (_backends, _, [mut first, mut second]) = at_a_hand_over(&mock, "held").await?;
    mock.with(|cluster| cluster.request_errors(Api::OffsetCommit, &[RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID]));
    let begun = Instant::now();
    until("both are lost", [&mut first, &mut second], |[first, _]| first.lost.len() == 2).await?;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(4), "seen after {took:?}");
    assert!(first.released.is_empty());
    until("both members have one again", [&mut first, &mut second], |[first, second]| {
        if !first.revoking.is_empty() {
            first.release();
        }
        if !second.revoking.is_empty() {
            second.release();
        }
        first.owned.len() == 1 && second.owned.len() == 1
    })
    .await?;
    first.close().await?;
    second.close().await?;
    Ok(())
}

/// A claim that is refused at once is not made again at once.
async fn refused_commits_are_paced(mock: Mock) -> Tested {
    let backend = Mocked::connect(&mock, |config| config).await?;
    let topic = fresh("paced")?;
    mock.create_topic(topic.as_str(), 2)?;
    publish(&*backend, &topic, 40).await?;
    let refusals = [RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS; 25];
    let options = options(&topic)?.with_commit_interval(Duration::from_millis(200));
    let mut member = Raw::join(&*backend, options).await?;
    // Nothing is assigned yet: the next commit is the claim.
    mock.with(move |cluster| cluster.request_errors(Api::OffsetCommit, &refusals));
    let begun = Instant::now();
    until("all messages are there", [&mut member], |[member]| member.inbound.len() == 40).await?;
    // 25 pauses of 200 ms; the rest is what the mock waits before a group begins.
    assert!(begun.elapsed() >= Duration::from_millis(4_900), "25 refusals took {:?}", begun.elapsed());
    member.close().await?;
    Ok(())
}

/// The coordinator is away for longer than the session: everything is lost by our own clock before that, and taken over again
/// when it is back; what was finished and not committed meanwhile runs again, and nothing is skipped.
async fn p3_without_a_coordinator_all_is_lost_by_our_own_clock(mock: Mock) -> Tested {
    let backend =
        Mocked::connect(&mock, |config| config.with_session_timeout(Duration::from_secs(6))).await?;
    let topic = fresh("away")?;
    mock.create_topic(topic.as_str(), 2)?;
    publish(&*backend, &topic, 40).await?;
    let mut member = Raw::join(&*backend, options(&topic)?).await?;
    until("all messages are there", [&mut member], |[member]| member.inbound.len() == 40).await?;
    let leases: Vec<_> = member.owned.values().map(|assigned| assigned.lease.clone()).collect();
    go_on([&mut member], Duration::from_secs(8)).await;
    assert!(member.lost.is_empty(), "a session lasts while its probes are answered: {member:#?}");
    assert!(leases.iter().all(|lease| lease.is_current(Instant::now())));
    mock.with(|cluster| cluster.broker_down(1))?;
    let begun = Instant::now();
    until("both are lost", [&mut member], |[member]| member.lost.len() == 2).await?;
    let took = begun.elapsed();
    assert!(
        took < Duration::from_millis(5_500),
        "lost after {took:?}, when the broker may have given them away"
    );
    assert!(leases.iter().all(|lease| !lease.is_current(Instant::now())), "a lease outlived its session");
    assert!(member.troubles.iter().any(|error| error.kind() == ErrorKind::Fenced), "{member:#?}");
    assert_eq!(member.finish(|_| true), 40);
    assert_eq!(member.source().stale(), 40, "what was settled after the loss is void");
    go_on([&mut member], Duration::from_secs(3)).await;
    mock.with(|cluster| cluster.broker_up(1))?;
    until("all of it comes again", [&mut member], |[member]| member.inbound.len() == 40).await?;
    assert_eq!(member.partitions(), [0, 1]);
    member.close().await?;
    Ok(())
}

/// Of a cluster that has just started, no broker says for a moment that it is the group's coordinator.
async fn p9_a_join_waits_for_a_coordinator_that_is_not_one_yet(
    mock: Mock,
    asked: Api,
    times: usize,
) -> Tested {
    // A busy machine takes longer for each refusal.
    let patient = Duration::from_secs(40);
    let backend = Mocked::connect(&mock, |config| config.with_request_timeout(patient)).await?;
    let topic = fresh("young")?;
    mock.create_topic(topic.as_str(), 2)?;
    publish(&*backend, &topic, 40).await?;
    let refusals = vec![RD_KAFKA_RESP_ERR_NOT_COORDINATOR; times];
    mock.with(move |cluster| cluster.request_errors(asked, &refusals));
    let mut member = Raw::join(&*backend, options(&topic)?).await?;
    until("all messages are there", [&mut member], |[member]| member.inbound.len() == 40).await?;
    member.close().await?;
    Ok(())
}

/// A broker that is away for less than a session is no loss, and what finished meanwhile is committed afterwards.
async fn a_broker_that_is_away_for_a_moment_is_no_loss(mock: Mock) -> Tested {
    let (backend, topic, mut member) = one_member(&mock, "moment", 12).await?;
    mock.with(|cluster| cluster.broker_down(1))?;
    member.finish(|_| true);
    go_on([&mut member], Duration::from_secs(5)).await;
    mock.with(|cluster| cluster.broker_up(1))?;
    let end = Instant::now() + raw::PATIENCE;
    loop {
        go_on([&mut member], Duration::from_millis(100)).await;
        assert!(member.lost.is_empty(), "{member:#?}");
        if finished(&*backend, &topic).await.is_ok_and(|finished| finished == 40) {
            break;
        }
        assert!(Instant::now() < end, "not in time: everything is committed: {member:#?}");
    }
    member.close().await?;
    Ok(())
}

/// A broker that has a batch already need not say where: nobody gets a receipt with somebody else's offset for that.
async fn p1_a_receipt_invents_no_offset_for_what_the_broker_has_already(mock: Mock) -> Tested {
    // Together in one batch: the second and third look as if they began the log.
    let backend = Mocked::connect(&mock, |config| config.with_linger(Duration::from_millis(200))).await?;
    let topic = fresh("had")?;
    mock.create_topic(topic.as_str(), 1)?;
    let one = async || {
        backend.publisher().publish(Publish::new(topic.clone(), Message::new("m").with_key("k"))).await
    };
    let three = async || tokio::join!(one(), one(), one());
    let (first, second, third) = three().await;
    assert_eq!([first?.offset, second?.offset, third?.offset], [0, 1, 2]);
    mock.with(|cluster| {
        cluster.request_errors(Api::Produce, &[RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER]);
    });
    let (first, second, third) = three().await;
    for answer in [first, second, third] {
        let error = answer.err().ok_or("a receipt with an offset that nobody said")?;
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(error.to_string().contains("is stored"), "{error}");
    }
    // The mock has refused that batch; what comes next has its place again.
    let (first, second, third) = three().await;
    assert_eq!([first?.offset, second?.offset, third?.offset], [3, 4, 5]);
    backend.close(Duration::from_secs(5)).await?;
    Ok(())
}

/// With two batches of a partition on their way, the first refused and the second not, the second overtakes here; a real broker
/// refuses it for its place, and librdkafka answers that by sending what other brokers have not answered once more, under a number
/// by which nobody knows it again.
async fn p7_no_batch_is_sent_beside_an_earlier_one_of_its_partition(mock: Mock) -> Tested {
    let backend = Mocked::connect(&mock, |config| {
        config.with_linger(Duration::ZERO).property("batch.num.messages", "1")
    })
    .await?;
    let topic = fresh("turns")?;
    mock.create_topic(topic.as_str(), 1)?;
    publish(&*backend, &topic, 1).await?;
    mock.with(|cluster| {
        cluster.request_errors(Api::Produce, &[RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS]);
        cluster.broker_round_trip_time(1, Duration::from_millis(200))
    })?;
    let stored = publish(&*backend, &topic, 4).await?;
    assert_eq!(stored, [(0, 1), (0, 2), (0, 3), (0, 4)]);
    backend.close(Duration::from_secs(5)).await?;
    Ok(())
}

fn main() {
    let arguments = libtest_mimic::Arguments::from_args();
    let mut trials = vec![
        trial(
            "p3_membership_that_is_lost_while_a_revocation_is_held_is_seen",
            p3_membership_that_is_lost_while_a_revocation_is_held_is_seen,
        ),
        trial(
            "p9_a_member_that_is_fenced_goes_on_under_another_name",
            p9_a_member_that_is_fenced_goes_on_under_another_name,
        ),
        trial(
            "p7_no_batch_is_sent_beside_an_earlier_one_of_its_partition",
            p7_no_batch_is_sent_beside_an_earlier_one_of_its_partition,
        ),
        trial("refused_commits_are_paced", refused_commits_are_paced),
        trial(
            "p1_a_receipt_invents_no_offset_for_what_the_broker_has_already",
            p1_a_receipt_invents_no_offset_for_what_the_broker_has_already,
        ),
        trial(
            "p3_without_a_coordinator_all_is_lost_by_our_own_clock",
            p3_without_a_coordinator_all_is_lost_by_our_own_clock,
        ),
        trial("p9_a_join_waits_for_a_coordinator_that_has_no_offsets_yet", |mock| {
            p9_a_join_waits_for_a_coordinator_that_is_not_one_yet(mock, Api::OffsetFetch, 4)
        }),
        trial("p9_a_join_waits_for_a_coordinator_that_takes_no_offsets_yet", |mock| {
            p9_a_join_waits_for_a_coordinator_that_is_not_one_yet(mock, Api::OffsetCommit, 6)
        }),
        trial("a_broker_that_is_away_for_a_moment_is_no_loss", a_broker_that_is_away_for_a_moment_is_no_loss),
    ];
    for code in ANSWERS {
        let name = format!("{code:?}").replace("RD_KAFKA_RESP_ERR_", "").trim_matches('_').to_lowercase();
        let name = name.trim_start_matches('_');
        trials.push(trial(&format!("d07_a_commit_refused_by_{name}_is_made_again"), move |mock| {
            a_refused_commit_is_made_again(mock, code)
        }));
        trials.push(trial(&format!("d07_a_commit_refused_by_{name}_at_a_hand_over"), move |mock| {
            a_commit_refused_at_a_hand_over(mock, code)
        }));
    }
    libtest_mimic::run(&arguments, trials).exit();
}
