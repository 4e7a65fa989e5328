//! The budget beside a naive model: a list of what is held.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Read,
    Take { slot: u32, bytes: usize },
    Give { pick: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = prop_oneof![0usize..200, 1_000usize..20_000, Just(1 << 20)];
    let step = prop_oneof![
        1 => Just(Step::Read),
        5 => (0u32..4, bytes).prop_map(|(slot, bytes)| Step::Take { slot, bytes }),
        4 => (0usize..64).prop_map(|pick| Step::Give { pick }),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    /// Whatever comes and goes: what is held is what came and did not go, no read asks for more than is free, and something may
    /// be read as long as anything is free.
    #[test]
    fn p5_agrees_with_the_naive_model(steps in steps(), max_messages in 1usize..3_000, max_bytes in 1usize..4 << 20) {
        let mut budget = Budget::new(max_messages, max_bytes);
        let mut held: Vec<(u32, usize)> = Vec::new();
        for step in steps {
            match step {
                Step::Read => budget.begin_read(),
                Step::Take { slot, bytes } => {
                    budget.take(Slot(slot), bytes);
                    held.push((slot, bytes));
                }
                Step::Give { pick } if !held.is_empty() => {
                    let (slot, bytes) = held.swap_remove(pick % held.len());
                    budget.give(Slot(slot), bytes);
                }
                Step::Give { .. } => {}
            }
            let count = |of: &dyn Fn(u32) -> bool| {
                let of: Vec<_> = held.iter().filter(|(slot, _)| of(*slot)).collect();
                Held { messages: of.len(), bytes: of.iter().map(|(_, bytes)| bytes).sum() }
            };
            let all = count(&|_| true);
            prop_assert_eq!(budget.held(), all);
            let (messages, bytes) = (max_messages.saturating_sub(all.messages), max_bytes.saturating_sub(all.bytes));
            prop_assert_eq!(budget.room() > 0, messages > 0 && bytes > 0);
            prop_assert!(budget.room() <= messages.div_ceil(4).clamp(1, LARGEST_READ));
            let nearly =
                budget.room() == 0 || messages < max_messages / NEARLY_FULL || bytes < max_bytes / NEARLY_FULL;
            prop_assert_eq!(budget.is_nearly_full(), nearly);
            for slot in 0..5 {
                let own = count(&|of| of == slot);
                prop_assert_eq!(budget.held_by(Slot(slot)), own);
                for partitions in [0, 1, 2, 7, 4_000] {
                    // Alone it may hold all; among others its share, and what is free.
                    let share = (max_messages / partitions.max(1)).max(LEAST_SHARE).min(max_messages);
                    let (may_hold, may_weigh) = match partitions {
                        0 | 1 => (max_messages, max_bytes),
                        _ => (share.max(messages), (max_bytes / partitions).max(bytes)),
                    };
                    let over = own.messages > may_hold || own.bytes > may_weigh;
                    prop_assert_eq!(budget.is_over(Slot(slot), partitions, false), over);
                    // Once it was paused it comes back when it holds a quarter less.
                    let paused = own.messages > may_hold - may_hold / 4 || own.bytes > may_weigh - may_weigh / 4;
                    prop_assert_eq!(budget.is_over(Slot(slot), partitions, true), paused);
                }
            }
        }
    }
}

/// The largest message seen lately counts, a sixteenth less with each read that brings any.
#[test]
fn p5_what_a_read_may_weigh_follows_what_was_seen() {
    let mut budget = Budget::new(65_536, 64 << 20);
    budget.take(Slot(0), 1 << 20);
    budget.give(Slot(0), 1 << 20);
    assert_eq!(budget.room(), 16, "a quarter of 64 MiB");
    budget.begin_read();
    budget.take(Slot(0), 10);
    budget.give(Slot(0), 10);
    assert_eq!(budget.room(), 17);
    budget.take(Slot(0), 10);
    budget.give(Slot(0), 10);
    assert_eq!(budget.room(), 17, "once a read");
    budget.take(Slot(0), 2 << 20);
    budget.give(Slot(0), 2 << 20);
    assert_eq!(budget.room(), 8, "at once");
}

/// What was given back twice by mistake stays at nothing.
#[test]
fn p9_more_is_given_back_than_was_taken() {
    let mut budget = Budget::new(10, 10);
    budget.give(Slot(3), 5);
    budget.take(Slot(0), 1);
    budget.give(Slot(0), 5);
    budget.give(Slot(0), 5);
    assert_eq!((budget.held(), budget.held_by(Slot(0))), (Held::default(), Held::default()));
}
