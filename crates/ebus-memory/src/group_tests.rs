use ebus_core::ErrorKind;

use super::*;
use crate::retention::Limits;

fn member(id: u64, now: Instant) -> Arc<Member> {
    Arc::new(Member::new(MemberId(id), Duration::from_secs(1), now, now))
}

fn epoch_of(member: &Member) -> Epoch {
    let assigned = member.take_mail().into_iter().find_map(|mail| match mail {
        Mail::Assigned { epoch, .. } => Some(epoch),
        _ => None,
    });
    assigned.expect("it was assigned")
}

/// A source reads its mail before it commits, so a stale commit only comes when the two cross: here they do.
#[test]
fn p3_a_stale_commit_or_release_is_fenced_and_changes_nothing() {
    let now = Instant::now();
    let name = Group::new("billing").expect("legal");
    let group = GroupState::new(name, Duration::from_secs(30), now);
    let limits = Limits { messages: 10, bytes: 1_000 };
    let orders = Topic::new("orders").expect("legal");
    let topic = Arc::new(TopicLog::new(orders.clone(), ebus_core::LogMark(7), 1, limits));
    let log = &topic.partitions[0];
    log.skip(10);
    let (one, two) = (member(1, now), member(2, now));
    group.join(&one, std::slice::from_ref(&orders), StartPosition::Earliest, std::slice::from_ref(&topic));
    let first = epoch_of(&one);
    group.commit(one.id, log, first, &Position::at(NextOffset(3))).expect("its own");
    group.join(&two, &[orders], StartPosition::Earliest, &[]);
    assert!(group.lose(&log.id, Some(two.id)));
    let second = epoch_of(&two);
    assert!(second > first);
    for (who, epoch) in [(one.id, first), (one.id, second), (two.id, first)] {
        let error = group.commit(who, log, epoch, &Position::at(NextOffset(9))).expect_err("stale");
        assert_eq!(error.kind(), ErrorKind::Fenced);
        assert!(group.release(who, vec![(log.id.clone(), epoch)]).is_empty());
    }
    assert_eq!(group.committed(log), Some((Position::at(NextOffset(3)), second)));
    assert_eq!(group.owners(), [(log.id.clone(), two.id)]);
    group.commit(two.id, log, second, &Position::at(NextOffset(9))).expect("its own");
    assert_eq!(group.release(two.id, vec![(log.id.clone(), second)]), std::slice::from_ref(&log.id));
}
