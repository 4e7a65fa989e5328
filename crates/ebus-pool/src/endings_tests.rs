use ebus_core::Epoch;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn owned(slot: u32, epoch: u64) -> Owned {
    Owned { slot: Slot(slot), epoch: Epoch(epoch) }
}

fn left(failing: usize, cancelled: usize) -> LeftInShard {
    LeftInShard { failing, cancelled, ..LeftInShard::default() }
}

#[tokio::test(start_paused = true)]
async fn p3_an_ownership_has_ended_when_the_last_shard_says_so_and_not_before() {
    let now = Instant::now();
    let mut endings = Endings::default();
    assert!(endings.is_empty());
    endings.begin(owned(0, 1), 3, Then::Release, now + SECOND);
    endings.begin(owned(1, 1), 2, Then::Forget, now + SECOND);
    assert!(endings.confirm(owned(0, 2), left(0, 0)).is_none(), "of another epoch");
    endings.dropped(owned(0, 1));
    endings.dropped(owned(0, 1));
    assert!(endings.confirm(owned(0, 1), left(1, 0)).is_none());
    assert!(endings.confirm(owned(0, 1), left(2, 3)).is_none());
    assert!(endings.contains(owned(0, 1)) && !endings.contains(owned(0, 2)));
    assert!(endings.has_slot(Slot(0)) && endings.has_slot(Slot(1)) && !endings.has_slot(Slot(2)));
    let ended = endings.confirm(owned(0, 1), left(0, 1)).expect("the last one");
    assert_eq!((ended.then, ended.left.failing, ended.left.cancelled), (Then::Release, 3, 4));
    // Two were dropped and five were never looked at; seven of all had run.
    assert_eq!(ended.never_started(5), 0);
    assert_eq!(ended.never_started(6), 1);
    assert!(!endings.has_slot(Slot(0)) && !endings.is_empty());
    assert!(endings.confirm(owned(0, 1), left(0, 0)).is_none(), "it has ended");
    assert!(endings.is_lost(owned(1, 1)) && !endings.is_lost(owned(0, 1)));
}

#[tokio::test(start_paused = true)]
async fn p3_a_hand_over_is_cancelled_before_its_deadline_and_all_else_at_it() {
    let now = Instant::now();
    let cancelled_at = |then, within: Duration| {
        let mut endings = Endings::default();
        endings.begin(owned(0, 1), 1, then, now + within);
        endings.next_cancel().expect("not cancelled yet") - now
    };
    assert_eq!(cancelled_at(Then::Release, 10 * SECOND), Duration::from_millis(9_750));
    assert_eq!(cancelled_at(Then::Release, Duration::from_millis(400)), Duration::from_millis(300));
    assert_eq!(cancelled_at(Then::Release, Duration::ZERO), Duration::ZERO);
    for then in [Then::Drain, Then::Forget] {
        assert_eq!(cancelled_at(then, 10 * SECOND), 10 * SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn p3_an_end_comes_to_more_or_sooner_never_to_less_or_later() {
    let now = Instant::now();
    let mut endings = Endings::default();
    assert!(!endings.hasten(owned(0, 1), Then::Forget, now), "it is not ending");
    endings.begin(owned(0, 1), 1, Then::Drain, now + 10 * SECOND);
    assert!(endings.hasten(owned(0, 1), Then::Drain, now + 20 * SECOND));
    assert_eq!(endings.next_cancel(), Some(now + 10 * SECOND));
    assert!(endings.hasten(owned(0, 1), Then::Release, now + 8 * SECOND));
    assert_eq!(endings.next_cancel(), Some(now + Duration::from_millis(7_750)));
    assert!(endings.hasten(owned(0, 1), Then::Drain, now + 9 * SECOND));
    assert_eq!(endings.next_cancel(), Some(now + Duration::from_millis(7_750)));
    assert!(!endings.is_lost(owned(0, 1)));
    assert!(endings.hasten(owned(0, 1), Then::Forget, now + 9 * SECOND));
    assert!(endings.is_lost(owned(0, 1)));
    assert!(endings.hasten(owned(0, 1), Then::Release, now + 9 * SECOND));
    assert_eq!(endings.confirm(owned(0, 1), left(0, 0)).map(|ended| ended.then), Some(Then::Forget));
}

#[tokio::test(start_paused = true)]
async fn p3_what_is_due_is_cancelled_once() {
    let now = Instant::now();
    let mut endings = Endings::default();
    assert_eq!(endings.next_cancel(), None);
    for (slot, epoch, seconds) in [(0, 1, 1), (0, 2, 2), (1, 1, 3), (2, 1, 4)] {
        endings.begin(owned(slot, epoch), 1, Then::Drain, now + seconds * SECOND);
    }
    let sorted = |mut all: Vec<Owned>| {
        all.sort_unstable();
        all
    };
    assert_eq!(sorted(endings.all()), [owned(0, 1), owned(0, 2), owned(1, 1), owned(2, 1)]);
    assert_eq!(sorted(endings.of_slot(Slot(0))), [owned(0, 1), owned(0, 2)]);
    assert_eq!(endings.next_cancel(), Some(now + SECOND));
    assert!(endings.take_due(now).is_empty());
    assert_eq!(endings.take_due(now + SECOND), [owned(0, 1)]);
    assert!(endings.take_due(now + SECOND).is_empty());
    endings.cancelled(owned(0, 2));
    assert_eq!(endings.next_cancel(), Some(now + 3 * SECOND));
    // Of what is cancelled nothing is cancelled again, however it is hastened.
    endings.hasten_slot(Slot(0), now);
    endings.hasten_slot(Slot(1), now + 2 * SECOND);
    assert_eq!(endings.next_cancel(), Some(now + 2 * SECOND));
    assert!(!endings.all_cancelled());
    endings.hasten_all(now + SECOND);
    assert_eq!(sorted(endings.take_due(now + SECOND)), [owned(1, 1), owned(2, 1)]);
    assert!(endings.all_cancelled());
    assert_eq!(endings.drain().count(), 4);
    assert!(endings.is_empty());
}
