//! The list against a naive model, and its text against any bytes.

use proptest::prelude::*;

use super::*;

/// What happens to a list.
#[derive(Debug, Clone)]
enum Step {
    Park(Vec<u8>, u64),
    Advance(Vec<u8>, u64),
    Stop(Vec<u8>, u64, String),
    Remove(Vec<u8>),
    Finish(Vec<u8>, u64),
    /// So many that are done may stay.
    Forget(usize),
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(Vec::new()), prop::collection::vec(any::<u8>(), 0..3), Just(b"order-1 %2".to_vec())]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (key(), any::<u64>()).prop_map(|(key, at)| Step::Park(key, at)),
        (key(), 0..u64::MAX).prop_map(|(key, at)| Step::Advance(key, at)),
        (key(), any::<u64>(), any::<String>()).prop_map(|(key, at, why)| Step::Stop(key, at, why)),
        key().prop_map(Step::Remove),
        (key(), any::<u64>()).prop_map(|(key, at)| Step::Finish(key, at)),
        (0usize..3).prop_map(Step::Forget),
    ]
}

fn home() -> PartitionId {
    PartitionId::new(Topic::new("orders").expect("legal"), 5)
}

fn dead() -> PartitionId {
    PartitionId::new(Topic::new("orders.dlq").expect("legal"), 3)
}

proptest! {
    /// The model: a plain vector that is searched. Every state survives its text, and takes no more than was reckoned.
    #[test]
    fn p2_the_list_does_what_a_plain_vector_does(steps in prop::collection::vec(step(), 0..60)) {
        let mut set = ParkedSet::default();
        let mut model: Vec<(Vec<u8>, u64, u64, u64, bool, bool)> = Vec::new();
        for step in steps {
            match step {
                Step::Park(key, at) => {
                    set.put(ParkedKey::new(Key::new(key.clone()), home(), (at, Epoch(at / 5)), dead(), at / 2, Timestamp::now(), "boom"));
                    model.retain(|known| known.0 != key);
                    model.push((key, at, at, at / 2, false, false));
                }
                Step::Advance(key, at) => {
                    if let Some(parked) = set.get_mut(&Key::new(key.clone())).filter(|parked| !parked.done) {
                        parked.advance(at, at / 3);
                    }
                    for known in model.iter_mut().filter(|known| known.0 == key && !known.5) {
                        (known.2, known.3, known.4) = (at + 1, at / 3, false);
                    }
                }
                Step::Stop(key, at, why) => {
                    if let Some(parked) = set.get_mut(&Key::new(key.clone())).filter(|parked| !parked.done) {
                        parked.stop(at, &why);
                    }
                    for known in model.iter_mut().filter(|known| known.0 == key && !known.5) {
                        (known.3, known.4) = (at, true);
                    }
                }
                Step::Finish(key, at) => {
                    if let Some(parked) = set.get_mut(&Key::new(key.clone())) {
                        parked.finish(at);
                    }
                    for known in model.iter_mut().filter(|known| known.0 == key) {
                        (known.2, known.4, known.5) = (at, false, true);
                    }
                }
                Step::Forget(most) => {
                    let parked = set.parked().count();
                    set.forget_done(most, usize::MAX);
                    prop_assert_eq!(set.parked().count(), parked, "only those that are done");
                    prop_assert!(set.iter().count() <= parked + most);
                    model.retain(|known| set.get(&Key::new(known.0.clone())).is_some());
                }
                Step::Remove(key) => {
                    set.remove(&Key::new(key.clone()));
                    model.retain(|known| known.0 != key);
                }
            }
            let text = set.encode();
            let cost: usize = set.iter().map(|one| ParkedSet::cost(&one.key, &one.letters.topic)).sum();
            prop_assert!(text.len() <= cost + FRAME_BYTES, "{} of {cost}", text.len());
            prop_assert_eq!(&ParkedSet::decode(&text, &home()).expect("its own text"), &set);
            let mut seen: Vec<_> = set
                .iter()
                .map(|one| (one.key.as_bytes().to_vec(), one.offset, one.redriven.0, one.next_letter, one.stopped, one.done))
                .collect();
            model.sort();
            seen.sort();
            prop_assert_eq!(&seen, &model);
        }
    }

    /// What is asked for at start has a place, whatever is asked later.
    #[test]
    fn p5_as_many_keys_as_fit_do_fit(most in 0usize..100_000, offset in any::<u64>(), error in any::<String>()) {
        let fits = ParkedSet::fits(most, &dead().topic);
        let mut set = ParkedSet::default();
        for number in 0..fits {
            let key = format!("{number:/<256}");
            let since = Timestamp::from_millis(i64::MIN);
            set.put(ParkedKey::new(key.as_str().into(), home(), (offset, Epoch(u64::MAX)), dead(), u64::MAX, since, &error));
        }
        prop_assert_eq!(set.iter().count(), fits);
        let cost: usize = set.iter().map(|one| ParkedSet::cost(&one.key, &one.letters.topic)).sum();
        prop_assert!(fits == 0 || cost <= ParkedSet::room(most));
        prop_assert!(fits == 0 || set.encode().len() <= most);
    }

    #[test]
    fn any_bytes_are_an_error_or_a_list(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = ParkedSet::decode(&bytes, &home());
        let _ = Request::decode(&bytes);
    }

    /// A list that lost its end, or a line, is no shorter list.
    #[test]
    fn p1_a_list_that_was_cut_is_refused(cut in 0usize..400) {
        let mut set = ParkedSet::default();
        for name in ["a", "b", "c"] {
            set.put(ParkedKey::new(name.into(), home(), (7, Epoch(3)), dead(), 9, Timestamp::from_millis(-1), "no such account"));
        }
        let text = set.encode();
        prop_assume!(cut < text.len());
        prop_assert!(ParkedSet::decode(&text[..cut], &home()).is_err());
        let without_one: String = std::str::from_utf8(&text).expect("is text").lines()
            .filter(|line| !line.starts_with("b "))
            .fold(String::new(), |text, line| text + line + "\n");
        prop_assert!(ParkedSet::decode(without_one.as_bytes(), &home()).is_err());
    }

    #[test]
    fn a_request_survives_its_text(key in key(), offset in any::<u64>(), asked in any::<u128>()) {
        let request = Request { key: Key::new(key), offset, asked };
        prop_assert_eq!(Request::decode(&request.encode()), Some(request));
    }
}

/// Each that is forgotten may run again.
#[test]
fn p6_of_what_is_done_the_oldest_is_forgotten_and_no_more_than_must() {
    let mut set = ParkedSet::default();
    for (since, name) in (0..).zip(["e", "d", "c", "b", "a"]) {
        let since = Timestamp::from_millis(since);
        let mut parked = ParkedKey::new(name.into(), home(), (7, Epoch(3)), dead(), 9, since, "boom");
        parked.finish(8);
        set.put(parked);
    }
    let one = ParkedSet::cost(&"a".into(), &dead().topic);
    let left = |set: &ParkedSet| set.iter().map(|one| one.key.to_string()).collect::<String>();
    set.forget_done(5, FRAME_BYTES + 3 * one);
    assert_eq!(left(&set), "abc");
    set.forget_done(2, usize::MAX);
    assert_eq!(left(&set), "ab");
    set.forget_done(2, FRAME_BYTES + 2 * one);
    assert_eq!(left(&set), "ab");
}
