//! Judges a history by the promises, and by nothing else.
//!
//! The oracle is small and slow on purpose: it must be obvious that it is right. It shares no code with the pool, the
//! ledger or a backend, and knows only what [`history`](crate::history) says.
//!
//! | Promise | Judged as |
//! |---|---|
//! | G1 | *lost*: a message was acknowledged to its publisher, and for a group that reads its topic it is at the end neither handled to success nor in the dead-letter topic; or it was settled or committed as finished before it was |
//! | G2 | *reordered*: a message started while a lower one of its key was unfinished, or was a dead letter that is not redriven (only with [`Rules::parks`]); or the starts of a key went back under one ownership; or a key was in two partitions |
//! | G3 | *overlapping*: two runs of a key were open at once; a run was open or began after its ownership had ended; two members had the same epoch |
//! | G4 | *delayed*: a message whose turn had come did not start in time (only with [`Rules::starts_within`]) |
//! | G5 | *unbounded*: more runs were open in a member than allowed (only with [`Rules::max_in_flight`]) |
//! | G6 | *duplicates*: a message started after it was finished, and that was not for a crash, nor the first success of a dead letter that is redriven; or it became a dead letter after it was handled, without a run between, and that was not for a crash |
//! | G7 | *misplaced*: messages of one key and publisher are stored in another order than that of the calls |
//!
//! A run ends when its future has ended or was dropped. What a crash excuses: a run that was finished may run again under
//! another ownership if its own ended by `lost`, or by a release whose commit was refused, and no `committed` event before
//! the second start says that it was finished. Such runs are counted as *replayed*. A run of a member that lost its
//! partition without notice may overlap with one of the next owner, or repeat it, until shortly after `lost`; not when both
//! go by one name, because a process knows what it lost. And what was redriven may run again under another ownership if its own
//! wrote the list of parked keys in vain after that, and never with success (`kept`).
//!
//! A group that is [at most once](Rules::at_most_once) is judged by other words: nothing starts twice, for no excuse (G6); nothing
//! starts before it was settled, and nothing is settled and never started unless its owner crashed (G1); the starts of a key never
//! go back, under whatever ownership (G2). That its commit was accepted before the start is what a second start after a crash shows.
//!
//! ```
//! use ebus_testkit::{history::History, oracle::{Rules, judge}};
//!
//! let history = History::new();
//! // ... a run that records into it
//! let verdict = judge(&history.events(), &Rules::new());
//! assert!(verdict.kept(), "{verdict}");
//! ```

mod at_most_once;
mod bounds;
mod duplicates;
mod facts;
mod faults;
mod loss;
mod order;
mod overlap;
mod publish;
mod rules;
mod verdict;

pub use rules::Rules;
pub use verdict::{Finding, Promise, Verdict};

use crate::history::Event;
use facts::Facts;

/// Judges `events`, which stand in the order in which they happened.
pub fn judge(events: &[Event], rules: &Rules) -> Verdict {
    let mut verdict = Verdict::new(rules.findings);
    let facts = Facts::gather(events, rules, &mut verdict);
    loss::judge(&facts, rules, &mut verdict);
    at_most_once::judge(&facts, rules, &mut verdict);
    order::judge(&facts, rules, &mut verdict);
    overlap::judge(&facts, rules, &mut verdict);
    bounds::judge(&facts, rules, &mut verdict);
    duplicates::judge(&facts, rules, &mut verdict);
    publish::judge(&facts, &mut verdict);
    verdict
}

#[cfg(test)]
mod tests;
